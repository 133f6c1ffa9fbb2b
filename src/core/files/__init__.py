"""Files of rows in and out."""
