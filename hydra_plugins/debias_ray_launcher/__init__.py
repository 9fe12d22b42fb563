"""A launcher for Ray, in the place where Hydra looks for plugins."""
