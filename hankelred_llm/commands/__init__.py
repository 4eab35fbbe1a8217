"""The subcommands of `hankelred-llm`, one file each.

A file of this folder without an underscore is a subcommand of its name; it binds a click command to
``COMMAND``. Nothing has to be registered. Heavy imports belong inside functions, so that ``--help`` is quick.
"""
