"""`python -m hankelred` is the console script."""

from .cli import main

main()
