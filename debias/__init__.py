"""Make a language model prefer stereotypes less, and prove it."""

__version__ = "0.1.0"
