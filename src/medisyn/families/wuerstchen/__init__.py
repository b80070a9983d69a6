"""Würstchen v2: text to a picture in three stages, of which the first, Stage C, is trained."""
