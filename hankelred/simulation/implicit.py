"""Simulation of large sparse models by implicit steps, without a dense matrix.

In continuous time a step of length h is ``x(h) = R(h A) x(0)`` with a rational approximation R of the
exponential (`rational_exponential`), in partial fractions

    R(h A) x = sum_i w_i (z_i E - h A)^-1 E x,

so that a few factorizations serve all steps. The input is part of an augmented state: both holds are as
accurate as the rest.

- If the model is proved to have negative real poles only (A and E symmetric, -A and E positive definite), R
  is the near-best approximation on the negative real axis, whose error is 4e-14 at any length of a step.
- Otherwise R is a Pade approximation, and the number of steps per sample is doubled until the outputs agree.

Source: Gallopoulos and Saad, SIAM J. Sci. Stat. Comput. 13 (1992) 1236-1264.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ReductionWarning
from ..gramians.residual_bounds import SymmetricBound, proven_bound
from ..models.pencil import Pencil, Solver
from ..models.sparse_model import SparseModel
from .rational_exponential import Fractions, chebyshev_fractions, pade_fractions

#: The outputs are accepted when doubling the number of steps changes them by less than this share.
ACCURACY = 1e-6
#: Differences below this share of ``|C| |x|`` are rounding.
ROUNDING = 1e4 * EPS
#: Largest number of steps per sample.
MAX_STEPS = 128
#: Frequencies, times the length of a step, at which responses faster than the steps are looked for, and the
#: share of the output above which they are reported.
FAST_FREQUENCIES = (1e3, 1e4, 1e5, 1e6)
FAST_SHARE = 1e-5


def sparse_impulse_response(model: SparseModel, count: int, interval: float | None) -> Array:
    """Return samples of the impulse response of a sparse model, (count, outputs, inputs)."""
    pencil = model.make_pencil(None)
    u = np.zeros((model.n_inputs, count))
    if interval is None:
        u = u[:, : max(count - 1, 0)]
        after = pencil.back(_DiscreteStep(pencil)(np.zeros((pencil.n, model.n_inputs)), pencil.into(model.B)))
        return np.concatenate([model.D[None], run_implicit(model, after, u, None).outputs])[:count]
    start = pencil.back(pencil.mass()(pencil.into(model.B)))
    return run_implicit(model, start, u, interval).outputs


@dataclass(frozen=True, eq=False)
class Run:
    """Outputs (samples, outputs, columns), the last states and, if requested, the states at each sample."""

    outputs: Array
    last: Array
    states: Array | None


def run_implicit(
    model: SparseModel,
    start: Array,
    u: Array,
    interval: float | None,
    *,
    first_order_hold: bool = False,
    keep_states: bool = False,
) -> Run:
    """Simulate from states `start`, (n, columns), which all have the input `u`, (m, samples).

    Parameters
    ----------
    interval : float or None
        Time between samples; None for a discrete model.

    Returns
    -------
    Run
        With a first-order hold the last states are those at the last sample, else one sample after it.

    Raises
    ------
    ConvergenceError
        The outputs still change at :data:`MAX_STEPS` steps per sample.
    """
    pencil = model.make_pencil(None)
    if (np.iscomplexobj(u) or np.iscomplexobj(start)) and not pencil.is_complex:
        real, imaginary = (
            run_implicit(model, x, v, interval, first_order_hold=first_order_hold, keep_states=keep_states)
            for x, v in ((start.real, u.real), (start.imag, u.imag))
        )
        states = None
        if real.states is not None and imaginary.states is not None:
            states = real.states + 1j * imaginary.states
        return Run(real.outputs + 1j * imaginary.outputs, real.last + 1j * imaginary.last, states)
    simulation = _Simulation(model, pencil, start, u, first_order_hold, keep_states)
    if interval is None:
        return simulation.run(_DiscreteStep(pencil))[0]
    if isinstance(proven_bound(pencil, discrete=False), SymmetricBound):
        return simulation.run(_ContinuousStep(pencil, interval, chebyshev_fractions()))[0]
    fractions = pade_fractions()
    coarse, _ = simulation.run(_ContinuousStep(pencil, interval, fractions))
    steps = 2
    while True:
        fine, rounding = simulation.run(_ContinuousStep(pencil, interval / steps, fractions), steps)
        change = np.abs(fine.outputs - coarse.outputs).max(axis=(0, 2), initial=0.0)
        size = np.abs(fine.outputs).max(axis=(0, 2), initial=0.0)
        if np.all(change <= ACCURACY * size + ROUNDING * rounding):
            break
        if steps >= MAX_STEPS or not np.all(np.isfinite(fine.outputs)):
            i = int(np.argmax(change / np.maximum(size, np.finfo(float).tiny)))
            raise ConvergenceError(
                f"with {steps} implicit steps per sample, output {i} still changes by {change[i]:.1e} when "
                f"the steps are halved, and its largest value is {size[i]:.1e}: give a smaller step, or "
                "reduce the model first and simulate the reduced one"
            )
        coarse, steps = fine, 2 * steps
    simulation.warn_of_fast_responses(interval / steps, size)
    return fine


class _Simulation:
    """What runs with different numbers of steps have in common."""

    def __init__(
        self,
        model: SparseModel,
        pencil: Pencil,
        start: Array,
        u: Array,
        first_order_hold: bool,
        keep_states: bool,
    ):
        self.pencil, self.start, self.u = pencil, pencil.into(start), u
        self.B, self.C, self.D = pencil.into(model.B), pencil.into(model.C.T).T, model.D
        self.first_order_hold, self.keep_states = first_order_hold, keep_states

    def run(self, step: _ContinuousStep | _DiscreteStep, steps: int = 1) -> tuple[Run, Array]:
        """Return the run, and for each output the size of the terms that its rounding is relative to."""
        x = self.start
        samples = self.u.shape[1]
        outputs, states = [], []
        largest = np.abs(x).max(axis=1)
        for k in range(samples):
            outputs.append(self.C @ x + (self.D @ self.u[:, k])[:, None])
            if self.keep_states:
                states.append(self.pencil.back(x))
            if self.first_order_hold and k == samples - 1:
                break
            for drive, slope in self._drives(k, steps):
                x = step(x, drive, slope)
            largest = np.maximum(largest, np.abs(x).max(axis=1))
        shape = (samples, self.C.shape[0], x.shape[1])
        kept = np.array(states).reshape(samples, *x.shape) if self.keep_states else None
        run = Run(np.array(outputs).reshape(shape), self.pencil.back(x), kept)
        return run, np.abs(self.C) @ largest

    def _drives(self, k: int, steps: int) -> Iterator[tuple[Array, Array]]:
        """Return B u at the start of each step after sample k, and its change until the end of the step."""
        now = (self.B @ self.u[:, k])[:, None]
        change = np.zeros_like(now)
        if self.first_order_hold:
            change = (self.B @ (self.u[:, k + 1] - self.u[:, k]))[:, None] / steps
        for i in range(steps):
            yield now + i * change, change

    def warn_of_fast_responses(self, step: float, size: Array) -> None:
        """Warn of responses that would be missing from the outputs if they are those of undamped poles."""
        jumps = np.abs(np.diff(self.u, axis=1, prepend=0)).max(axis=1, initial=0.0)
        if self.first_order_hold:
            jumps = np.abs(self.u[:, 0]) if self.u.size else jumps
        sources = np.concatenate([self.B * jumps, self.pencil.E(self.start)], axis=1)
        for frequency in FAST_FREQUENCIES:
            solve = self.pencil.shifted(-1j * frequency / step)
            response = np.abs(self.C @ solve(sources.astype(complex))).max(axis=1, initial=0.0)
            share = float(np.max(response / np.maximum(size, np.finfo(float).tiny), initial=0.0))
            if share > FAST_SHARE:
                warnings.warn(
                    f"the model responds up to {share:.1e} of its output at {frequency / step:.3g} rad/s, "
                    f"and the steps of {step:.3g} s do not resolve that: it is taken to decay within a step, "
                    "so oscillations of lightly damped poles there would be missing; compare with a smaller "
                    "step",
                    ReductionWarning,
                    stacklevel=5,
                )
                return


class _ContinuousStep:
    """One step of ``E x' = A x + b + c t / h`` with ``drive`` b and ``slope`` c."""

    def __init__(self, pencil: Pencil, h: float, fractions: Fractions):
        self._pencil, self._h = pencil, h
        poles, weights = fractions
        if not pencil.is_complex:  # the terms of a conjugate pair are conjugate
            weights = np.where(poles.imag > 0, 2 * weights, weights)
            poles, weights = poles[poles.imag >= 0], weights[poles.imag >= 0]
        self._terms: list[tuple[complex, complex, Solver]] = [
            (z, -w / h, pencil.shifted(-z / h)) for z, w in zip(poles.tolist(), weights.tolist(), strict=True)
        ]

    def __call__(self, x: Array, drive: Array, slope: Array) -> Array:
        image = self._pencil.E(x)
        out = np.zeros(x.shape, dtype=np.result_type(x, drive, complex if self._pencil.is_complex else float))
        for z, weight, solve in self._terms:
            term = image + self._h * (drive + slope / z) / z
            if self._pencil.is_complex:
                out += weight * solve(term)
            elif z.imag == 0:
                out += weight.real * solve(np.ascontiguousarray(term.real))
            else:
                out += (weight * solve(term)).real
        return out


class _DiscreteStep:
    """One step of ``E x[k+1] = A x[k] + b``, from the pencil (A - E, A + E)."""

    def __init__(self, pencil: Pencil):
        self._pencil, self._solve = pencil, pencil.shifted(-1.0)  # A - E - (A + E) = -2 E

    def __call__(self, x: Array, drive: Array, slope: float | Array = 0.0) -> Array:
        return -2 * self._solve((self._pencil.A(x) + self._pencil.E(x)) / 2 + drive)
