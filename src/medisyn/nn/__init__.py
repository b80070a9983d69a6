"""Blocks and networks that two or more parts of the house share."""
