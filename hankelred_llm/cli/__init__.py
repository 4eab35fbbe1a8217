"""The command line `hankelred-llm`."""
