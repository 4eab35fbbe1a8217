"""Reduction methods that balance other Gramians than those of the model, or that do not truncate."""
