"""Simulation of large sparse models by implicit steps, without a dense matrix.

In continuous time a step of length h is ``x(h) = R(h A) x(0)`` with a rational approximation R of the
exponential (`rational_exponential`), in partial fractions

    R(h A) x = sum_i w_i (z_i E - h A)^-1 E x,

so that a few factorizations serve all steps. The input is part of an augmented state: both holds are as
accurate as the rest.

- If the model is proved to have negative real poles only (A and E symmetric, -A and E positive definite), R
  is the near-best approximation on the negative real axis, whose error is 3.1e-14 at any length of a step.
- Otherwise R is a Pade approximation, and the number of steps per sample is doubled until the outputs agree.
  R damps what is faster than a step, which is right for poles that are damped, and wrong for others. Two runs
  that both damp an oscillation agree, so the response at frequencies beyond the steps must be small too,
  unless all poles are proved to be damped: in coordinates where E is the identity, the numerical range of A
  is in a sector about the negative real axis.

Sources: Gallopoulos and Saad, SIAM J. Sci. Stat. Comput. 13 (1992) 1236-1264; Crouzeix and Palencia, SIAM J.
Matrix Anal. Appl. 38 (2017) 649-655, for sectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from ..gramians.residual_bounds import (
    DissipativeBound,
    ResidualBound,
    SymmetricBound,
    check_descriptor,
    proven_bound,
)
from ..models.pencil import Pencil, Solver, SparsePencil
from ..models.sparse_model import SparseModel
from .rational_exponential import Fractions, chebyshev_fractions, pade_fractions

#: The outputs are accepted when doubling the number of steps changes them by less than this share.
ACCURACY = 1e-6
#: Differences below this share of ``|C| |x|`` are rounding.
ROUNDING = 1e4 * EPS
#: Largest number of steps per sample.
MAX_STEPS = 128
#: Angles, in radians per step, at which responses faster than the steps are looked for, and the largest share
#: of the output that they may have.
FAST_ANGLES = tuple(10.0 ** (k / 2) for k in range(2, 13))
FAST_SHARE = 1e-4
#: Number of terms of the series for parts that are slower than a frequency.
SERIES = 4
#: Slope of the sector that counts as damped: poles with a damping ratio of at least 0.24.
DAMPED_SLOPE = 4.0
#: States beyond this, for inputs of about one, are growing out of range; norms are of squares.
LARGEST = 1e150
_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True, eq=False)
class Run:
    """Outputs (samples, outputs, columns), the last states and, if requested, the states at each sample."""

    outputs: Array
    last: Array
    states: Array | None

    def scaled(self, factor: complex) -> Run:
        """Return the run from as many times the start and the input."""
        states = None if self.states is None else self.states * factor
        return Run(self.outputs * factor, self.last * factor, states)

    def plus(self, other: Run) -> Run:
        """Return the run from both starts and inputs together."""
        states = None if self.states is None or other.states is None else self.states + other.states
        return Run(self.outputs + other.outputs, self.last + other.last, states)


def run_implicit(
    model: SparseModel,
    start: Array,
    u: Array,
    interval: float | None,
    *,
    first_order_hold: bool = False,
    keep_states: bool = False,
    states_count: bool = True,
) -> Run:
    """Simulate from states `start`, (n, columns), which all have the input `u`, (m, samples).

    Parameters
    ----------
    interval : float or None
        Time between samples; None for a discrete model.
    states_count : bool
        Whether the states must be accurate too.

    Returns
    -------
    Run
        With a first-order hold the last states are those at the last sample, else one sample after it.

    Raises
    ------
    ConvergenceError
        The outputs still change at :data:`MAX_STEPS` steps per sample, or responses are faster than that.
    ModelError
        E is singular, and not by rows and columns of zeros.
    """
    pencil = _checked_pencil(model)
    steps = _Steps(pencil, interval)
    return _run(model, steps, start, u, first_order_hold, keep_states, states_count)


def _checked_pencil(model: SparseModel) -> Pencil:
    """Return the pencil of a model, whose E is not singular."""
    pencil = model.make_pencil(None)
    check_descriptor(pencil, discrete=model.is_discrete)
    return pencil


def _run(
    model: SparseModel,
    steps: _Steps,
    start: Array,
    u: Array,
    first_order_hold: bool = False,
    keep_states: bool = False,
    states_count: bool = True,
) -> Run:
    """Simulate as `run_implicit` does, with the steps of a pencil that is checked."""
    B = model.B
    direct = (model.D @ u).T[:, :, None]
    if steps.pencil.is_complex or not any(map(np.iscomplexobj, (B, start, u))):
        parts: list[tuple[complex, Array, Array, Array]] = [(1.0, B, u, start)]
    else:  # a real pencil, whose solvers are real
        both = np.concatenate([u.real, u.imag])
        parts = [
            (1.0, np.concatenate([B.real, -B.imag], axis=1), both, start.real),
            (1j, np.concatenate([B.imag, B.real], axis=1), both, start.imag),
        ]
    total = None
    for factor, inputs, signal, x in parts:
        # the model is linear: large inputs must not leave the range of double precision on the way
        size = max(float(np.abs(signal).max(initial=0.0)), float(np.abs(x).max(initial=0.0)))
        scale = float(np.exp2(np.floor(np.log2(size)))) if size > 0 else 1.0
        simulation = _Simulation(
            model, steps, inputs, signal / scale, first_order_hold, keep_states, states_count
        )
        run = simulation.converged(x / scale).scaled(factor * scale)
        total = run if total is None else total.plus(run)
    assert total is not None
    return Run(total.outputs + direct, total.last, total.states)


def sparse_impulse_response(model: SparseModel, count: int, interval: float | None) -> Array:
    """Return samples of the impulse response of a sparse model, (count, outputs, inputs)."""
    shape = (count, model.n_outputs, model.n_inputs)
    if count == 0:
        return np.zeros(shape)
    pencil = _checked_pencil(model)
    steps = _Steps(pencil, interval)
    u = np.zeros((model.n_inputs, count))
    solve = _mass_solver(pencil, discrete=interval is None)
    start = pencil.back(_of_real_matrix(solve, pencil.into(model.B), pencil))
    if interval is None:
        after = _run(model, steps, start, u[:, 1:]).outputs
        return np.concatenate([model.D[None], after])
    return _run(model, steps, start, u, states_count=False).outputs


def _mass_solver(pencil: Pencil, *, discrete: bool) -> Solver:
    """Return the solver of E; in discrete time the pencil is (A - E, A + E)."""
    if not discrete:
        return pencil.mass()
    solve = pencil.shifted(-1.0)  # A - E - (A + E) = -2 E
    return lambda b, *, transposed=False: -2 * solve(b, transposed=transposed)


def _of_real_matrix(solve: Solver, b: Array, pencil: Pencil) -> Array:
    """Solve with a right side that may be complex where the pencil is real."""
    if np.iscomplexobj(b) and not pencil.is_complex:
        return np.asarray(solve(np.ascontiguousarray(b.real)) + 1j * solve(np.ascontiguousarray(b.imag)))
    return solve(b)


class _Simulation:
    """What runs with different numbers of steps have in common; outputs are those without D."""

    def __init__(
        self,
        model: SparseModel,
        steps: _Steps,
        B: Array,
        u: Array,
        first_order_hold: bool,
        keep_states: bool,
        states_count: bool,
    ):
        self.pencil, self.steps, self.u = steps.pencil, steps, u
        self.B, self.C = self.pencil.into(B), self.pencil.into(model.C.T).T
        self.first_order_hold, self.keep_states = first_order_hold, keep_states
        self.states_count = states_count

    def converged(self, start: Array) -> Run:
        """Return the run with as many steps as it needs."""
        coarse, _ = self.run(start, 1)
        interval = self.steps.interval
        if interval is None or self.steps.are_exact:
            return coarse
        steps = 2
        while True:
            fine, largest = self.run(start, steps)
            if not np.all(np.isfinite(fine.last)):
                return fine  # of an unstable model; reported where the range of outputs and states is checked
            rounding = ROUNDING * (np.abs(self.C) @ largest)
            of_states = largest.max(axis=0, initial=0.0)
            change, fast = self._change(coarse, fine, rounding, of_states), None
            if change <= 1:
                fast = 0.0
                if not self.steps.are_damped:
                    fast = self._fast_share(start, interval / steps, fine, rounding, of_states)
                if fast <= FAST_SHARE:
                    return fine
            if steps >= MAX_STEPS:
                raise ConvergenceError(_reason(steps, interval, change, fast))
            coarse, steps = fine, 2 * steps

    def _change(self, coarse: Run, fine: Run, rounding: Array, largest: Array) -> float:
        """Return the largest change of an output or of the last states, as a multiple of the accepted one."""
        accepted = ACCURACY * np.abs(fine.outputs).max(axis=0, initial=0.0) + rounding
        change = np.abs(fine.outputs - coarse.outputs).max(axis=0, initial=0.0)
        ratio = float((change / np.maximum(accepted, _TINY)).max(initial=0.0))
        if not self.states_count:
            return ratio
        change = np.abs(fine.last - coarse.last).max(axis=0, initial=0.0)
        return max(ratio, float((change / np.maximum(ACCURACY * largest, _TINY)).max(initial=0.0)))

    def _fast_share(self, start: Array, step: float, run: Run, rounding: Array, largest: Array) -> float:
        """Return an estimate of the amplitudes beyond the steps, as a share of an output or of the states.

        To a start x0, ``Z = i w (i w E - A)^-1 E x0`` is large where a pole is near i w; parts faster than w
        vanish in it, and slower ones are x0 + (E^-1 A / i w) x0 + ... Hence Z, or its difference from some
        terms of this series, is small unless there are parts of a frequency near w or beyond. A jump of the
        input is the start E^-1 B, whose oscillations of w have an amplitude of 1 / w.
        """
        jumps = np.abs(np.diff(self.u, axis=1, prepend=0)).max(axis=1, initial=0.0)
        x0 = self.pencil.into(start)
        columns = x0.shape[1]
        mass = self.pencil.mass()
        terms = [np.concatenate([x0, _of_real_matrix(mass, self.B * jumps, self.pencil)], axis=1)]
        source = self.pencil.E(terms[0]).astype(complex)
        for _ in range(SERIES - 1):
            terms.append(_of_real_matrix(mass, self.pencil.A(terms[-1]), self.pencil))
        size = np.abs(run.outputs).max(axis=0, initial=0.0) + rounding
        share = 0.0
        for w in np.array(FAST_ANGLES) / step:
            rest = -1j * w * self.pencil.shifted(-1j * w)(source)
            rests = [rest]
            for k, term in enumerate(terms):
                rests.append(rests[-1] - term / (1j * w) ** k)
            for M, total in ((self.C, size), *([(None, largest)] if self.states_count else [])):
                amplitude = np.min([np.abs(X if M is None else M @ X) for X in rests], axis=0)
                amplitude = amplitude[:, :columns] + amplitude[:, columns:].sum(axis=1, keepdims=True) / w
                share = max(share, float((amplitude / np.maximum(total, _TINY)).max(initial=0.0)))
            if share > FAST_SHARE:
                break
        return share

    def run(self, start: Array, steps: int) -> tuple[Run, Array]:
        """Return the run with this many steps per sample, and the largest absolute value of each state."""
        step = self.steps.of_number(steps)
        x = self.pencil.into(start)
        samples = self.u.shape[1]
        outputs, states = [], []
        largest = np.abs(x)
        for k in range(samples):
            outputs.append(
                self.C @ x if np.all(np.isfinite(x)) else np.full((len(self.C), x.shape[1]), np.inf)
            )
            if self.keep_states:
                states.append(self.pencil.back(x))
            if self.first_order_hold and k == samples - 1:
                break
            for drive, slope in self._drives(k, steps):
                # out of range nothing is solved: the solvers would take the pencil for singular
                if np.abs(x).max(initial=0.0) < LARGEST:
                    x = step(x, drive, slope)
            if np.abs(x).max(initial=0.0) >= LARGEST:
                x = np.full_like(x, np.inf)
            largest = np.maximum(largest, np.abs(x))
        kept = np.array(states).reshape(samples, *x.shape) if self.keep_states else None
        shape = (samples, self.C.shape[0], x.shape[1])
        return Run(np.array(outputs).reshape(shape), self.pencil.back(x), kept), largest

    def _drives(self, k: int, steps: int) -> Iterator[tuple[Array, Array]]:
        """Return B u at the start of each step after sample k, and its change until the end of the step."""
        now = (self.B @ self.u[:, k])[:, None]
        change = np.zeros_like(now)
        if self.first_order_hold:
            change = (self.B @ (self.u[:, k + 1] - self.u[:, k]))[:, None] / steps
        for i in range(steps):
            yield now + i * change, change


class _Steps:
    """The steps of a pencil, each made once for all runs, and what is proved of its poles.

    The interval between samples is None in discrete time.
    """

    def __init__(self, pencil: Pencil, interval: float | None):
        self.pencil, self.interval = pencil, interval
        self._made: dict[int, _ContinuousStep | _DiscreteStep] = {}

    @cached_property
    def _bound(self) -> ResidualBound | None:
        return proven_bound(self.pencil, discrete=False)

    @property
    def are_exact(self) -> bool:
        """Whether one step per sample is as accurate as any number: all poles are negative and real."""
        return isinstance(self._bound, SymmetricBound)

    @cached_property
    def are_damped(self) -> bool:
        """Whether all poles are proved to be damped."""
        return isinstance(self._bound, DissipativeBound) and _is_in_sector(self.pencil)

    def of_number(self, steps: int) -> _ContinuousStep | _DiscreteStep:
        """Return the step of which this many lead from sample to sample."""
        if steps not in self._made:
            self._made[steps] = self._make(steps)
        return self._made[steps]

    def _make(self, steps: int) -> _ContinuousStep | _DiscreteStep:
        if self.interval is None:
            return _DiscreteStep(self.pencil)
        fractions = chebyshev_fractions() if self.are_exact else pade_fractions()
        return _ContinuousStep(self.pencil, self.interval / steps, fractions)


def _reason(steps: int, interval: float, change: float, fast: float | None) -> str:
    """Return why a run was not accepted."""
    advice = "give a smaller step, or reduce the model first and simulate the reduced one"
    if fast is None:
        return (
            f"with {steps} implicit steps per sample, an output or a state still changes by "
            f"{change * ACCURACY:.1e} of its size when the steps are halved, and {ACCURACY:.0e} is accepted: "
            f"{advice}"
        )
    return (
        f"the model responds up to {fast:.1e} of its output or states at frequencies beyond {steps} implicit "
        f"steps per sample ({FAST_ANGLES[0] * steps / interval:.3g} rad/s), and {FAST_SHARE:.0e} is "
        f"accepted, as oscillations of lightly damped poles there would be lost: {advice}"
    )


def _is_in_sector(pencil: Pencil) -> bool:
    """Tell whether the numerical range of A is in the sector of damped poles; its Hermitian part is negative.

    The slope of the sector is the largest eigenvalue of (A - A^H) / 2i relative to -(A + A^H) / 2.
    """
    import scipy.sparse.linalg as spl

    assert isinstance(pencil, SparsePencil)
    A = pencil.A_matrix
    decay, rotation = -(A + A.conj().T) / 2, (A - A.conj().T) / 2j
    try:
        solve = pencil.solver(decay.tocsc())
        inverse = spl.LinearOperator(
            A.shape, matvec=lambda b: _of_real_matrix(solve, b.reshape(-1, 1), pencil)[:, 0], dtype=complex
        )
        slope = spl.eigsh(
            rotation.astype(complex),
            k=1,
            M=decay.astype(complex),
            Minv=inverse,
            which="LM",
            tol=1e-2,
            v0=np.ones(A.shape[0], dtype=complex),
            return_eigenvectors=False,
        )
    except (ModelError, ConvergenceError, RuntimeError):  # of ARPACK
        return False
    return bool(np.abs(slope).max() * 1.1 <= DAMPED_SLOPE)


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
        out = np.zeros(x.shape, dtype=complex if self._pencil.is_complex else float)
        for z, weight, solve in self._terms:
            term = image + self._h * (drive + slope / z) / z
            if self._pencil.is_complex:
                out += weight * solve(term.astype(complex))
            elif z.imag == 0:
                out += weight.real * solve(np.ascontiguousarray(term.real))
            else:
                out += (weight * solve(term)).real
        return out


class _DiscreteStep:
    """One step of ``E x[k+1] = A x[k] + b``, from the pencil (A - E, A + E)."""

    def __init__(self, pencil: Pencil):
        self._pencil, self._solve = pencil, _mass_solver(pencil, discrete=True)

    def __call__(self, x: Array, drive: Array, slope: Array) -> Array:
        return self._solve((self._pencil.A(x) + self._pencil.E(x)) / 2 + drive)
