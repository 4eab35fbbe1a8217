"""Plots of arrays, without computations; matplotlib is imported inside functions."""
