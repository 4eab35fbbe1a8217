"""Rounding errors of conversions: second-order models to state spaces, state spaces to polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from .._util.twofold import pair, product, refined_pair_solution, two_product, two_sum
from ..models.linear_model import LinearModel, as_model
from ..models.modal import ModalSystem
from ..models.second_order import SecondOrderModel
from .rounding.refined_response import refined_response

#: Number of slowest modes at whose frequencies the two are compared, and their number for large matrices.
MODES = 8
LARGE = 1000
MODES_OF_LARGE = 1
#: Steps of iterative refinement; a smaller condition number means more digits per step.
CORRECTIONS = 8
#: Frequencies are rounded to so many bits, so that their squares are exact.
BITS = 20
#: The error at other frequencies may be larger than that at the sampled ones, at most by this factor.
SAFETY = 2.0


def conversion_error(model: SecondOrderModel, state_space: LinearModel) -> float:
    """Estimate the largest gain of the difference between a model and its state space, due to rounding.

    The two are compared at frequency zero and at the slowest modes, where the error is largest, with twice
    the digits of double precision.
    """
    M, D, K = (
        np.asarray(each.toarray() if model.is_sparse else each) for each in (model.M, model.D, model.K)
    )
    poles = np.linalg.eigvals(state_space.A)
    slowest = poles[np.argsort(-poles.real)][: 2 * (MODES if M.shape[0] <= LARGE else MODES_OF_LARGE)]
    mantissa, exponent = np.frexp(np.unique(np.concatenate([[0.0], np.abs(slowest.imag)])))
    frequencies = np.ldexp(np.round(mantissa * 2**BITS) / 2**BITS, exponent)
    if np.abs(poles).min(initial=np.inf) <= EPS * np.abs(poles).max(initial=0.0):
        frequencies = frequencies[frequencies > 0]  # rigid body modes: the response at zero is infinite
    response, response_low = refined_response(state_space.A, state_space.B, state_space.C, 1j * frequencies)
    largest = 0.0
    for k, w in enumerate(frequencies):
        exact, exact_low = _response(M, D, K, model, float(w))
        difference = (exact - response[k]) + (exact_low - response_low[k])
        if np.all(np.isfinite(difference)):
            largest = max(largest, float(np.linalg.norm(difference, 2)))
    return SAFETY * largest


def converted_model(model: LinearModel, system: Any) -> LinearModel | None:
    """Return the model of a user's type that a state space was converted to as a state space again.

    None where the type is a state space, so that nothing was converted.
    """
    if model.has_states and not isinstance(system, ModalSystem):
        return None
    return as_model(system).in_real_states()[0]


def _response(M: Array, D: Array, K: Array, model: SecondOrderModel, w: float) -> tuple[Array, Array]:
    """Return (Cp + i w Cv) (K + i w D - w^2 M)^-1 B as an unevaluated sum of two matrices."""
    inertia, inertia_low = two_product(np.array([-(w**2) + 0j]), M.astype(complex))
    damping, damping_low = two_product(np.array([1j * w]), D.astype(complex))
    velocity, velocity_low = two_product(np.array([1j * w]), model.Cv.astype(complex))
    high, low = two_sum(K.astype(complex), inertia)
    high, rest = two_sum(high, damping)
    low = low + rest + inertia_low + damping_low
    outputs, rest = two_sum(model.Cp.astype(complex), velocity)
    outputs_low = velocity_low + rest
    factors = sla.lu_factor(high, check_finite=False)
    B = model.B.astype(complex)
    x, x_low = refined_pair_solution(
        lambda b: sla.lu_solve(factors, b, check_finite=False), (high, low), pair(B), CORRECTIONS
    )
    response, response_low = product(outputs, x)
    return response, response_low + outputs @ x_low + outputs_low @ x
