"""Tasks whose rows are drawn from a seed."""
