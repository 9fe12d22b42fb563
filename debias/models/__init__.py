"""Base model and adapter in, adapter folder out."""
