"""Tables, plots, the HTML page and the bias card: figures -> something a person reads."""
