"""Stability of poles, solvers of Lyapunov and Stein equations for factors of Gramians, the cross Gramian."""
