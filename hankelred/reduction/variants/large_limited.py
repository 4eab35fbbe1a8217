"""Frequency-limited and time-limited balancing of large sparse models, in two levels.

The intermediate model of plain balancing resolves what matters on the whole frequency axis. It is extended by
the states that matter in the region: those of the response (s E - A)^-1 B and of its dual on a line in the
complex plane, with one sparse factorization for each node of a quadrature rule. For bands of frequencies the
line is the imaginary axis, so that these are factors of the frequency-limited Gramians. For a horizon T it is
Re s = 1 / T: by Parseval's theorem, this is the Gramian of the response times exp(-t / T), which is larger
than exp(-1) up to the horizon and negligible long after it. In discrete time the line is a circle.

The extended intermediate model, of one or two hundred states, is then reduced like any other model.

Sources: Benner, Kuerschner and Saak, SIAM J. Sci. Comput. 38 (2016); Kuerschner, Adv. Comput. Math. 44
(2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import trapezoid

from ..._util.arrays import EPS, Array
from ..._util.progress import on_terminal, with_status_line
from ...errors import ConvergenceError
from ...gramians.dual_adi import MANY_COLUMNS
from ...gramians.limited import Bands, band_nodes, whole_axis
from ...gramians.low_rank import CHEAP_STATES, SparseProblem
from ...gramians.smith import compress
from ...models.linear_model import Dimensions
from ..intermediate import IntermediateModel, resolved_states
from ..region import Region, checked_bands, checked_horizon
from ..two_level import LARGE_REDUCTION_METHODS, TwoLevel, factored_intermediate
from .restricted import Restricted, band_pairs, horizon_pairs

#: Factorizations of a quadrature rule above which the region is refused.
MAX_NODES = 2000
#: Number of frequencies between the nodes at which the intermediate model is compared with the large one.
CHECKS = 8


class LargeRestricted(TwoLevel, Restricted):
    """Truncation of a large model by limited Gramians, compared with plain truncation."""

    def __init__(self, method: str, intermediate: IntermediateModel, region: Region):
        model = intermediate.model
        self.intermediate, self.distance = _extended(intermediate, region)
        factored = factored_intermediate(self.intermediate)
        pairs = band_pairs if region.bands is not None else horizon_pairs
        Restricted.__init__(
            self,
            method,
            self.intermediate.model,
            factored,
            pairs(factored, region, discrete=model.is_discrete),
            region,
            "low_rank",
        )
        self._intermediate_values = self.hankel_singular_values
        self.residual = intermediate.factors.residual
        accuracy, size = intermediate.factors.accuracy, self.size()
        if self.distance > accuracy * size:
            raise ConvergenceError(
                f"in the region, the large model and its intermediate model differ by {self.distance:.1e}, "
                f"and the full model has {size:.1e} there; {accuracy:.1e} of it was requested: request a "
                "higher accuracy (accuracy=), choose another region, or use solver='dense'"
            )

    @property
    def kind(self) -> str:
        """Always "estimate": nothing is proved about limited Gramians."""
        return "estimate"

    def level(self, order: int) -> float:
        """Return the measured error in the region, plus that of the intermediate model there."""
        return super().level(order) + self.distance


def region_of(model: Dimensions, *, band: Any = None, horizon: Any = None) -> Region:
    """Return the region of a band or a horizon, checked."""
    return Region(
        bands=None if band is None else checked_bands(band, model),
        horizon=None if horizon is None else checked_horizon(horizon, model),
    )


def _limited(method: str) -> Callable[..., LargeRestricted]:
    def make(intermediate: IntermediateModel, **options: Any) -> LargeRestricted:
        return LargeRestricted(method, intermediate, region_of(intermediate.model, **options))

    return make


#: All methods for large models by their names; those for dense models are in `REDUCTION_METHODS`.
LARGE_METHODS: dict[str, Callable[..., TwoLevel]] = {
    **LARGE_REDUCTION_METHODS,
    "frequency_limited": _limited("frequency_limited"),
    "time_limited": _limited("time_limited"),
}


class _Line:
    """Responses of a large model, without its unstable part, on a line in the complex plane."""

    def __init__(self, intermediate: IntermediateModel, decay: float):
        self._problem: SparseProblem = intermediate.factors.problem
        self._decay, self._discrete = decay, intermediate.large.is_discrete
        self.B, self.C = self._problem.input_output_matrices
        pencil = self._problem.pencil
        self.is_real = not (pencil.is_complex or np.iscomplexobj(self.B) or np.iscomplexobj(self.C))

    def points(self, frequencies: Array) -> Array:
        """Return the points of the line, of the unit circle in discrete time, at these frequencies."""
        s = self._decay + 1j * frequencies
        return np.exp(s) if self._discrete else s

    def relative_to_line(self, poles: Array) -> Array:
        """Return the poles relative to the line, which becomes the stability boundary."""
        return poles * math.exp(-self._decay) if self._discrete else poles - self._decay

    def states(self, point: complex, *, dual: bool = False) -> tuple[Array, Array]:
        """Return (s E - A)^-1 B and, if requested, (s E - A)^-H C^H, with one factorization."""
        shift, scale = ((point - 1) / (point + 1), 2 / (point + 1)) if self._discrete else (point, 1.0)
        solve = self._problem.pencil.shifted(-shift)
        X = -scale * solve(self.B.astype(complex))
        if not dual:
            return X, X[:, :0]
        return X, (-scale * solve(self.C.T.astype(complex), transposed=True)).conj()

    def factors(self, frequencies: Array, weights: Array, visible: bool) -> tuple[Array, Array]:
        """Return factors of both Gramians of the line by a quadrature rule."""
        if not self.is_real:
            frequencies, weights = np.concatenate([frequencies, -frequencies]), np.tile(weights / 2, 2)
        sides: tuple[list[Array], list[Array]] = ([], [])
        with with_status_line("Gramians of the region", visible) as report:
            for k, (point, weight) in enumerate(zip(self.points(frequencies), weights, strict=True)):
                report(f"{k} of {frequencies.size} factorizations")
                for blocks, states in zip(sides, self.states(complex(point), dual=True), strict=True):
                    columns = math.sqrt(weight / math.pi) * states
                    blocks.append(np.hstack([columns.real, columns.imag]) if self.is_real else columns)
                    if sum(block.shape[1] for block in blocks) > MANY_COLUMNS:
                        blocks[:] = [compress(np.hstack(blocks), EPS)]
        Lc, Lo = (compress(np.hstack(blocks), EPS) for blocks in sides)
        return Lc, Lo

    def errors(self, models: list[IntermediateModel], frequencies: Array) -> Array:
        """Return the norms of the large minus each intermediate model, in its units, at frequencies."""
        out = np.zeros((len(models), frequencies.size))
        for k, point in enumerate(self.points(frequencies)):
            response = self.C @ self.states(complex(point))[0]
            for i, states in enumerate(model.states for model in models):
                pencil = point * np.eye(states.A.shape[0]) - states.A
                reduced = states.C @ np.linalg.solve(pencil, states.B.astype(complex))
                out[i, k] = np.linalg.norm(response - reduced, 2)
        return out * self._problem.gain


def _extended(intermediate: IntermediateModel, region: Region) -> tuple[IntermediateModel, float]:
    """Return the model of the intermediate states and those of the region, and its estimated error there.

    Raises
    ------
    ConvergenceError
        The region needs too many factorizations, or the model is not resolved in it.
    """
    large, discrete = intermediate.large, intermediate.large.is_discrete
    decay = 0.0 if region.horizon is None else 1 / region.horizon
    bands: Bands = region.bands or whole_axis(discrete=discrete)
    line = _Line(intermediate, decay)
    poles = np.linalg.eigvals(intermediate.states.A)
    if poles.size == 0:
        return intermediate, 2 * intermediate.accuracy
    frequencies, weights = band_nodes(line.relative_to_line(poles), bands, discrete=discrete)
    if frequencies.size > MAX_NODES:
        raise ConvergenceError(
            f"the Gramians of the region need {frequencies.size} sparse factorizations, and at most "
            f"{MAX_NODES} are accepted: choose a narrower band, one without lightly damped poles, or a "
            "shorter horizon, or use solver='dense'"
        )
    Lc, Lo = line.factors(frequencies, weights, large.n_states > CHEAP_STATES and on_terminal())
    extended = resolved_states(large, intermediate.factors.extended(Lc, Lo))
    checked = _between(np.sort(frequencies))
    candidates = [extended, intermediate]
    errors = line.errors(candidates, checked)
    if not line.is_real:  # the region has both signs of frequencies, and the spectrum two sides
        errors = np.hstack([errors, line.errors(candidates, -checked)])
    if region.horizon is None:
        distances = errors.max(axis=1)
    else:  # by Parseval's theorem; exp(t / T) is at most e up to the horizon
        sides = np.split(errors**2, errors.shape[1] // checked.size, axis=1)
        energies = sum(trapezoid(side, checked, axis=1) for side in sides) / len(sides)
        distances = math.e * np.sqrt(energies / math.pi)
    best = int(np.argmin(distances))
    return candidates[best], 2 * float(distances[best])


def _between(nodes: Array) -> Array:
    """Return frequencies halfway between some of the nodes, spread evenly."""
    chosen = np.unique(np.linspace(0, nodes.size - 2, CHECKS).astype(int))
    return (nodes[chosen] + nodes[chosen + 1]) / 2
