"""Balancing, order selection, norms, and reduced models with their certificates."""

from .reduce import Certificate

__all__ = ["Certificate"]
