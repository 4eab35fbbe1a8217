"""Damaged and hostile adapters, calibrations, settings and results: used, or refused in one clear line.

    python benchmarks/fuzz_adapters.py                  # all cases; some ten minutes
    python benchmarks/fuzz_adapters.py --cases 500      # the first 500
    python benchmarks/fuzz_adapters.py --only 123       # one case, with its result

Case i depends only on the seed and i. The cases go in turn to `adapter_config.json` (by peft and by
transformers), the weights, `Calibration.load` with a reduction, the settings, and `results.jsonl` with
`train`. They run in a child process whose memory is limited, so that a crash is counted and a new child goes
on after it; a case of more than 10 s of processor time counts as a hang, and one after which the process has
grown by more than 200 MB as an allocation that the file's size does not warrant. Accepted adapters must give
finite logits.

The prediction, before the first run: none in the configuration, whose fields are checked one by one; some in
results, where a record may have any content.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20261
CASES = 6000
TARGETS = ("config", "config", "config by transformers", "weights", "calibration", "settings", "results")
HANG = 10
MEMORY = 6 << 30
GROWTH = 200_000  # kB

#: JSON and YAML texts that a field may hold.
VALUES = (
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "3",
    "5",
    "1000000000",
    "1e9",
    "1e400",
    "NaN",
    "-Infinity",
    "0.5",
    "1" + "0" * 400,
    "9" * 5000,
    '""',
    '"x"',
    '"mlp"',
    '"HRM"',
    '"LORA"',
    '"["',
    '"' + "(" * 3000 + '"',
    '"' + "a" * 100_000 + '"',
    '"\\u0000"',
    '"\\ud800"',
    "[]",
    "[1]",
    "[null]",
    '["mlp"]',
    '["x"]',
    "[[1, [2]]]",
    "{}",
    '{"a": 1}',
    '{"layers.0.mlp": 100000000}',
    '{"layers.0.mlp": [1, 2]}',
    '{"layers.1.mlp": 1}',
    "[" * 50 + "]" * 50,
    "[" * 100_000,
    "[" * 20_000 + "]" * 20_000,
    '{"x": [1, {"y": null}]}',
    "[0, 1]",
    "[99]",
    '"ring"',
    '"real"',
    '"output"',
    '"attention"',
    '"mistral"',
    '{"model_type": "llama"}',
    '"1e-3"',
    "1000000000000",
)


class Material:
    """Valid files, from which the cases are made."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        import hankelred_llm
        from hankelred_llm.experiments.base_models import small_model
        from hankelred_llm.experiments.single_run import train_into

        torch.manual_seed(0)
        self.config = transformers.MistralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        self.weights = transformers.MistralForCausalLM(self.config).state_dict()
        model = hankelred_llm.attach(self.base(), r=4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".C"):
                    parameter.normal_()
        self.ids = torch.arange(24).view(2, 12) % 32
        model.save_pretrained(folder / "adapter")
        batch = {"input_ids": torch.randint(32, (4, 12)), "labels": torch.randint(32, (4, 12))}
        hankelred_llm.calibrate(model, [batch], held_out=24, progress=False).save(folder / "calibration")
        self.model = str(small_model(folder / "small", pretrained=False))
        train_into(self.settings(folder / "training"))
        self.files = {
            "config": (folder / "adapter" / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
            "calibration": (folder / "calibration").read_bytes(),
            "results": (folder / "training" / "results.jsonl").read_bytes(),
        }
        self.folder = folder

    def base(self) -> Any:
        """Return the base model, always with the same weights."""
        import transformers

        model = transformers.MistralForCausalLM(self.config)
        model.load_state_dict(self.weights)
        return model

    def settings(self, out: Path) -> Any:
        """Return the settings of a training of two steps."""
        from hankelred_llm.experiments.settings import one_run

        sizes: dict[str, Any] = {
            "length": 8,
            "steps": 2,
            "batch_size": 2,
            "validation_size": 4,
            "test_lengths": [8],
        }
        return one_run("hrm-mlp r=2", 0.01, 0, task="parity", model=self.model, out=str(out), **sizes)


def changed_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Change, cut, repeat or insert bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(data) + 1))
        kind = rng.integers(4)
        if kind == 0 and place < len(data):
            data[place] = int(rng.integers(256))
        elif kind == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif kind == 2:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        else:
            data[place:place] = bytes(rng.integers(256, size=int(rng.integers(1, 9)), dtype=np.uint8))
    return bytes(data)


def changed_json(rng: np.random.Generator, content: bytes) -> bytes:
    """Give fields values of another kind, remove them, or write them twice."""
    entries = [(json.dumps(k), json.dumps(v)) for k, v in json.loads(content).items()]
    for _ in range(int(rng.integers(1, 3))):
        i = int(rng.integers(len(entries)))
        value = VALUES[int(rng.integers(len(VALUES)))]
        kind = rng.integers(8)
        if kind == 0 and len(entries) > 1:
            entries.pop(i)
        elif kind == 1:
            entries.append((entries[i][0], value))
        else:
            entries[i] = (entries[i][0], value)
    return ("{" + ", ".join(f"{k}: {v}" for k, v in entries) + "}").encode()


def changed_safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """Change header, shapes, types, metadata or numbers of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    name = names[int(rng.integers(len(names)))]
    kind = int(rng.integers(7))
    if kind == 0:
        return changed_bytes(rng, content)
    if kind == 1:
        header[name]["shape"] = [
            int(n) for n in rng.choice([0, 1, 2, 4, 16, 10**9, 2**62], size=int(rng.integers(4)))
        ]
        if 0 in header[name]["shape"]:
            header[name]["data_offsets"][1] = header[name]["data_offsets"][0]
    elif kind == 2:
        header[name]["dtype"] = str(
            rng.choice(["F16", "BF16", "F64", "I32", "I64", "BOOL", "U8", "F8_E4M3", "X"])
        )
    elif kind == 3:
        header[name + str(rng.choice(["x", ".more", "", "0"]))] = header.pop(name)
    elif kind == 4 and "__metadata__" in header and "calibration" in header["__metadata__"]:
        text = changed_json(rng, header["__metadata__"]["calibration"].encode())
        header["__metadata__"]["calibration"] = text.decode(errors="replace")
    elif kind == 5:
        del header[name]
    else:
        start, end = header[name]["data_offsets"]
        kinds = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
        dtype = kinds.get(header[name]["dtype"], np.uint8)
        values = np.frombuffer(bytes(data[start:end]), dtype).copy()
        if values.size:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = np.array([np.nan, np.inf, 1e20, 3e38, 1e300, -1, 0, 1e9, 1e6])[rng.integers(9)]
                values[rng.random(values.size) < rng.choice([0.1, 1.0])] = np.float64(new).astype(dtype)
            data[start:end] = values.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def settings_text(rng: np.random.Generator) -> bytes:
    """Return YAML with a few keys of settings."""
    from dataclasses import fields

    from hankelred_llm.experiments.settings import Settings

    names = [f.name for f in fields(Settings)]
    lines = ["task: parity"] * int(rng.integers(2))
    bomb = ", ".join(f"&a{k} [{', '.join([f'*a{k - 1}' if k else 'x'] * 9)}]" for k in range(9))
    values = (
        *VALUES,
        f"[{bomb}]",
        f"{{x: [{bomb}]}}",
        "!!python/object/apply:os.getcwd []",
        "2020-13-45",
        "? x",
    )
    for _ in range(int(rng.integers(1, 4))):
        lines.append(f"{names[int(rng.integers(len(names)))]}: {values[int(rng.integers(len(values)))]}")
    text = "\n".join(lines).encode()
    return changed_bytes(rng, text) if rng.random() < 0.2 else text


def case_of(number: int, material: Material) -> tuple[str, bytes]:
    rng = np.random.default_rng([SEED, number])
    target = TARGETS[number % len(TARGETS)]
    if target.startswith("config"):
        make = changed_json if rng.random() < 0.8 else changed_bytes
        return target, make(rng, material.files["config"])
    if target in ("weights", "calibration"):
        return target, changed_safetensors(rng, material.files[target])
    if target == "settings":
        return target, settings_text(rng)
    lines = material.files["results"].splitlines()
    i = int(rng.integers(len(lines)))
    lines[i] = changed_json(rng, lines[i]) if rng.random() < 0.7 else changed_bytes(rng, lines[i])
    return target, b"\n".join(lines) + b"\n" * int(rng.integers(2))


def use(target: str, content: bytes, material: Material) -> bool:
    """Use a file as a user does; return whether what it gives is finite."""
    import torch
    from peft import PeftModel

    import hankelred_llm
    from hankelred_llm.experiments.settings import read_settings
    from hankelred_llm.experiments.single_run import score_folder, train_into

    with tempfile.TemporaryDirectory(dir=material.folder) as scratch:
        folder = Path(scratch)
        if target == "settings":
            (folder / "settings.yaml").write_bytes(content)
            read_settings(folder / "settings.yaml", {})
            return True
        if target == "results":
            (folder / "results.jsonl").write_bytes(content)
            train_into(material.settings(folder))
            score_folder(folder, "validation", (), None)
            return True
        files = {"adapter_config.json": "config", "adapter_model.safetensors": "weights"}
        for name, key in files.items():
            (folder / name).write_bytes(content if target.startswith(key) else material.files[key])
        base = material.base()
        if target == "config by transformers":
            base.load_adapter(str(folder))
            model = base
        else:
            model = PeftModel.from_pretrained(base, folder)
        if target == "calibration":
            (folder / "calibration").write_bytes(content)
            calibration = hankelred_llm.Calibration.load(folder / "calibration")
            hankelred_llm.hankel_spectra(model, calibration)
            hankelred_llm.reduce(model, order=2, calibration=calibration)
        with torch.no_grad():
            return bool(torch.isfinite(model(material.ids).logits).all())


class Hang(BaseException):
    """A case took too long."""


def outcome_of(target: str, content: bytes, material: Material) -> tuple[str, str]:
    from hankelred import HankelredError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, HANG)
    try:
        outcome, detail = ("accepted", "") if use(target, content, material) else ("not finite", "")
    except HankelredError as error:
        message = str(error)
        clear = "\n" not in message and 10 <= len(message) <= 2500
        outcome, detail = ("clean error" if clear else "unclear message"), message[:200]
    except Hang:
        outcome, detail = "hang", ""
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} {Path(where.filename).name}:{where.lineno}: {str(error)[:150]}"
        outcome = "foreign exception"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > GROWTH:
        outcome, detail = "allocation", f"{outcome}: {detail}"
    return outcome, detail


def child(first: int, last: int) -> None:
    """Run cases, with a line before and after each."""

    def stop(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, stop)
    warnings.simplefilter("ignore")
    report = sys.stdout
    sys.stdout = sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        material = Material(Path(folder))
        use("calibration", material.files["calibration"], material)  # what is imported late is not a case's
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number in range(first, last):
            print(json.dumps({"start": number}), file=report, flush=True)
            target, content = case_of(number, material)
            outcome, detail = outcome_of(target, content, material)
            result = {"case": number, "target": target, "outcome": outcome, "detail": detail}
            print(json.dumps(result), file=report, flush=True)


def run(first: int, last: int) -> list[dict[str, Any]]:
    """Run cases in children; one that dies is a crash of its case."""
    results = []
    while first < last:
        command = [sys.executable, __file__, "--child", str(first), str(last)]
        started = None
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                content = json.loads(line)
                if "start" in content:
                    started = content["start"]
                    continue
                results.append(content)
                if content["outcome"] not in ("accepted", "clean error"):
                    print(json.dumps(content), flush=True)
        if started is None:
            raise SystemExit("the child could not make its files")
        if not results or results[-1]["case"] != started:
            target = TARGETS[started % len(TARGETS)]
            detail = f"status {process.returncode}"
            results.append({"case": started, "target": target, "outcome": "crash", "detail": detail})
            print(json.dumps(results[-1]), flush=True)
        first = started + 1
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--only", type=int)
    parser.add_argument("--child", nargs=2, type=int)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if options.only is not None:
        print(json.dumps(run(options.only, options.only + 1), indent=2))
        return
    results = run(0, options.cases)
    counts = Counter((r["target"], r["outcome"]) for r in results)
    outcomes = sorted({outcome for _, outcome in counts})
    print(" | ".join(["target", "cases", *outcomes]))
    for target in dict.fromkeys(TARGETS):
        row = [counts[target, outcome] for outcome in outcomes]
        print(" | ".join([target, *map(str, [sum(row), *row])]))
    if set(outcomes) - {"accepted", "clean error"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
