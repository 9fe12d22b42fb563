"""The report of one run, its bias card, and the pages on its training data."""
