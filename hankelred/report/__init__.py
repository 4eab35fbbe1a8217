"""Interactive pictures and pages of a reduction, from arrays that its caller computes."""
