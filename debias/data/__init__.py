"""Training text: read from files and data wheels, checked, swapped and mixed."""
