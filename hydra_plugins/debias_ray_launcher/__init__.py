"""A launcher for Ray, where Hydra looks for plugins."""
