"""Empirical Gramians: excitations, experiments, sampled responses, and their integration to Gramians."""
