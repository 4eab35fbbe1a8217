"""The adapter package as a whole: what it imports, what it exports, how it is documented."""

from __future__ import annotations

import ast
import inspect
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import hankelred
import hankelred_llm

PACKAGE = Path(hankelred_llm.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
#: tools that both packages use; everything else of the core is public
SHARED_TOOLS = ("hankelred._util.lazy_names", "hankelred._util.writing")
#: what trains and evaluates, and pictures: not needed to attach an adapter and to generate
HEAVY = ("trl", "datasets", "transformers.trainer", "matplotlib", "rouge_score", "bitsandbytes", "control")


def imports(path):
    """Yield (module, whether at import time)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), id(node) in top


def test_import_is_lean():
    code = f"import hankelred_llm, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_import_takes_no_time():
    # 5 s and 400 MB before the first line of help: almost all of it was peft
    code = "import sys, hankelred_llm.cli.main; print('torch' in sys.modules, 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


#: Orders in which a user may import, each in a process that has neither of the two yet.
ORDERS_OF_IMPORT = (
    "import hankelred_llm, peft",
    "import peft, hankelred_llm",
    "import hankelred_llm.adapter.config",
    "import hankelred_llm.experiments.trainer",
    "import transformers, hankelred_llm; from transformers import Trainer; import peft.tuners",
    "from hankelred_llm import *; import peft",
    "import hankelred_llm, importlib.resources as r; import peft; r.files('peft'); "
    "peft.__spec__.loader.get_source",
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_hrm_is_a_method_of_peft_in_whatever_order_they_are_imported():
    # the processes are copies of one that has imported what both need, which takes most of the time
    code = f"""
import os, sys, accelerate, torch, transformers.modeling_layers
assert not any(name.partition(".")[0] in ("peft", "hankelred_llm") for name in sys.modules)
for order in {ORDERS_OF_IMPORT!r}:
    child = os.fork()
    if child == 0:
        exec(order)
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        print(PEFT_TYPE_TO_CONFIG_MAPPING["HRM"].__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["HRMConfig"] * len(ORDERS_OF_IMPORT), done.stderr


def test_without_torch_one_line_says_what_to_install(tmp_path):
    # a traceback that ended in "No module named 'torch'"
    hide = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'peft'): raise ModuleNotFoundError(name)\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('torch', 'peft') else find(n, *a)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    message = "hankelred_llm needs torch, peft; run: pip install 'hankelred[llm]'"
    script = tmp_path / "hankelred-llm"
    script.write_text(hide + "from hankelred_llm.cli.main import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    done = subprocess.run(
        [sys.executable, "-c", hide + "import hankelred_llm"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.rstrip().endswith(f"ImportError: {message}")


@pytest.mark.parametrize(
    ("command", "status", "part"),
    [
        ("--help", 0, "spectra"),
        ("spectra --help", 0, "--tol"),
        ("compare --task parity --length 8", 2, "error: "),
        ("train --help", 2, "error: "),
        ("evaluate nowhere", 2, "error: "),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(tmp_path, command, status, part):
    # experiments are an extra: the other commands, and the list of all, do without
    script = tmp_path / "hankelred-llm"
    script.write_text(
        "import sys; sys.modules['pydantic'] = None\nfrom hankelred_llm.cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, script, *command.split()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output = done.stdout + done.stderr
    assert done.returncode == status and part in output
    if status:
        assert output == (
            "error: train, evaluate and compare need pydantic; run: pip install 'hankelred[experiments]'\n"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status", "part"),
    [
        ("--help", 0, "Recurrent adapters"),
        ("compare --help", 0, "--learning-rate"),
        ("spectra --help", 0, "--tol"),
        ("compare --wrong 1", 2, "--wrong"),
        ("trian", 2, "trian"),
        ("compare --task flipflop", 2, "did you mean 'flip_flop'"),
        ("train --task parity --steps many", 2, "many"),
        ("train --task x", 2, "there is no task 'x'"),
        ("compare --task parity --learning-rate nan", 2, "learning_rates"),
    ],
)
def test_what_needs_no_model_is_answered_at_once(command, status, part):
    # 5 to 6 s of processor time and 435 MB: everything was imported first
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "hankelred_llm", *command.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == status and part in done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_the_readmes_example_warns_of_nothing(tmp_path):
    # transformers 5.23 and later tell whoever calls peft that peft calls it by a deprecated name
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    code = next(block.split("```")[0] for block in blocks if "hankelred_llm.attach" in block)
    code = "\n".join(line[4:] for line in code.splitlines() if line.startswith((">>> ", "... "))) or code
    command = [sys.executable, "-W", "error::FutureWarning", "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_all_is_what_exists():
    assert hankelred_llm.__all__ == sorted(hankelred_llm.__all__)
    public = {
        name
        for name in dir(hankelred_llm)
        if not name.startswith("_")
        and not inspect.ismodule(getattr(hankelred_llm, name))
        and getattr(getattr(hankelred_llm, name), "__module__", "").startswith("hankelred_llm.")
    }
    assert public == set(hankelred_llm.__all__) - {"__version__"}
    assert (PACKAGE / "py.typed").is_file()
    assert hankelred_llm.__version__ == hankelred.__version__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_public_modules_of_the_core_are_imported(path):
    for module, _ in imports(path):
        assert module in SHARED_TOOLS or not module.startswith("hankelred._"), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_loaded_by_pickle(path):
    text = path.read_text(encoding="utf-8")
    assert "torch.load" not in text and "weights_only=False" not in text
    assert not {"pickle", "dill", "cloudpickle"} & {module for module, _ in imports(path)}


def public_functions():
    for name in hankelred_llm.__all__:
        value = getattr(hankelred_llm, name)
        if inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("name, function", list(public_functions()))
def test_docstring(name, function):
    doc = inspect.getdoc(function)
    returns = () if inspect.signature(function).return_annotation in (None, "None") else ("Returns",)
    for section in ("Parameters", *returns, "Raises", "Examples"):
        assert re.search(rf"^{section}\n-+$", doc, re.M), f"{name} has no section {section}"
    described = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n[A-Z]\w+\n-+\n|\Z)", doc, re.S | re.M).group(1)
    heads = " ".join(line for line in described.splitlines() if line and not line.startswith(" "))
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", heads), f"{name}: {parameter} is not described"
    assert ">>>" in doc


def test_errors_are_those_of_the_core():
    for name in hankelred_llm.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(hankelred_llm, name), hankelred.HankelredError)


def test_reference_has_every_public_name():
    text = (ROOT / "docs" / "api_llm.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto(?:function|class|exception):: ([\w.]+)", text))
    assert documented >= set(hankelred_llm.__all__) - {"__version__"}
