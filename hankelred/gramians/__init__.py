"""Stability, and the solvers of Lyapunov and Stein equations that give factors of Gramians."""
