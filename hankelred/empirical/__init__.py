"""Empirical Gramians: excitations, simulations or sampled responses, and what they are assembled to."""
