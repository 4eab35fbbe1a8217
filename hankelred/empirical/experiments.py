"""Running a simulator many times: sizes, checks, batches, processes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .._util.arrays import Array
from .._util.checks import first_index
from .._util.progress import on_terminal, with_progress_bar
from ..errors import ModelError
from .backends import use_backend
from .checkpoint import Checkpoint

Simulator: TypeAlias = Callable[[Array, Array], tuple[Any, Any]]

_RHS_HINT = "; of a right-hand side f(x, u), simulator_from_rhs makes a simulator"
#: Largest sizes tried where the user gives none.
_MAX_STATES, _MAX_INPUTS = 256, 16
#: A progress bar is shown where the experiments are expected to take longer than this (s).
_PROGRESS_AFTER = 3.0
#: With a checkpoint, the experiments are written after about this time (s), of at most as many bytes.
_ROUND_SECONDS, _ROUND_BYTES = 30.0, 2**26


@dataclass(frozen=True)
class SimulatorRun:
    """One run from ``x0``: the steady input with ``waveform`` added on one input.

    Without a channel it is added on all inputs, each of which has a row of its own where it is (m, T).
    """

    name: str
    x0: Array
    steady_input: Array
    waveform: Array
    channel: int | None = None

    @property
    def samples(self) -> int:
        """T, the number of samples."""
        return int(self.waveform.shape[-1])

    def inputs(self) -> Array:
        """Return u (m, T)."""
        u = np.repeat(self.steady_input[:, None], self.samples, axis=1)
        if self.channel is None:
            u += self.waveform
        else:
            u[self.channel] += self.waveform
        return u


@dataclass(frozen=True)
class Runner:
    """A simulator and how to run it.

    With ``batch_size`` None the callable takes one experiment at a time; with a number it takes a stack
    of up to that many.
    """

    simulate: Simulator
    batch_size: int | None = None
    n_jobs: int | None = None
    progress: bool | None = None
    backend: Any = None
    checkpoint: Checkpoint | None = None

    def run(self, experiment: SimulatorRun) -> tuple[Array, Array]:
        """Run one experiment and return x (n, T) and y (p, T)."""
        both = _run_batch(self.simulate, [experiment], self.batch_size is not None, "both", None)[0]
        return both[: experiment.x0.size], both[experiment.x0.size :]

    def run_all(
        self,
        experiments: Sequence[SimulatorRun],
        witnesses: Sequence[SimulatorRun],
        trajectory: str,
        n_outputs: int,
        seconds_each: float,
    ) -> list[Array]:
        """Run all experiments, in order, and return the "states" or the "outputs" of each.

        The first of the witnesses for which the simulator works is run with a checkpoint only, which
        recognizes the simulator by it.
        """
        from joblib import effective_n_jobs

        results: list[Array] = []
        part = None
        with use_backend(self.backend, self.n_jobs):
            if self.checkpoint is not None:
                runs = ((run.name, run.x0, run.inputs()) for run in experiments)
                witness = self._run_witness(witnesses, trajectory, n_outputs)
                part = self.checkpoint.part(trajectory, n_outputs, runs, len(experiments), witness)
                results = part.read()
            size = self.batch_size or 1
            batches = [experiments[i : i + size] for i in range(len(results), len(experiments), size)]
            workers = effective_n_jobs(self.n_jobs)
            # The bar is shown only for long computations, which then run in rounds of a few tasks each: not
            # every joblib backend (Dask's does not) can return results one by one.
            shown = self.progress
            if shown is None:
                shown = on_terminal() and seconds_each * len(experiments) / workers > _PROGRESS_AFTER
            in_round = len(batches)
            if part is not None:
                in_round = _batches_in_round(batches, workers, seconds_each, n_outputs)
            if shown:
                in_round = min(in_round, 2 * workers)
            for batches_of_round in with_progress_bar(
                _rounds(batches, in_round), f"Experiments ({trajectory})", shown, len(batches), len
            ):
                responses = self._run_round(batches_of_round, trajectory, n_outputs, stacklevel=6)
                if part is not None:
                    part.append(len(results), responses)
                results.extend(responses)
        return results

    def _run_witness(self, witnesses: Sequence[SimulatorRun], trajectory: str, n_outputs: int) -> Array:
        """Return the response to the first of these runs for which the simulator works."""
        for last, witness in enumerate(witnesses, start=1 - len(witnesses)):
            try:
                return self._run_round([[witness]], trajectory, n_outputs, stacklevel=7)[0]
            except ModelError:
                if last == 0:
                    raise
        raise AssertionError

    def _run_round(
        self,
        batches: Sequence[Sequence[SimulatorRun]],
        trajectory: str,
        n_outputs: int,
        *,
        stacklevel: int,
    ) -> list[Array]:
        """Run some batches in parallel; once more, with a warning, where a worker process is lost.

        The warning is at `stacklevel`, that of the caller of empirical_gramians.
        """
        from joblib import Parallel, delayed

        for last_attempt in (False, True):
            tasks = [
                delayed(_run_batch)(self.simulate, batch, self.batch_size is not None, trajectory, n_outputs)
                for batch in batches
            ]
            try:
                batches_of_responses = Parallel(n_jobs=self.n_jobs)(tasks)
                return [response for responses in batches_of_responses for response in responses]
            except BrokenExecutor as error:
                if last_attempt:
                    kept = "; those of earlier rounds are in the checkpoint" if self.checkpoint else ""
                    raise ModelError(
                        "a worker process ended twice while it ran the simulator (killed, out of memory, or "
                        f"crashed): the experiments of this round are lost{kept}"
                    ) from error
                warnings.warn(
                    "a worker process ended while it ran the simulator; its experiments are run again",
                    RuntimeWarning,
                    stacklevel=stacklevel,
                )
        raise AssertionError


def _batches_in_round(
    batches: Sequence[Sequence[SimulatorRun]], workers: int, seconds_each: float, n_outputs: int
) -> int:
    """Return how many batches take about _ROUND_SECONDS, within the bytes of a file."""
    if not batches:
        return 1
    first = batches[0][0]
    rows = max(first.x0.size, n_outputs)
    most = max(1, _ROUND_BYTES // max(1, rows * first.samples * 8 * len(batches[0])))
    seconds = max(seconds_each, 1e-6) * len(batches[0])
    return min(most, workers * max(1, round(_ROUND_SECONDS / seconds)))


def _rounds(batches: list[Sequence[SimulatorRun]], size: int) -> list[list[Sequence[SimulatorRun]]]:
    return [batches[i : i + size] for i in range(0, len(batches), max(1, size))]


def _run_batch(
    simulate: Simulator,
    experiments: Sequence[SimulatorRun],
    batched: bool,
    trajectory: str,
    n_outputs: int | None,
) -> list[Array]:
    # A module-level function, not a method, so that every joblib backend can pickle it.
    names = " to ".join(dict.fromkeys(experiments[i].name for i in (0, -1)))
    x0s = [experiment.x0.copy() for experiment in experiments]
    us = [experiment.inputs() for experiment in experiments]
    try:
        returned = simulate(np.stack(x0s), np.stack(us)) if batched else simulate(x0s[0], us[0])
    except Exception as error:
        # f(x, u), which takes the input of one sample, fails on that of all of them
        hint = _RHS_HINT if names == "unperturbed" and not isinstance(error, ModelError) else ""
        raise ModelError(
            f"the simulator failed in experiment '{names}': {type(error).__name__}: {error}{hint}"
        ) from error
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ModelError(
            f"in experiment '{names}' the simulator returned a {type(returned).__name__}; return two arrays, "
            f"the states x (n, T) and the outputs y (p, T){_RHS_HINT}"
        )
    x, y = returned
    if not batched:
        x, y = [x], [y]
    if len(x) != len(experiments) or len(y) != len(experiments):
        raise ModelError(
            f"given {len(experiments)} experiments in a batch, the simulator returned {len(x)} state and "
            f"{len(y)} output trajectories; return x (batch, n, T) and y (batch, p, T), or leave out "
            "batch_size"
        )
    results = []
    for experiment, states, outputs in zip(experiments, x, y, strict=True):
        states, outputs = _checked(experiment, states, outputs, n_outputs)
        parts = {"states": [states], "outputs": [outputs], "both": [states, outputs]}[trajectory]
        results.append(np.concatenate(parts))
    return results


def _checked(experiment: SimulatorRun, x: Any, y: Any, n_outputs: int | None) -> tuple[Array, Array]:
    x, y = np.asarray(x), np.asarray(y)
    n, samples = experiment.x0.size, experiment.samples
    where = f"in experiment '{experiment.name}' the simulator returned"
    if x.ndim == 1 and n == 1:
        x = x[None, :]
    if y.ndim == 1 and n_outputs in (None, 1):
        y = y[None, :]
    if x.shape != (n, samples):
        raise ModelError(f"{where} states of shape {x.shape}; expected (n, T) = {(n, samples)}, time last")
    expected = (y.shape[0] if n_outputs is None and y.ndim == 2 else n_outputs, samples)
    if y.shape != expected:
        raise ModelError(f"{where} outputs of shape {y.shape}; expected (p, T) = {expected}, time last")
    for values, what in ((x, "state"), (y, "output")):
        if not np.issubdtype(values.dtype, np.number):
            raise ModelError(f"{where} a {what} array of type {values.dtype}; expected numbers")
        at = first_index(~np.isfinite(values))
        if at is not None:
            raise ModelError(
                f"{where} {values[at]} for {what} {at[0] + 1} at sample {at[1]}; use smaller scales "
                "or a smaller step inside the simulator, or check that it is stable"
            )
    size = max(float(np.abs(x).max(initial=0.0)), float(np.abs(experiment.x0).max(initial=0.0)))
    if np.abs(x[:, 0] - experiment.x0).max(initial=0.0) > 1e-6 * size:
        raise ModelError(
            f"{where} a trajectory that does not start from x0; x[:, 0] must be x0, and x[:, k] the state "
            "before input sample k acts"
        )
    return x, y


def timed(runner: Runner, experiment: SimulatorRun) -> tuple[Array, Array, float]:
    """Run one experiment and return x, y and how long it took (s)."""
    start = time.perf_counter()
    x, y = runner.run(experiment)
    return x, y, time.perf_counter() - start


def find_sizes(
    simulate: Simulator, samples: int, n_states: int | None, n_inputs: int | None, batched: bool
) -> tuple[int, int]:
    """Find n and m by calling the simulator with zeros of growing size until the states have the right shape.

    Raises a ModelError where no size, or more than one, fits: the user then has to pass the sizes.
    """

    def fits(n: int, m: int) -> bool:
        x0, u = np.zeros(n), np.zeros((m, samples))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                x, _ = simulate(x0[None], u[None]) if batched else simulate(x0, u)
                x = np.asarray(x)[0] if batched else np.asarray(x)
                return x.shape == (n, samples) or (n == 1 and x.shape == (samples,))
        except Exception:
            return False  # a simulator may raise anything on a wrong size

    ns = range(1, _MAX_STATES + 1) if n_states is None else [n_states]
    ms = range(1, _MAX_INPUTS + 1) if n_inputs is None else [n_inputs]
    sizes = next(((n, m) for m in ms for n in ns if fits(n, m)), None)
    if sizes is None:
        raise ModelError(
            "cannot find the sizes of the simulator: for no x0 (n,) and u (m, T) of zeros did it return "
            f"states (n, T); pass n_states= and n_inputs={_RHS_HINT}"
        )
    n, m = sizes
    # Size 1 may fit by broadcasting alone; then some other size fits too. (A simulator that reads only
    # u[0] fits m = 1, 2, 3, ... and has one input.)
    if n == 1 and any(fits(other, m) for other in ns if other > 1):
        raise ModelError("the simulator accepts states of any size; pass n_states=")
    if m == 1 and n_inputs is None and not fits(n, 2) and any(fits(n, other) for other in ms if other > 2):
        raise ModelError("the simulator accepts several numbers of inputs; pass n_inputs=")
    return n, m
