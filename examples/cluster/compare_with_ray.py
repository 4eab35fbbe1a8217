"""A comparison spread over machines by Ray.

    python examples/cluster/compare_with_ray.py study.yaml [--address ADDRESS]

study.yaml has the settings of `hankelred-llm compare`; its `out` is a folder of all machines. Without
an address Ray starts on this machine; `pip install ray`. Each run has a folder of its own below OUT/parts. A
run whose worker dies is started again and resumes from its last checkpoint, and so does the whole when the
script is given again. The report in OUT is that of one process.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import ray

from hankelred_llm.experiments.compare import compare, compare_one
from hankelred_llm.experiments.settings import Settings, read_settings


@ray.remote(num_cpus=1, max_retries=3)  # with GPUs: num_gpus=1
def run_one(settings: Settings, only: str, merge: list[Path]) -> Path:
    """Make one run in a worker."""
    compare_one(settings, only, merge=merge)
    return Path(settings.out)


def spread(settings: Settings, runs: list[str], merge: list[Path]) -> list[Path]:
    """Make runs, METHOD,RATE,SEED each, on the cluster, and return their folders."""
    parts = Path(settings.out).absolute() / "parts"
    waiting = {}
    for only in runs:
        out = parts / only.replace(" ", "_").replace("/", "_")
        waiting[run_one.remote(replace(settings, out=str(out)), only, merge)] = only
    folders = []
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        folders.append(ray.get(done))  # raises the error of a run that failed
        print(f"{waiting.pop(done)} is finished, {len(waiting)} left", flush=True)
    return folders


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML file of settings")
    parser.add_argument("--address", help="of a Ray cluster, such as auto or ray://host:10001")
    options = parser.parse_args()
    settings = read_settings(options.config, {})
    ray.init(address=options.address, log_to_driver=False)

    several = {name: len(settings.rates(name)) > 1 for name in settings.methods}
    tuning = [
        f"{name},{rate:g},{seed}"
        for name in settings.methods
        if several[name]
        for rate in settings.rates(name)
        for seed in settings.tuning_seeds
    ]
    folders = spread(settings, tuning, [])
    final = [
        f"{name},{'best' if several[name] else format(settings.rates(name)[0], 'g')},{seed}"
        for name in settings.methods
        for seed in settings.seeds
    ]
    folders += spread(settings, final, sorted(folders))
    ray.shutdown()
    result = compare(settings, merge=sorted(folders))
    print(f"the report is in {result.folder}")


if __name__ == "__main__":
    main()
