"""The methods of reduction that balance other Gramians than the model's own, or do not truncate."""
