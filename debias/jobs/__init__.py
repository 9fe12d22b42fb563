"""One file per verb: what it does, from start to end."""
