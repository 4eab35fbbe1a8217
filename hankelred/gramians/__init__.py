"""Stability of poles, and the solvers of Lyapunov and Stein equations for factors of Gramians."""
