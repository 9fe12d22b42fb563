"""A file per verb, with its job from start to end, and what the jobs share."""
