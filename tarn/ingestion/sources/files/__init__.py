"""Files in a folder: their places, formats and contents."""
