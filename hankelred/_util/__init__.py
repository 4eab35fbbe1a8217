"""Shared helpers: arrays, argument checks, twofold precision, progress bars, reading and writing files."""
