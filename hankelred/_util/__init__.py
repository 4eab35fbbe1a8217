"""Arrays, argument checks, twofold precision, progress, and files read and written whole."""
