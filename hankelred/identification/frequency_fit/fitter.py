"""Fit a stable model of a given order to a frequency response, or choose the order by held-out frequencies.

1. A pilot model has 1.5 times as many poles as the order, by relocation of poles (vector fitting); with
   several inputs and outputs every pole has a residue of full rank.
2. Initial models of the order: the pilot reduced by balanced truncation; poles of the Loewner pencil; and
   with one input or one output the relocated poles themselves.
3. The best of them are refined by least squares. Where the pilot is much more accurate than the models, they
   are compared with it on a finer grid too, since a refined model may follow the given frequencies only.
4. Weights: at first every output counts relative to its own size. Errors of measurement often grow with the
   gain. If a fit relative to the gain leaves white residuals, the order explains the data up to noise; the
   variance a^2 + b^2 |G|^2 is estimated from the residuals, and the fit repeated with its inverse as weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.optimize

from ..._util.arrays import Array, Quadruple
from ..._util.progress import with_progress_bar
from ...errors import HankelredError
from ...reduction.reduce import Reduction, reduce
from ..order_selection import sums_over_pieces
from .sections import Fit, FitData, Sections, fit_outputs, refine, sections_of, stabilized
from .starts import LoewnerPencil, relocated, spread_poles

#: Poles of the pilot model for each one of the order.
_PILOT_FACTOR = 1.5
_PILOT_STEPS = 15
_REFINEMENT_STEPS = 60
#: Initial models that are refined.
_REFINED_STARTS = 3
#: A pilot whose error is below this share of a model's is taken as the truth between the frequencies; a less
#: accurate one may have followed the noise.
_ACCURATE_PILOT = 1 / 6
_POINTS_PER_INTERVAL = 4
#: Share of the squared weighted response below which only rounding is left.
_NOISE_FREE = 1e-20
#: Correlation of the phases of neighboring residuals above which they are not noise.
_WHITE = 0.3
#: The largest order tried where the user gives none, and how many frequencies there are for each state.
MAX_ORDER = 80
FREQUENCIES_PER_STATE = 3
#: Every so many frequencies one is held out.
_HELD_OUT = 4
#: A smaller order is preferred if its error is larger by less than this, or by less than a standard error.
_PARSIMONY = 0.02
#: Relative error that is rounding.
_ROUNDING = 1e-11


@dataclass(frozen=True, eq=False)
class Pilot:
    """A model with more poles than the order, all residues of full rank, and its balanced truncations."""

    poles: Sections
    #: (p, m, poles + 1): numerators of every entry and direct term
    numerators: Array
    #: share of the squared weighted response that is left
    loss: float

    def state_space(self) -> Quadruple:
        """Return (A, B, C, D)."""
        p, m, _ = self.numerators.shape
        eye = np.eye(m)
        C = self.numerators[..., :-1].transpose(0, 2, 1).reshape(p, -1)
        return np.kron(self.poles.A, eye), np.kron(self.poles.B, eye), C, self.numerators[..., -1]

    @cached_property
    def reduction(self) -> Reduction | None:
        """Its balanced truncations; None where its Gramians cannot be computed."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return reduce(self.state_space())
        except HankelredError:
            return None

    def response(self, omega: Array) -> Array:
        """Return the response (N, p, m)."""
        basis = self.poles.responses(omega)[..., 0]
        return np.einsum("kn,pmn->kpm", basis, self.numerators[..., :-1]) + self.numerators[..., -1]


@dataclass(frozen=True)
class NoiseModel:
    """Variances ``constant + proportional |G|^2`` of each output; their inverse roots are the weights."""

    constant: Array
    proportional: Array

    def weights(self, response: Array) -> Array:
        """Return the weights of a response (N, p, m)."""
        return 1 / np.sqrt(self.constant[:, None] + self.proportional[:, None] * np.abs(response) ** 2)


@dataclass(frozen=True)
class Surplus:
    """A fit without the sections that the data do not determine, and the fit of all to the same weights."""

    kept: Fit
    full: Fit
    #: that of the weighted data
    energy: float


@dataclass
class ResponseFitter:
    """A response (N, p, m) with m <= p, at frequencies of size one, and the models fitted to it."""

    omega: Array
    response: Array
    stable: bool
    _pilots: dict[tuple[int, bool, bytes], Pilot] = field(default_factory=dict)
    _pencil: LoewnerPencil | None = None

    @property
    def by_output(self) -> NoiseModel:
        """Every output counts relative to its own size."""
        square = np.mean(np.abs(self.response) ** 2, axis=(0, 2))
        return NoiseModel(np.where(square > 0, square, 1.0), np.zeros(square.size))

    @property
    def by_gain(self) -> NoiseModel:
        """Every value counts relative to itself."""
        p = self.response.shape[1]
        return NoiseModel(np.full(p, 1e-16 * np.mean(np.abs(self.response) ** 2)), np.ones(p))

    def data(self, weights: Array) -> FitData:
        """Return the response with these weights."""
        return FitData(self.omega, self.response, weights)

    def fit(self, order: int) -> Fit:
        """Return the best model of an order, or of the largest order below that the data determine."""
        data = self.data(self.by_output.weights(self.response))
        fit = self._best(order, data)
        pilot = self.pilot(order, data.weights)
        if fit.loss <= _NOISE_FREE * data.energy or _is_far_better(pilot, fit, data):
            return fit
        trial = self._best(order, self.data(self.by_gain.weights(self.response)))
        for _ in range(2):
            if not self._is_white(trial):
                return fit
            data = self.data(self._noise(trial).weights(trial.response(self.omega)))
            starts = [trial.sections, fit.sections]
            if self.response.shape[2] == 1:
                starts.append(self._relocated(trial.sections, data, 5))
            trial = self._refined(starts, data)
        return trial if self._is_white(trial) else fit

    def _best(self, order: int, data: FitData) -> Fit:
        pilot = self.pilot(order, data.weights)
        starts = list(self._starts(order, data, pilot)) or self._starts_below(order, data, pilot)
        fits = sorted((fit_outputs(s, data)[0] for s in starts), key=lambda fit: fit.loss)
        if fits[0].loss <= _NOISE_FREE * data.energy:
            return fits[0]
        refined = [self._refine(fit.sections, data) for fit in fits[:_REFINED_STARTS]]
        best = min(refined, key=lambda fit: fit.loss)
        if pilot is not None and _is_far_better(pilot, best, data):
            grid = _finer(self.omega)
            weights = np.apply_along_axis(lambda w: np.interp(grid, self.omega, w), 0, data.weights)
            truth = pilot.response(grid)

            def distance(fit: Fit) -> float:
                return float(np.linalg.norm((fit.response(grid) - truth) * weights))

            best = min([*refined, *fits], key=distance)
        return best

    def _refine(self, start: Sections, data: FitData, max_steps: int = _REFINEMENT_STEPS) -> Fit:
        return refine(start, data, stable=self.stable, max_steps=max_steps, rtol=1e-4)

    def _refined(self, starts: Sequence[Sections], data: FitData) -> Fit:
        return min((self._refine(start, data) for start in starts), key=lambda fit: fit.loss)

    def _relocated(self, start: Sections, data: FitData, steps: int) -> Sections:
        return relocated(start, data, stable=self.stable, steps=steps)

    def _starts(self, order: int, data: FitData, pilot: Pilot | None) -> Iterator[Sections]:
        _, _, m = data.shape
        if self._pencil is None:
            self._pencil = LoewnerPencil(self.omega, self.response)
        for surplus in (0, m):
            sections = self._pencil.sections(order, surplus)
            if sections is not None:
                yield self._admissible(sections)
                if m == 1:
                    yield self._relocated(self._admissible(sections), data, 5)
        if m == 1:
            yield self._relocated(spread_poles(order, self.omega), data, _PILOT_STEPS)
        yield from self._truncated(order, pilot)

    def _truncated(self, order: int, pilot: Pilot | None) -> list[Sections]:
        """Return the start from the balanced truncation of the pilot, if it has this order."""
        truncated = None if pilot is None else truncation(pilot, order)
        return [] if truncated is None else [self._admissible(truncated)]

    def _starts_below(self, order: int, data: FitData, pilot: Pilot | None) -> list[Sections]:
        """Return starts of the largest order below, for data that do not determine so many states."""
        if pilot is not None and pilot.reduction is not None and pilot.reduction.numerical_rank < order:
            truncated = self._truncated(pilot.reduction.numerical_rank, pilot)
            if truncated:
                return truncated
        while order > 1:
            order -= 1
            starts = list(self._starts(order, data, pilot))
            if starts:
                return starts
        raise HankelredError(
            "no model was found; check that the response belongs to the frequencies, and that it is not of a "
            "static gain"
        )

    def _admissible(self, sections: Sections) -> Sections:
        return stabilized(sections) if self.stable else sections

    def pilot(self, order: int, weights: Array, *, stable: bool | None = None) -> Pilot | None:
        """Return a model with more poles than an order, if the data allow it."""
        stable = self.stable if stable is None else stable
        count = min(int(np.ceil(_PILOT_FACTOR * order)), self.omega.size // 2)
        if count < 1:
            return None
        key = count, stable, weights.tobytes()
        if key not in self._pilots:
            data = self.data(weights)
            _, p, m = data.shape
            poles = relocated(spread_poles(count, self.omega), data, stable=stable, steps=_PILOT_STEPS)
            fit = fit_outputs(poles, data.entries)[0]
            numerators = np.concatenate([fit.C, fit.D], axis=1).reshape(p, m, -1)
            self._pilots[key] = Pilot(poles, numerators, fit.loss / data.energy)
        return self._pilots[key]

    def _is_white(self, fit: Fit) -> bool:
        """Whether neighboring residuals are uncorrelated, by their phases: their sizes may differ widely."""
        if self.omega.size < 8:
            return False
        error = self.response - fit.response(self.omega)
        size = np.abs(error)
        phase = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
        return bool(np.abs(np.mean(phase[1:] * phase[:-1].conj())) < _WHITE)

    def _noise(self, fit: Fit) -> NoiseModel:
        """Return the noise model of the residuals."""
        model = fit.response(self.omega)
        error, gain = np.abs(self.response - model) ** 2, np.abs(model) ** 2
        coefficients = [
            _variance(error[:, i].reshape(-1), gain[:, i].reshape(-1)) for i in range(gain.shape[1])
        ]
        return NoiseModel(*np.array(coefficients).T)

    def without_surplus(self, fit: Fit) -> Surplus | None:
        """Leave out the sections that the data do not determine, one after the other.

        Returns
        -------
        Surplus or None
            None where every section counts, or where the residuals are not noise: then the order is too
            small.

        Notes
        -----
        A section counts if it lowers the criterion of G. Schwarz, Ann. Statist. 6 (1978), for independent
        Gaussian errors of the estimated variances. The poles that are left are not refined again, so that a
        section may only be kept for too long.
        """
        data = self.data(self._noise(fit).weights(fit.response(self.omega)))
        full = fit_outputs(fit.sections, data)[0]
        rounding = _NOISE_FREE * data.energy
        if full.loss > rounding and not self._is_white(fit):
            return None
        N, p, m = data.shape
        penalty = np.log(2 * N * p * m) / (2 * N * p * m)  # for each parameter, relative to the loss

        kept = np.ones(fit.sections.frequency.size + fit.sections.poles.size, dtype=bool)

        def left_out(index: int) -> Fit:
            others = kept.copy()
            others[index] = False
            return fit_outputs(fit.sections.subset(others), data)[0]

        fits = [left_out(k) for k in range(kept.size)]
        left = full
        for k in np.argsort([one.loss for one in fits]):
            trial = fits[k] if left is full else left_out(k)
            parameters = (p + m) * (full.sections.order - trial.sections.order)
            if trial.sections.order < 1 or trial.loss > max(
                full.loss * np.exp(parameters * penalty), rounding
            ):
                break
            kept[k], left = False, trial
        return None if left is full else Surplus(left, full, data.energy)

    def choose_order(self, orders: Sequence[int], *, progress: bool) -> int:
        """Return the smallest order that predicts held-out frequencies as well as any, up to their noise."""
        held_out = np.arange(self.omega.size) % _HELD_OUT == _HELD_OUT // 2
        part = ResponseFitter(self.omega[~held_out], self.response[~held_out], self.stable)
        trial = part._best(orders[-1], part.data(part.by_gain.weights(part.response)))
        noise = part._noise(trial) if part._is_white(trial) else part.by_output
        data = part.data(noise.weights(part.response))
        omega, response = self.omega[held_out], self.response[held_out]
        weights = noise.weights(response)
        size = float(np.sum(np.abs(response * weights) ** 2))
        errors: dict[int, Array] = {}

        def try_order(order: int) -> None:
            fit = part._scan(order, orders[-1], data)
            difference = response - fit.response(omega)
            errors[order] = np.sum(np.abs(difference * weights) ** 2, axis=(1, 2)) / size

        for order in with_progress_bar(list(orders)[::-1], "Orders", progress, len(orders)):
            try_order(order)
        while True:  # the orders tried have gaps
            chosen = _smallest_sufficient(errors)
            below = max((n for n in errors if n < chosen), default=chosen - 1)
            if chosen - below <= 1:
                return chosen
            try_order((chosen + below) // 2)

    def _scan(self, order: int, largest: int, data: FitData) -> Fit:
        pilot = self.pilot(largest, data.weights)
        starts = self._truncated(order, pilot)
        if self.response.shape[2] == 1:
            starts.append(self._relocated(spread_poles(order, self.omega), data, _PILOT_STEPS))
        starts = starts or list(self._starts(order, data, pilot)) or self._starts_below(order, data, pilot)
        fits = sorted((fit_outputs(s, data)[0] for s in starts), key=lambda fit: fit.loss)
        return self._refine(fits[0].sections, data, 10)


def _is_far_better(pilot: Pilot | None, fit: Fit, data: FitData) -> bool:
    return pilot is not None and pilot.loss * data.energy < _ACCURATE_PILOT**2 * fit.loss


def truncation(pilot: Pilot, order: int) -> Sections | None:
    """Return the poles of the balanced truncation of a pilot model."""
    reduction = pilot.reduction
    if reduction is None or not reduction.unstable_order <= order <= reduction.numerical_rank:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        A, B, _, _ = reduction.at(order).system
    if A.shape[0] != order:
        return None
    poles, vectors = np.linalg.eig(A)
    if not np.linalg.cond(vectors) < 1e12:
        return None
    return sections_of(poles, np.linalg.solve(vectors, B) if B.shape[1] > 1 else None, B.shape[1])


def _finer(omega: Array) -> Array:
    """Return the frequencies and some between them."""
    share = np.arange(_POINTS_PER_INTERVAL) / _POINTS_PER_INTERVAL
    return np.append((omega[:-1, None] + np.diff(omega)[:, None] * share).reshape(-1), omega[-1])


def _variance(error: Array, gain: Array) -> Array:
    """Fit the two coefficients of a noise model to squared errors, relative to the variance itself."""
    if not gain.any():  # an output that is zero: there is no size to compare its errors with
        return np.array([1.0, 0.0])
    floor = 1e-30 * float(gain.max(initial=0.0)) + np.finfo(float).tiny
    variance = np.maximum(gain * (error.mean() / max(float(gain.mean()), floor)), floor)
    coefficients = np.zeros(2)
    for _ in range(20):
        M = np.stack([np.ones_like(gain), gain], axis=1) / variance[:, None]
        size = np.linalg.norm(M, axis=0)
        size[size == 0] = 1.0
        coefficients = scipy.optimize.nnls(M / size, error / variance)[0] / size
        previous, variance = variance, np.maximum(coefficients[0] + coefficients[1] * gain, floor)
        if np.allclose(previous, variance, rtol=1e-2):
            break
    return np.array([max(coefficients[0], floor), coefficients[1]])


def _smallest_sufficient(errors: dict[int, Array]) -> int:
    best = min(errors, key=lambda order: float(errors[order].sum()))
    total = float(errors[best].sum())

    def tolerance(order: int) -> float:
        # standard error of the difference, a sum over blocks of neighboring frequencies
        pieces = sums_over_pieces((errors[order] - errors[best])[None])[0]
        deviation = float(
            np.sqrt(pieces.size / max(pieces.size - 1, 1) * np.sum((pieces - pieces.mean()) ** 2))
        )
        return max(2 * _PARSIMONY * total, min(deviation, 0.2 * total)) + _ROUNDING**2

    return min(order for order in errors if float(errors[order].sum()) <= total + tolerance(order))
