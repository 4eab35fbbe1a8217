"""The command line `hankelred`."""
