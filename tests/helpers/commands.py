"""The command lines, run in this process."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings


def command(*arguments):
    """Run `hankelred-llm`; return exit status, output and error output."""
    from hankelred_llm.cli import main as cli

    return run_main(cli.main, "hankelred-llm", *arguments)


def run_main(main, program, *arguments):
    """Run a command line by its function."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [program, *map(str, arguments)]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            main()
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = argv
    return status, out.getvalue(), err.getvalue()
