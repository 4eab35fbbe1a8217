"""Simulation, impulse responses and convolution, whole or in blocks."""
