"""Twenty deliberate faults in solvers, certificates and readers: for each of them a test has to fail.

    python benchmarks/mutation_check.py [--fault NAME ...]

A fault is a substitution of text that occurs exactly once in the package; if it occurs not at all, or twice,
the fault is out of date and reported as an error. The faults are made one at a time in a temporary copy of
the tree. The tests named with a fault run first; if they pass, all tests of the core run; a fault that
passes those too has survived. Tests that fail without any fault are left out. The exit status is the number
of survivors and errors.

Prediction: no fault survives, and each is detected by the tests named with it. First measurement: true for
nineteen; no test covered that a boolean dt of an archive is True and not one second, so one was added.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hankelred"
TIME_LIMIT = 1800.0


@dataclass(frozen=True)
class Fault:
    """A change of the package, and the test files that should notice it."""

    name: str
    find: str
    replace: str
    tests: tuple[str, ...]


FAULTS = (
    # solvers
    Fault(
        "doubling adds with the transpose",
        "Lo = compress(np.hstack([Lo, power.conj().T @ Lo]), tolerance)",
        "Lo = compress(np.hstack([Lo, power.T @ Lo]), tolerance)",
        ("test_solvers.py",),
    ),
    Fault(
        "doubling drops small columns",
        "COMPRESSION = EPS * 1e-10",
        "COMPRESSION = EPS * 1e4",
        ("test_accuracy.py",),
    ),
    Fault(
        "doubling of an unstable system is not stopped",
        "if not size < CONTRACTION:\n        return None",
        "if not size < 1 / CONTRACTION:\n        return None",
        ("test_solvers.py", "test_stability.py"),
    ),
    Fault(
        "tiles in discrete time without their phase",
        "phase = pole.conjugate() / modulus if modulus > 0 else 1.0",
        "phase = 1.0",
        ("test_solvers.py",),
    ),
    Fault(
        "coupling of the split with the wrong sign",
        "-T[head, tail], isgn=-1)\n    if scale == 0",
        "T[head, tail], isgn=-1)\n    if scale == 0",
        ("test_stability.py",),
    ),
    Fault(
        "marginal poles are stable",
        "return -poles.real > tol * size",
        "return -poles.real >= -tol * size",
        ("test_stability.py",),
    ),
    Fault(
        "slow decay by subtraction",
        "-np.expm1(np.where(np.isneginf(total.real), 0.0, total))",
        "1 - np.exp(np.where(np.isneginf(total.real), 0.0, total))",
        ("test_modal.py", "test_solvers.py"),
    ),
    Fault(
        "any residual is believed",
        "ACCEPTED_RESIDUAL = 1e-8",
        "ACCEPTED_RESIDUAL = 1e8",
        ("test_solvers.py",),
    ),
    Fault(
        "cross Gramian in the solver's states",
        "X = X * system.states[:, None] / system.states",
        "X = X * 1.0",
        ("test_solvers.py",),
    ),
    # certificates
    Fault(
        "bound without its factor two",
        "bounds[k] = 2 * values[k] + bounds[next_distinct]",
        "bounds[k] = values[k] + bounds[next_distinct]",
        ("test_order.py",),
    ),
    Fault(
        "different values counted as one",
        "REPEATED = 1e-10",
        "REPEATED = 1e-2",
        ("test_order.py", "test_reduce.py"),
    ),
    Fault(
        "oblique bases",
        "if r == 0:\n            return left, right",
        "if r >= 0:\n            return left, right",
        ("test_reduce.py",),
    ),
    Fault(
        "states at rest do not reach the output",
        "C, C_low = total(full.C[:, :r], full.C_low[:, :r], trailing, leading)",
        "C, C_low = full.C[:, :r], full.C_low[:, :r]",
        ("test_reduce.py",),
    ),
    Fault(
        "needles stepped over",
        "values = values[np.abs(values.real) <= 1e-3 * np.abs(values) + 1e-7 * size]",
        "values = values[:0]",
        ("test_norms.py", "test_reduce.py"),
    ),
    Fault(
        "energy without the direct term",
        "return math.hypot(root, direct)",
        "return float(root)",
        ("test_norms.py",),
    ),
    Fault(
        "rounding below the noise floor kept",
        "return max(rounding, n * EPS * float(values.max(initial=0.0)))",
        "return EPS * max(rounding, n * EPS * float(values.max(initial=0.0)))",
        ("test_reduce.py",),
    ),
    # readers
    Fault(
        "fifth matrix of a file ignored",
        'matrices.get(key) for key in "ABCDE"',
        'matrices.get(key) for key in "ABCD"',
        ("test_cli.py",),
    ),
    Fault(
        "rows of E not scaled back",
        "rhs = np.concatenate([A, B], axis=1) / rows[:, None]",
        "rhs = np.concatenate([A, B], axis=1)",
        ("test_models.py",),
    ),
    Fault(
        "infinite entries let in",
        "if not np.all(np.isfinite(out)):\n        row, col = np.argwhere",
        "if np.any(np.isnan(out)):\n        row, col = np.argwhere",
        ("test_models.py",),
    ),
    Fault(
        "words for dt of a file ignored",
        "if isinstance(value, str) and str(value) in WORDS:\n        return WORDS[str(value)]",
        "if isinstance(value, str) and str(value) in WORDS:\n        return 0",
        ("test_cli.py",),
    ),
)


class Tree:
    """A temporary copy of what git tracks, or would track, in which faults are made and tests run."""

    def __init__(self, folder: Path):
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.sources = sorted((folder / PACKAGE).rglob("*.py"))

    def file_with(self, text: str) -> Path:
        """Return the only file that contains a text, exactly once."""
        counts = {path: path.read_text("utf-8").count(text) for path in self.sources}
        total = sum(counts.values())
        if total != 1:
            raise LookupError(f"the text occurs {total} times in {PACKAGE}, not once: {text!r}")
        return max(counts, key=counts.__getitem__)

    def failures(self, files: list[str], leave_out: list[str] | None = None) -> list[str]:
        """Run test files and return what failed; with tests to leave out, up to the first failure."""
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *files]
        if leave_out is not None:
            command += ["-x", *(f"--deselect={name}" for name in leave_out)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HANKELRED_SHARED": os.environ.get("HANKELRED_SHARED") or str(ROOT.parent / "shared"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            return [f"not done after {TIME_LIMIT:.0f} s"]
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1, 5) and not failed:
            return [f"pytest ended with {done.returncode}: {done.stdout[-200:]}{done.stderr[-200:]}"]
        return failed

    @cached_property
    def core(self) -> list[str]:
        """The test files of the core, by name."""
        return [
            str(path.relative_to(self.folder))
            for path in sorted((self.folder / "tests" / "core").rglob("test_*.py"))
        ]

    def files(self, names: tuple[str, ...]) -> list[str]:
        """Return where the test files of these names are."""
        paths = [path for path in self.core if Path(path).name in names]
        if len(paths) != len(names):
            raise LookupError(
                f"of the test files {', '.join(names)} only {', '.join(paths) or 'none'} are there"
            )
        return paths


class Check:
    """Faults tried one after the other; each test file runs once without a fault for comparison."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.failures_without_fault: dict[str, list[str]] = {}

    def run_without_fault(self, files: list[str]) -> None:
        """Run files without a fault, once."""
        new = [file for file in files if file not in self.failures_without_fault]
        if new:
            failed = self.tree.failures(new)
            for file in new:
                self.failures_without_fault[file] = [name for name in failed if name.startswith(file)]

    def try_fault(self, fault: Fault) -> tuple[str, str]:
        """Return ("noticed" | "survived" | "error", what noticed it or what is wrong)."""
        try:
            path, named = self.tree.file_with(fault.find), self.tree.files(fault.tests)
        except LookupError as error:
            return "error", str(error)
        text = path.read_text("utf-8")
        for files in (named, self.tree.core):
            self.run_without_fault(files)
            known = [name for file in files for name in self.failures_without_fault[file]]
            path.write_text(text.replace(fault.find, fault.replace), "utf-8")
            try:
                failed = self.tree.failures(files, leave_out=known)
            finally:
                path.write_text(text, "utf-8")
            if failed:
                return "noticed", failed[0] + ("" if files is named else "; not by the tests named with it")
        return "survived", f"{path.relative_to(self.tree.folder)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", action="append", help="this fault alone; may be given more than once")
    wanted = parser.parse_args().fault
    unknown = set(wanted or ()) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}")
    counts = {"noticed": 0, "survived": 0, "error": 0}
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Tree(Path(folder)))
        for fault in FAULTS:
            if wanted and fault.name not in wanted:
                continue
            start = time.monotonic()
            outcome, detail = check.try_fault(fault)
            counts[outcome] += 1
            print(f"{outcome:9s} {fault.name} ({time.monotonic() - start:.0f} s): {detail}", flush=True)
        for file, names in check.already.items():
            if names:
                print(f"left out, failing without a fault: {', '.join(names)} of {file}")
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return counts["survived"] + counts["error"]


if __name__ == "__main__":
    sys.exit(main())
