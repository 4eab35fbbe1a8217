"""Damaged and hostile files, read as users do: each must be read correctly or refused in one clear line.

    python benchmarks/fuzz_files.py                      # all cases; some ten minutes
    python benchmarks/fuzz_files.py --log fuzz.jsonl     # continues an interrupted run
    python benchmarks/fuzz_files.py --only 1234          # one case, with its result

Case i depends only on the seed and i. Of ten cases five go to `read_model`, one each to
`GramianEstimator.load`, `hankelred hsv` and `hankelred reduce --out`, and two to `hankelred identify`. They
run in a child process, so that a crash is counted and a new child continues after it; a case that takes more
than 10 s of processor time counts as a hang. Accepted values must be finite, and are compared with what
scipy, numpy and json read from the same file (last, since scipy's reader may crash, which is counted
separately); written files are read again.

The prediction, before the first run: no crash, since only Python reads; a few foreign exceptions in
`identify`, whose records are degenerate in untested ways. This was correct: 136 of 5200 records, in two
places.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import _file_cases as cases
import numpy as np

import hankelred
from hankelred._util.reading import open_arrays
from hankelred.cli import main as cli
from hankelred.files import read_model

SEED = 20260
CASES = 40000
TARGETS = (*["read_model"] * 5, "estimator", "hsv", "reduce", "identify", "identify")
COLUMNS = (
    "clean error",
    "accepted",
    "unclear message",
    "foreign exception",
    "wrong acceptance",
    "crash",
    "hang",
    "scipy crashed",
)
#: The command that runs cases, to which their range is added.
CHILD = [sys.executable, __file__, "--child"]
#: Seconds of processor time after which a case counts as a hang.
HANG = 10
#: Memory limit of a child: beyond it there is a MemoryError.
MEMORY = 4 << 30


def case_of(number: int) -> tuple[str, cases.Case]:
    rng = np.random.default_rng([SEED, number])
    target = TARGETS[number % len(TARGETS)]
    make = {"identify": cases.record_case, "estimator": cases.estimator_case}.get(target, cases.model_case)
    return target, make(rng)


# in the child process


def is_clear(message: str) -> bool:
    """Return a text as one line of limited length without control characters."""
    return message.isprintable() and 10 <= len(message) <= 2500


def command(*arguments: str) -> tuple[int, str, str]:
    """Run `hankelred` in this process."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["hankelred", *arguments]
    status: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
    return int(status), out.getvalue(), err.getvalue()


def run_reading(target: str, path: Path) -> tuple[str, str]:
    try:
        arrays = (estimator_of(path),) if target == "estimator" else read_model(path).as_tuple()
    except hankelred.HankelredError as error:
        return ("clean error" if is_clear(str(error)) else "unclear message"), str(error)[:200]
    if not all(np.isfinite(M).all() for M in arrays):
        return "wrong acceptance", "an entry that is not finite"
    return "accepted", ""


def estimator_of(path: Path) -> np.ndarray:
    """Load an estimator, update it, and return its factor."""
    estimator = hankelred.GramianEstimator.load(path)
    if estimator.n_states < 100:
        estimator.update(np.ones((estimator.n_states, 2)))
    return estimator.factor() if estimator.n_samples else np.zeros(0)


def run_command(target: str, path: Path) -> tuple[str, str]:
    out = path.with_name("out.json")
    out.unlink(missing_ok=True)
    arguments = [str(path)]
    if target == "reduce":
        arguments += ["--order", "2", "--out", str(out)]
    elif target == "identify":
        arguments += ["--inputs", "0", "--outputs", "1", "--order", "1", "--out", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, text, err = command(target, *arguments)
    lines = err.splitlines()
    foreign = [line for line in lines if "Warning" in line or not line.startswith(("error: ", "warning: "))]
    numpys = ("invalid value", "overflow encountered", "divide by zero", "underflow encountered")
    foreign += [line for line in lines if any(word in line for word in numpys)]
    if foreign:
        return "foreign exception", foreign[0][:200]
    if status == 2:
        one = len(lines) == 1 and lines[0].startswith("error: ") and is_clear(lines[0])
        return ("clean error" if one and not out.exists() else "unclear message"), err[:200]
    if status != 0 or any(not line.startswith("warning: ") or not is_clear(line) for line in lines):
        return "unclear message", err[:200]
    # the name of a column may be anything
    if "nan" in re.findall(r"[a-z]+", re.sub("(?m)^fit of .*: ", "", text)):
        return "wrong acceptance", "nan in the output"
    if target != "hsv" and not all(np.isfinite(M).all() for M in read_model(out).as_tuple()):
        return "wrong acceptance", "an entry that is not finite was written"
    return "accepted", ""


def differs(path: Path) -> str:
    """Describe how an accepted model file differs from the result of another reader; empty if it does not."""
    with open_arrays(path) as read:
        names = {key: name for name in read for key in "ABCDE" if name == key or name == key.lower()}
        ours = {key: read[name] for key, name in names.items()}
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat

            content: Any = loadmat(path)
            theirs = {key: content[name] for key, name in names.items()}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as content:
                theirs = {key: content[name] for key, name in names.items()}
        else:
            content = json.loads(path.read_bytes())
            theirs = {key: content[name] for key, name in names.items()}
    except Exception:
        return ""  # the other is stricter, for instance about variables that no model has
    for key, value in ours.items():
        if value is None:
            continue
        other = theirs[key]
        if hasattr(other, "check_format"):
            other.check_format(full_check=True)
        a, b = (M.toarray() if hasattr(M, "toarray") else np.asarray(M) for M in (value, other))
        if b.dtype.kind not in "iufc":
            return f"{key} is of type {b.dtype}"
        if a.shape != b.shape or not np.array_equal(a.astype(complex), b.astype(complex)):
            return f"{key} is {a.ravel()[:3]} here and {b.ravel()[:3]} there"
    return ""


def child(first: int, last: int) -> None:
    """Run cases, with a line on stdout before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    report = sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            print(json.dumps({"start": number}), file=report, flush=True)
            target, case = case_of(number)
            path = Path(folder) / f"case{case.suffix}"
            path.write_bytes(case.content)
            signal.setitimer(signal.ITIMER_PROF, HANG)
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    if target in ("read_model", "estimator"):
                        outcome, detail = run_reading(target, path)
                    else:
                        outcome, detail = run_command(target, path)
                if target in ("read_model", "estimator") and caught:
                    outcome, detail = "foreign exception", f"warning: {caught[0].message}"
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                outcome, detail = "foreign exception", f"{type(error).__name__} {place}: {str(error)[:150]}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            result = {"case": number, "target": target, "family": case.family, "outcome": outcome}
            result["detail"] = detail
            print(json.dumps(result), file=report, flush=True)
            if target in ("read_model", "hsv", "reduce") and outcome == "accepted":
                print(json.dumps({"compare": number}), file=report, flush=True)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    difference = differs(path)
                if difference:
                    result |= {"outcome": "wrong acceptance", "detail": difference}
                    print(json.dumps(result), file=report, flush=True)


# in the parent process


def run(first: int, last: int, log: Path | None) -> dict[int, dict[str, Any]]:
    """Run all cases that are not in the log, child after child."""
    results: dict[int, dict[str, Any]] = {}
    if log is not None and log.exists():
        for line in log.read_text().splitlines():
            result = json.loads(line)
            results[result["case"]] = result
    results = {number: result for number, result in results.items() if first <= number < last}
    following = max(results, default=first - 1) + 1

    def note(result: dict[str, Any]) -> None:
        results[result["case"]] = result
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")

    while following < last:
        command = [*CHILD, str(following), str(min(last, following + 2000))]
        comparing = False
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            for line in process.stdout or ():
                message = json.loads(line)
                if "start" in message:
                    following, comparing = message["start"], False
                elif "compare" in message:
                    comparing = True
                else:
                    note(message)
        status = process.returncode
        if status < 0:
            target, case = case_of(following)
            outcome = "scipy crashed" if comparing else "hang" if -status == signal.SIGPROF else "crash"
            detail = signal.Signals(-status).name
            result = {"case": following, "target": target, "family": case.family, "outcome": outcome}
            note(result | {"detail": detail})
        elif status > 0:
            sys.exit(f"the child of case {following} ended with status {status}")
        following += 1
    return results


def table(results: dict[int, dict[str, Any]]) -> str:
    """Return the counts, as a table for the documentation."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in results.values():
        counts[result["target"], result["outcome"]] += 1
    lines = ["| target | cases | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for target in [*dict.fromkeys(TARGETS), "all"]:
        row = [sum(n for (t, o), n in counts.items() if target in (t, "all") and o == c) for c in COLUMNS]
        lines.append(f"| {target} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--log", type=Path, help="JSON lines; what is in it already is not run again")
    parser.add_argument("--only", type=int, help="run one case and show it")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    if arguments.only is not None:
        print(run(arguments.only, arguments.only + 1, None)[arguments.only])
        return
    results = run(0, arguments.cases, arguments.log)
    print(table(results))
    bad = [r for r in results.values() if r["outcome"] not in ("clean error", "accepted", "scipy crashed")]
    for result in bad:
        print(result)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
