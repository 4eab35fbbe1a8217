"""What conversions round away: of second-order models to state spaces, of state spaces to polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from .._util.twofold import product, two_product, two_sum
from ..models.linear_model import LinearModel, as_model
from ..models.modal import ModalSystem
from ..models.second_order import SecondOrderModel
from .rounding.refined_response import refined_response

#: Slowest modes at whose frequencies the two are compared, and how many where the matrices are large.
MODES = 8
LARGE = 1000
MODES_OF_LARGE = 1
#: Corrections of a solution, each of which gains as many digits as its condition leaves.
CORRECTIONS = 8
#: Bits of a frequency, so that its square is exact.
BITS = 20
#: The rounding found at some frequencies is that at others up to a factor.
SAFETY = 2.0


def conversion_error(model: SecondOrderModel, state_space: LinearModel) -> float:
    """Return how far the gains of a model and of its state space are apart by rounding.

    At frequency zero and at the slowest modes, where it shows, with twice the digits of double precision.
    """
    M, D, K = (
        np.asarray(each.toarray() if model.is_sparse else each) for each in (model.M, model.D, model.K)
    )
    poles = np.linalg.eigvals(state_space.A)
    slowest = poles[np.argsort(-poles.real)][: 2 * (MODES if M.shape[0] <= LARGE else MODES_OF_LARGE)]
    mantissa, exponent = np.frexp(np.unique(np.concatenate([[0.0], np.abs(slowest.imag)])))
    frequencies = np.ldexp(np.round(mantissa * 2**BITS) / 2**BITS, exponent)
    own, own_low = refined_response(state_space.A, state_space.B, state_space.C, 1j * frequencies)
    worst = 0.0
    for k, w in enumerate(frequencies):
        exact, exact_low = _response(M, D, K, model, float(w))
        apart = (exact - own[k]) + (exact_low - own_low[k])
        if np.all(np.isfinite(apart)):
            worst = max(worst, float(np.linalg.norm(apart, 2)))
    return SAFETY * worst


def converted_model(model: LinearModel, system: Any) -> LinearModel | None:
    """Return the model of a user's type that a state space was converted to as a state space again.

    None where the type is a state space, so that nothing was converted.
    """
    if model.has_states and not isinstance(system, ModalSystem):
        return None
    return as_model(system).in_real_states()[0]


def _response(M: Array, D: Array, K: Array, model: SecondOrderModel, w: float) -> tuple[Array, Array]:
    """Return (Cp + i w Cv) (K + i w D - w^2 M)^-1 B as a pair whose sum has more digits than either."""
    inertia, inertia_low = two_product(np.array([-(w**2) + 0j]), M.astype(complex))
    damping, damping_low = two_product(np.array([1j * w]), D.astype(complex))
    seen, seen_low = two_product(np.array([1j * w]), model.Cv.astype(complex))
    high, low = two_sum(K.astype(complex), inertia)
    high, rest = two_sum(high, damping)
    low = low + rest + inertia_low + damping_low
    outputs, rest = two_sum(model.Cp.astype(complex), seen)
    outputs_low = seen_low + rest
    factors = sla.lu_factor(high, check_finite=False)
    B = model.B.astype(complex)
    x, x_low = sla.lu_solve(factors, B, check_finite=False), np.zeros_like(B)
    for _ in range(CORRECTIONS):
        image, image_low = product(high, x)
        defect = (B - image) - (image_low + high @ x_low + low @ x)
        x, rest = two_sum(x, sla.lu_solve(factors, defect, check_finite=False))
        x_low = x_low + rest
    response, response_low = product(outputs, x)
    return response, response_low + outputs @ x_low + outputs_low @ x
