"""`realize`: a model from an impulse response, by Ho-Kalman realization of its block Hankel matrix."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import HankelredError, OrderError, ReductionWarning
from ..models.frequency_response import largest_singular_value
from ..models.linear_model import LinearModel, Timebase, to_control, validated_timebase
from ..reduction.order import check_rule, checked_order, select_order
from ..reduction.reduce import Reduction, make_reduction
from ..simulation.batch_recurrence import squares
from ..simulation.recurrence import free_response, row_powers
from ..simulation.signals import as_kernel
from .hankel_svd import NOISE_NORM, HankelOperator, HankelSVD, leading_svd
from .markov import MarkovParameters
from .output_error import stable_matrix


def realize(
    markov: Any,
    order: int | None = None,
    *,
    tol: float | None = None,
    dt: Timebase = True,
    stabilize: bool = False,
) -> Reduction:
    """Realize a state space from Markov parameters (Ho-Kalman, or eigensystem realisation).

    A large block Hankel matrix is never formed: its leading singular triplets are computed by a randomized
    subspace iteration whose products are FFTs.

    Parameters
    ----------
    markov : array_like, shape (n, p, m) or (n,), or MarkovParameters
        Impulse response, entry 0 being D. Real or complex. Of an odd number the last one is not used.
        (``control.impulse_response`` divides by dt: multiply its discrete-time outputs by dt first.)
    order : int, optional
        Number of states; clipped where further singular values are only rounding.
    tol : float, optional
        Choose the smallest order for which twice the sum of the neglected singular values is at most this.
        Without ``order`` and ``tol``, every singular value above the noise floor is kept.
    dt : True or float
        Sampling time in seconds of the model. A ``MarkovParameters`` has its own, and names of channels,
        which are used instead.
    stabilize : bool
        Move poles outside the unit circle onto it and fit B again, with a ``ReductionWarning``. Without
        it an unstable realization is returned as it is.

    Returns
    -------
    Reduction
        ``hankel_singular_values`` are those of the data (of a large matrix: as many as were needed),
        ``noise_floor`` is the largest singular value that noise in the data, or rounding, can cause.
        ``system`` is a ``control.StateSpace``; complex data give a tuple ``(A, B, C, D)``, since
        python-control has no complex systems. ``error("h2")`` and ``error("hinf")`` compare with the data.

    Raises
    ------
    HankelredError
        The parameters are not a finite array of three or more, or ``dt=0`` (parameters are samples).
    OrderError
        ``order`` and ``tol`` are given together, or one is out of range.

    Warns
    -----
    ReductionWarning
        The order was clipped to the numerical rank, or poles were moved.

    Notes
    -----
    The noise floor is the norm of the Hankel matrix of white noise. The size of the noise is taken from the
    standard errors of ``MarkovParameters``, or else from the flat end of the spectrum, if there is one.
    Sources: Ho and Kalman (1966); Kung, Proc. 12th Asilomar Conf. (1978), whose shift of the observability
    matrix gives A; Juang and Pappa, J. Guidance 8 (1985).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> k = np.arange(60)
    >>> h = np.where(k > 0, 0.9 ** (k - 1.0) + 0.5 ** (k - 1.0), 0.0)
    >>> reduction = hankelred.realize(h, dt=0.1)
    >>> reduction.order, reduction.system.dt
    (2, 0.1)
    >>> np.round(np.sort(reduction.system.poles().real), 9)
    array([0.5, 0.9])
    """
    check_rule(tol=tol, rtol=None, energy=None)
    if order is not None and tol is not None:
        raise OrderError(
            f"pass the order or a tolerance to choose it, not both: got order={order} and tol={tol}"
        )
    error_size: float | None = None
    labels: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    if isinstance(markov, MarkovParameters):
        labels = markov.input_labels, markov.output_labels
        finite = markov.standard_error[np.isfinite(markov.standard_error)]
        error_size = float(np.sqrt(np.mean(finite**2))) if finite.size else None
        markov, dt = markov.markov, markov.dt
    h = _checked_markov(markov)
    dt = validated_timebase(dt)
    if not dt:
        raise HankelredError(
            f"dt is {dt!r}, but Markov parameters are samples: pass the sampling time in seconds, or True; a "
            "continuous-time model follows from the result by an inverse zero-order hold"
        )
    hankel = HankelOperator(h)
    svd = leading_svd(hankel, None if order is None else checked_order(order), tol)
    floor = max(svd.rounding, _noise_floor(svd, hankel.shape, hankel.blocks, error_size))
    if order is not None and order > np.count_nonzero(svd.singular_values > floor):
        # an order chosen by the user takes precedence over the estimate of the noise
        floor = svd.rounding
    source = RealizationSource(h, hankel, svd, floor, dt, stabilize, *labels)
    if order is None:
        order = select_order(svd.singular_values, tol=tol, noise_floor=floor)
    return make_reduction(source, order)


def _checked_markov(markov: Any) -> Array:
    h = as_kernel(markov)
    if 0 in h.shape:
        raise HankelredError(f"markov must have samples, outputs and inputs, got shape {h.shape}")
    if h.shape[0] < 3:
        raise HankelredError(
            f"markov has {h.shape[0]} entries (shape {h.shape}); at least 3 are needed, samples are the "
            "first axis"
        )
    return h


def _noise_floor(svd: HankelSVD, shape: tuple[int, int], blocks: int, error_size: float | None) -> float:
    if error_size is not None:
        return NOISE_NORM * error_size * float(np.sqrt(max(shape)))
    if svd.remainder > 0:
        # Only for a flat spectrum is the remainder as large as the last values that were computed.
        flat = svd.singular_values[-1] <= NOISE_NORM * svd.remainder
        return NOISE_NORM * svd.remainder if flat else 0.0
    s = svd.singular_values
    # White noise gives singular values that fall off slowly and evenly; those of a system fall geometrically.
    if s.size >= 32 and s[s.size // 2] > 0 and s[3 * s.size // 4] > 0.2 * s[s.size // 2]:
        return NOISE_NORM * float(np.sqrt(np.mean(s[s.size // 2 :] ** 2))) * 1.5
    return 0.0


@dataclass(frozen=True)
class RealizationSource:
    """Markov parameters and the singular triplets of their Hankel matrix."""

    markov: Array
    hankel: HankelOperator
    svd: HankelSVD
    noise_floor: float
    dt: Timebase
    stabilize: bool
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    method = "era"
    solver = "svd"
    certified = True
    unstable_order = 0
    full: LinearModel | None = None

    @property
    def hankel_singular_values(self) -> Array:
        """Singular values of the data's Hankel matrix, as many as were computed."""
        return self.svd.singular_values

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound unless the data contradict it.

        The bound holds for a complete impulse response. If the record ends before the response has decayed,
        the error can be larger, and no bound is known.
        """
        if reduced is None:
            return math.inf
        slack = self.noise_floor + self.svd.rounding * self.markov.shape[0]
        return bound if self.error(reduced, "hinf") <= bound * (1 + 1e-6) + slack else math.inf

    @property
    def residual(self) -> float:
        """Numerical uncertainty of the singular values, relative to the largest."""
        top = float(self.svd.singular_values[0])
        return self.svd.rounding / top if top else 0.0

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the realization of an order; there is no projection."""
        p, m = self.hankel.p, self.hankel.m
        root = np.sqrt(self.svd.singular_values[:order])
        observability = self.svd.left[:, :order] * root
        A = sla.lstsq(observability[:-p], observability[p:])[0] if order else np.zeros((0, 0))
        B = (self.svd.right[:m, :order] * root).conj().T
        C = observability[:p]
        if self.stabilize:
            A, B = self._stabilized(A, B, C)
        names = self.input_labels, self.output_labels
        return LinearModel(A, B, C, self.markov[0].copy(), self.dt, to_control, *names), None, None

    def _stabilized(self, A: Array, B: Array, C: Array) -> tuple[Array, Array]:
        stable_A = stable_matrix(A)
        if stable_A is A:
            return A, B
        poles = np.linalg.eigvals(A)
        worst = float(np.abs(poles).max())
        warnings.warn(
            f"{int(np.count_nonzero(np.abs(poles) > 1))} pole(s) of the realization were outside the unit "
            f"circle (the largest of modulus {worst:.6g}); they were moved onto it and B was fitted again",
            ReductionWarning,
            stacklevel=5,  # the caller of realize() or at()
        )
        count = self.markov.shape[0] - 1
        responses = row_powers(C, squares(stable_A, count), count)
        target = self.markov[1:].reshape(-1, B.shape[1])
        return stable_A, np.asarray(sla.lstsq(responses.reshape(target.shape[0], -1), target)[0])

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the data minus the model's Markov parameters."""
        n = self.markov.shape[0]
        model_markov = np.zeros(self.markov.shape, dtype=np.result_type(self.markov, reduced.A))
        model_markov[0] = reduced.D
        if reduced.n_states:
            model_markov[1:] = free_response(reduced.A, reduced.B, reduced.C, n - 1)
        difference = self.markov - model_markov
        if norm == "h2":
            return float(np.linalg.norm(difference))
        # With four times the length the peak is at most a thousandth above the largest value on the grid.
        return float(largest_singular_value(np.fft.fft(difference, 4 * n, axis=0)).max())
