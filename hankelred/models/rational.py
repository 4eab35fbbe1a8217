"""Conversion between rational functions (polynomials; zeros, poles, gain) and state space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array, Quadruple
from ..errors import ModelError, ReductionWarning
from .conjugate_pairs import grouped_conjugates
from .frequency_response import points_off_the_poles

Entries = list[list[Array]]

#: Relative distance up to which a root is the conjugate of another, or real.
_SAME = 1e-10
#: Relative change of an entry's response by removed leading coefficients that is accepted.
KEPT = 1e-9


def state_space_from_rational(num: Sequence[Sequence[Array]], den: Sequence[Sequence[Array]]) -> Quadruple:
    """Realize a matrix of proper rational functions.

    Entries that share a denominator share its states: along columns (a controllable form for each
    input) or along rows (an observable form for each output), whichever needs fewer.
    """
    p, m = len(num), len(num[0]) if num else 0
    entries = [[_normalized_entry(num[i][j], den[i][j], (i, j)) for j in range(m)] for i in range(p)]
    by_columns = _columns(entries, p, m)
    transposed = [[entries[i][j] for i in range(p)] for j in range(m)]
    A, B, C, D = _columns(transposed, m, p)
    by_rows = (A.T, C.T, B.T, D.T)
    return by_columns if by_columns[0].shape[0] <= by_rows[0].shape[0] else by_rows


def _normalized_entry(num: Any, den: Any, where: tuple[int, int]) -> tuple[Array, Array, complex]:
    """Return (strictly proper numerator, monic denominator, direct term)."""
    entry = f"entry (output {where[0]}, input {where[1]})"
    num, den = (np.trim_zeros(np.atleast_1d(np.asarray(c)), "f") for c in (num, den))
    for coefficients, what in ((num, "numerator"), (den, "denominator")):
        if not np.all(np.isfinite(coefficients)):
            raise ModelError(
                f"{entry}: the {what} {coefficients.tolist()} has a coefficient that is not finite"
            )
    if den.size == 0:
        raise ModelError(f"{entry}: the denominator is zero")
    if num.size > den.size:
        raise ModelError(
            f"{entry} is improper: numerator of degree {num.size - 1} over denominator of degree "
            f"{den.size - 1}; only proper models have a state space"
        )
    num, den = num / den[0], den / den[0]
    if num.size < den.size:
        return num, den, 0.0
    direct = num[0]
    return num[1:] - direct * den[1:], den, direct


def _columns(entries: Any, p: int, m: int) -> Quadruple:
    """Realize column by column; equal denominators within a column share one companion block."""
    blocks: list[tuple[Array, Array, int]] = []
    dtype = np.result_type(float, *(np.asarray(x) for row in entries for e in row for x in e))
    D = np.zeros((p, m), dtype)
    for j in range(m):
        groups: dict[bytes, tuple[Array, Array]] = {}
        for i in range(p):
            num, den, direct = entries[i][j]
            D[i, j] = direct
            k = den.size - 1
            if k == 0 or not np.any(num):
                continue
            companion, C = groups.setdefault(
                den.astype(dtype).tobytes(), (sla.companion(den).astype(dtype), np.zeros((p, k), dtype))
            )
            C[i, k - num.size :] = num
        blocks += [(companion, C, j) for companion, C in groups.values()]
    n = sum(companion.shape[0] for companion, _, _ in blocks)
    A, B, C_all = np.zeros((n, n), dtype), np.zeros((n, m), dtype), np.zeros((p, n), dtype)
    start = 0
    for companion, C, j in blocks:
        k = companion.shape[0]
        A[start : start + k, start : start + k] = companion
        B[start, j] = 1.0
        C_all[:, start : start + k] = C
        start += k
    return A, B, C_all, D


def series_from_zpk(zeros: Any, poles: Any, gain: Any) -> Quadruple:
    """Realize zeros, poles and gain as a series of sections of first and second order.

    No polynomial of high degree is formed, so that no digits are lost with many poles.
    """
    zeros, poles = (np.atleast_1d(np.asarray(v)).ravel() for v in (zeros, poles))
    if zeros.size > poles.size:
        raise ModelError(
            f"{zeros.size} zeros over {poles.size} poles is improper; only proper models have a state space"
        )
    if not (np.all(np.isfinite(zeros)) and np.all(np.isfinite(poles)) and np.isfinite(gain)):
        raise ModelError("zeros, poles and gain must be finite")
    pole_sections = _sections(poles, "poles")
    zero_sections = _sections(zeros, "zeros")
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.ones((1, 1)) * gain
    for den in sorted(pole_sections, key=lambda c: -c.size):
        # A section takes as many zeros as poles where possible, so that sections stay proper.
        num = next((z for z in zero_sections if z.size == den.size), None)
        if num is not None:
            zero_sections = [z for z in zero_sections if z is not num]
        else:
            num = np.ones(1)
            while num.size < den.size:
                section = next((z for z in zero_sections if z.size + num.size - 1 <= den.size), None)
                if section is None:
                    break
                zero_sections = [z for z in zero_sections if z is not section]
                num = np.polymul(num, section)
        A, B, C, D = _series((A, B, C, D), state_space_from_rational([[num]], [[den]]))
    if zero_sections:
        # A pair of zeros remains beside two real poles: realize the whole function as one block.
        return _polynomial_fallback(zeros, poles, gain)
    return A, B, C, D


def _sections(roots: Array, what: str) -> list[Array]:
    """Split roots into real polynomials of degree one and two (complex ones if not conjugate)."""
    groups = grouped_conjugates(roots, _SAME)
    if groups is None:
        return [np.array([1.0, -root]) for root in roots]
    return [
        np.array([1.0, -roots[k].real])
        if not partner
        else np.array([1.0, -2 * roots[k].real, abs(roots[k]) ** 2])
        for k, *partner in groups
    ]


def _series(first: Quadruple, second: Quadruple) -> Quadruple:
    A1, B1, C1, D1 = first
    A2, B2, C2, D2 = second
    A = np.block([[A1, np.zeros((A1.shape[0], A2.shape[0]))], [B2 @ C1, A2]])
    return A, np.vstack([B1, B2 @ D1]), np.hstack([D2 @ C1, C2]), D2 @ D1


def _polynomial_fallback(zeros: Array, poles: Array, gain: Any) -> Quadruple:
    return state_space_from_rational([[gain * np.poly(zeros)]], [[np.poly(poles)]])


def transfer_entries(A: Array, B: Array, C: Array, D: Array, *, discrete: bool) -> tuple[Entries, Entries]:
    """Convert a state space to numerators and denominators, one pair for each output and input.

    Two methods are tried (residues of the poles; characteristic polynomials) and the one whose response is
    nearer to that of the state space is used. Polynomials of high degree lose digits with either method, so
    the loss is measured and reported.

    Warns
    -----
    ReductionWarning
        The response of the polynomials differs from the state space by more than 1e-6.
    """
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    real = not any(np.iscomplexobj(M) for M in (A, B, C, D))
    poles, vectors = np.linalg.eig(A) if n else (np.zeros(0), np.zeros((0, 0)))
    den = _poly(poles, real)
    points = points_off_the_poles(poles, discrete=discrete)
    response = np.array([C @ np.linalg.solve(s * np.eye(n) - A, B) + D for s in points]) if n else None
    num: Entries = [[np.atleast_1d(D[i, j]) for j in range(m)] for i in range(p)]
    if response is None:
        return num, [[den.copy() for _ in range(m)] for _ in range(p)]
    scale = max(float(np.abs(response).max()), np.finfo(float).tiny)
    den_values = np.polyval(den, points)
    residues = _residue_terms(vectors, B, C)
    largest_error = 0.0
    for i in range(p):
        for j in range(m):
            candidates = [np.poly(A - np.outer(B[:, j], C[i])) + (D[i, j] - 1) * den]
            if residues is not None:
                candidates.append(_from_residues(*residues, i, j, poles, D[i, j], den))
            if real:
                candidates = [np.real(c) for c in candidates]
            errors = [
                float(np.abs(np.polyval(c, points) / den_values - response[:, i, j]).max())
                for c in candidates
            ]
            best = int(np.argmin(errors))
            # the leading coefficients are D, C B, C A B ... up to the first nonzero one; those that are zero
            # up to rounding are removed, as long as that keeps the response: in states of far units all of
            # them can look like rounding
            removed = _leading_zeros(A, B[:, j], C[i], D[i, j])
            accepted = 2 * errors[best] + KEPT * float(np.abs(response[:, i, j]).max())
            while True:
                coefficients = candidates[best][removed:]
                if not coefficients.size or not np.any(coefficients):
                    coefficients = np.zeros(1)
                error = float(np.abs(np.polyval(coefficients, points) / den_values - response[:, i, j]).max())
                if error <= accepted or removed == int(D[i, j] == 0):
                    break
                removed -= 1
            largest_error = max(largest_error, error)
            num[i][j] = coefficients
    _warn_of_loss(largest_error / scale, f"the transfer function of degree {n}", "polynomials of this degree")
    return num, [[den.copy() for _ in range(m)] for _ in range(p)]


def _leading_zeros(A: Array, b: Array, c: Array, d: Any) -> int:
    """Count the leading numerator coefficients that are zero: the relative degree."""
    if d != 0:
        return 0
    row, count = c, 1
    while count <= A.shape[0]:
        size = float(np.linalg.norm(row) * np.linalg.norm(b))
        if abs(row @ b) > 10 * A.shape[0] * EPS * size:
            break
        row, count = row @ A, count + 1
    return count


def _poly(roots: Array, real: bool) -> Array:
    coefficients = np.atleast_1d(np.poly(roots)) if roots.size else np.ones(1)
    return np.real(coefficients) if real else coefficients


def _residue_terms(V: Array, B: Array, C: Array) -> tuple[Array, Array] | None:
    if np.linalg.cond(V) > 1e10:
        return None
    return C @ V, np.linalg.solve(V, B.astype(complex))


def _from_residues(CV: Array, VB: Array, i: int, j: int, poles: Array, d: complex, den: Array) -> Array:
    total = d * den.astype(complex)
    for k in range(poles.size):
        total[1:] += CV[i, k] * VB[k, j] * np.atleast_1d(np.poly(np.delete(poles, k)))
    return total


def _warn_of_loss(error: float, form: str, reason: str) -> None:
    """Warn of a form whose response differs from that of the state space, relative to its largest value."""
    if error > 1e-6:
        warnings.warn(
            f"{form} differs from the state space by {error:.1e} of its largest response: {reason} lose "
            "digits; pass a StateSpace to keep them",
            ReductionWarning,
            stacklevel=3,
        )


def zeros_poles_gain(
    A: Array, B: Array, C: Array, D: Array, *, discrete: bool
) -> tuple[Array, Array, complex | float]:
    """Convert a single-input single-output state space to zeros, poles and gain.

    Zeros at infinity are computed as finite ones far away where the relative degree is large, so the number
    of zeros is that with which the response is nearest to that of the state space.

    Warns
    -----
    ReductionWarning
        The response of the zeros and poles differs from the state space by more than 1e-6.
    """
    n = A.shape[0]
    poles = np.linalg.eigvals(A)
    real = not any(np.iscomplexobj(M) for M in (A, B, C, D))
    zeros = _finite_zeros(A, B, C, D)
    points = points_off_the_poles(poles, discrete=discrete)
    response = np.array([(C @ np.linalg.solve(s * np.eye(n) - A, B) + D)[0, 0] for s in points])
    scale = float(np.abs(response).max())
    if scale == 0:
        return np.zeros(0), poles, 0.0
    # logarithms, because the products leave the range of doubles at a few hundred poles
    steps = np.concatenate(
        [np.zeros((points.size, 1)), np.log(points[:, None] - zeros.astype(complex))], axis=1
    )
    logs = steps.cumsum(axis=1) - np.log(points[:, None] - poles.astype(complex)).sum(axis=1, keepdims=True)
    fits = []
    for count in range(zeros.size + 1):
        if real and abs(zeros[:count].imag.sum()) > 1e-9 * np.abs(zeros[:count]).sum():
            continue  # between a zero and its conjugate
        largest = float(logs[:, count].real.max())
        shape = np.exp(logs[:, count] - largest)
        factor = np.vdot(shape, response) / np.vdot(shape, shape)
        error = float(np.abs(factor * shape - response).max()) / scale
        gain = factor * np.exp(-largest)
        fits.append((error, count, float(gain.real) if real else gain))
    least = min(fits)[0]
    error, count, gain = next(fit for fit in fits if fit[0] <= 2 * least + 4 * EPS)
    _warn_of_loss(error, f"the form with {count} zeros and {n} poles", "zeros of a system of this order")
    return zeros[:count], poles, gain


def _finite_zeros(A: Array, B: Array, C: Array, D: Array) -> Array:
    """Return the zeros, nearest to the origin first, at most as many as the relative degree allows."""
    n = A.shape[0]
    if D[0, 0] != 0:
        zeros = np.linalg.eigvals(A - B @ C / D[0, 0])
    else:
        pencil = np.block([[A, B], [C, D]])
        mass = np.zeros_like(pencil)
        mass[:n, :n] = np.eye(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            zeros = sla.eigvals(pencil, mass)
        # infinite zeros are computed as huge or non-finite numbers
        zeros = zeros[np.isfinite(zeros)]
    zeros = zeros[np.argsort(np.abs(zeros), kind="stable")]
    return zeros[: max(n - _leading_zeros(A, B[:, 0], C[0], D[0, 0]), 0)]
