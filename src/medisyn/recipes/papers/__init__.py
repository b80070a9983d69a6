"""The published tables of the four papers as data, the commands that give ours, and both side by side."""
