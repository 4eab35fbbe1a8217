"""Oracles, data, models and processes that tests and benchmarks share."""
