"""Files and tables into a corpus of captioned, split, checked samples."""
