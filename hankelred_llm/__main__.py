"""`python -m hankelred_llm` is the console script."""

from .cli.main import main

main()
