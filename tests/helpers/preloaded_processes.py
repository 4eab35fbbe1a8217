"""Processes that start as copies of one that has imported torch and transformers, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

PRELOADED = [
    "hankelred_llm",
    "transformers.models.mistral.modeling_mistral",
    "transformers.trainer",
    "torch.distributed.fsdp",
]


def context():
    """Return what starts such processes; where a system cannot copy processes they import on their own."""
    methods = multiprocessing.get_all_start_methods()
    found = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    found.set_forkserver_preload(PRELOADED)
    return found


def run_script(path, *arguments, cwd, env, timeout):
    """Run a Python file as `python path arguments` does; return exit status, output and error output."""
    with TemporaryDirectory() as folder:
        process = context().Process(target=_run, args=(str(path), arguments, str(cwd), dict(env), folder))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        texts = []
        for name in ("1", "2"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                texts.append(file.read())
    return CompletedProcess([path, *arguments], process.exitcode, *texts)


def _run(path, arguments, cwd, env, folder):
    for descriptor in (1, 2):
        file = os.open(os.path.join(folder, str(descriptor)), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [path, *map(str, arguments)]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")
