"""`python -m hankelred_llm` is the console script."""

from .cli import main

main()
