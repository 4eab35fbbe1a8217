"""Effects of rounding on reduced models and their error bounds."""
