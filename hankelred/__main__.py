"""`python -m hankelred` is the console script."""

from .cli.main import main

main()
