"""Memory that `GramianEstimator.update` takes for states in files that are larger than it.

    pip install h5py zarr 'dask[array]'
    python benchmarks/bench_snapshots.py [--gib 2]

Each file is read by a process of its own; the memory is the largest it had, beyond that after the imports.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

STATES = 128
SAMPLES_OF_A_BLOCK = 2**14


def opened(kind: str, path: Path) -> Any:
    """Return the states in a file, not read yet."""
    if kind == "HDF5":
        import h5py

        return h5py.File(path)["states"]
    if kind == "zarr":
        import zarr

        return zarr.open_array(path, mode="r")
    import dask.array

    return dask.array.from_zarr(str(path))


def write(kind: str, path: Path, samples: int) -> None:
    """Write random states in blocks."""
    shape, block = (STATES, samples), (STATES, SAMPLES_OF_A_BLOCK)
    if kind == "HDF5":
        import h5py

        target = h5py.File(path, "w").create_dataset("states", shape, float, chunks=block)
    else:
        import zarr

        target = zarr.create_array(str(path), shape=shape, dtype=float, chunks=block, compressors=None)
    rng = np.random.default_rng(0)
    for first in range(0, samples, SAMPLES_OF_A_BLOCK):
        target[:, first : first + SAMPLES_OF_A_BLOCK] = rng.standard_normal(block)
    if kind == "HDF5":
        target.file.close()


def largest_memory() -> float:
    """Return the largest memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(kind: str, path: Path) -> tuple[float, float]:
    """Return the memory for one file, and the mean square of the states."""
    import hankelred

    states = opened(kind, path)
    before = largest_memory()
    estimator = hankelred.GramianEstimator(STATES)
    estimator.update(states)
    return largest_memory() - before, float(np.trace(estimator.gramian())) / STATES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0, help="size of the files in GiB")
    args = parser.parse_args()
    blocks = max(1, round(args.gib * 2**30 / 8 / STATES / SAMPLES_OF_A_BLOCK))
    samples = blocks * SAMPLES_OF_A_BLOCK
    print(f"{STATES} states, {samples} samples, {8 * STATES * samples / 1e6:.0f} MB")
    for kind in ("HDF5", "zarr", "dask"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "states"
            write(kind, path, samples)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                memory, power = process.submit(measure, kind, path).result()
        print(f"{kind}: {memory:.0f} MB; mean square of the states {power:.4f}", flush=True)


if __name__ == "__main__":
    main()
