"""Models of all kinds in one form, modal forms, and frequency responses."""
