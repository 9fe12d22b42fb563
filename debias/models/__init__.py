"""Base models and adapters: load, attach, save, combine."""
