"""Text in: triplets read from files, checked, and cut into batches of token spans."""
