"""Pictures: draws arrays, computes nothing, imports matplotlib inside functions."""
