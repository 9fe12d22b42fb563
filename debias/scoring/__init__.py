"""Tokens meet a model: candidates -> spans -> one batch -> log-probabilities, in nats."""
