"""Simulation, impulse responses and convolution of whole records and of streams."""
