"""Classification of poles as stable, marginal or unstable, and the split of a system into these parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import ztrtrs

from .._util.arrays import EPS, Array, schur_poles
from .._util.checks import real_number
from .._util.poles import boundary_width, distance_to_boundary
from .._util.schur import schur_form
from ..errors import ConvergenceError, OrderError

STABILITY_TOL = 1e-13


@dataclass(frozen=True)
class SchurSplit:
    """A system in two uncoupled parts, the stable one in Schur form.

    ``right`` and ``left`` are (n, n) with left^H right = 1 and left^H A right block diagonal; the
    first ``n_stable`` columns belong to the stable part. ``T_unstable`` has the marginal poles too. ``poles``
    are the poles if all are stable.
    """

    T_stable: Array
    T_unstable: Array
    right: Array
    left: Array
    poles: Array | None = None

    @property
    def n_stable(self) -> int:
        """Number of stable poles."""
        return int(self.T_stable.shape[0])


def matrix_size(A: Array) -> float:
    """Return sqrt(|A|_1 |A|_inf): at least the spectral norm, and equal to it for diagonal A."""
    if A.size == 0:
        return 0.0
    sizes = np.abs(A)
    return math.sqrt(float(sizes.sum(axis=0).max())) * math.sqrt(float(sizes.sum(axis=1).max()))


def is_stable_pole(poles: Array, size: float, *, discrete: bool, tol: float) -> Array:
    """Return for each pole whether it is stable: inside the boundary by more than the tolerance."""
    width = boundary_width(size, discrete=discrete, tol=tol)
    return distance_to_boundary(poles, discrete=discrete) > width


def is_unstable_pole(poles: Array, size: float, *, discrete: bool, tol: float) -> Array:
    """Return for each pole whether it is unstable: beyond the boundary by more than the tolerance."""
    width = boundary_width(size, discrete=discrete, tol=tol)
    return distance_to_boundary(poles, discrete=discrete) < -width


def is_stable_matrix(A: Array, *, discrete: bool) -> bool:
    """Return whether all eigenvalues are inside the stability boundary, however near to it."""
    return bool(np.all(is_stable_pole(np.linalg.eigvals(A), 0.0, discrete=discrete, tol=0.0)))


def count_unstable(A: Array, *, discrete: bool, tol: float = STABILITY_TOL) -> int:
    """Return the number of unstable and marginal eigenvalues."""
    stable = is_stable_pole(np.linalg.eigvals(A), matrix_size(A), discrete=discrete, tol=tol)
    return int(np.count_nonzero(~stable))


def suspected_timebase(poles: Array, *, discrete: bool) -> str:
    """Return advice if all poles would be stable with the other timebase: dt is easily forgotten."""
    if not np.all(distance_to_boundary(poles, discrete=not discrete) > 0):
        return ""
    if discrete:
        return "; all poles are in the left half plane: a continuous model has dt = 0"
    return "; all poles are inside the unit circle: a discrete model needs its dt"


def no_gramian_message(poles: Array, A: Array, *, discrete: bool) -> str:
    """Return the error message for a model without Gramians because of these unstable or marginal poles."""
    pole_list = ", ".join(f"{pole:.3g}" for pole in poles[:3]) + (", ..." if poles.size > 3 else "")
    return (
        f"the model has {poles.size} unstable or marginal pole(s) ({pole_list}), so "
        "no Gramian exists; reduce() and hankel_singular_values() separate such poles automatically"
        f"{suspected_timebase(np.linalg.eigvals(A), discrete=discrete)}"
    )


def split_schur(A: Array, *, discrete: bool, tol: float, size: float | None = None) -> SchurSplit:
    """Bring A to Schur form with the stable poles first and decouple the other poles.

    ``size`` is its :func:`matrix_size`, if known.

    Source: Bavely and Stewart, SIAM J. Numer. Anal. 16 (1979).
    """
    n = A.shape[0]
    size = matrix_size(A) if size is None else size
    T, Z = schur_form(A)
    poles = schur_poles(T)
    stable = _classify(T, poles, size, discrete=discrete, tol=tol)
    n_stable = int(np.count_nonzero(stable))
    if n_stable == n:
        return SchurSplit(T, np.zeros((0, 0), T.dtype), Z, Z, poles)
    if n_stable == 0:
        return SchurSplit(np.zeros((0, 0), T.dtype), T, Z, Z)
    T, Z = _reorder(T, Z, stable)
    head, tail = slice(0, n_stable), slice(n_stable, n)
    (trsyl,) = sla.get_lapack_funcs(("trsyl",), (T,))
    # T_s X - X T_u = -T_12 removes the coupling; X exists because the parts have no pole in common
    X, scale, info = trsyl(T[head, head], T[tail, tail], -T[head, tail], isgn=-1)
    if scale == 0 or info < 0 or not np.all(np.isfinite(X)):
        raise ConvergenceError(
            "a stable and an unstable pole are too close to be separated; set stability_tol= so that "
            "both fall on the same side"
        )
    X = X / scale
    right, left = Z.copy(), Z.copy()
    right[:, tail] += Z[:, head] @ X
    left[:, head] -= Z[:, tail] @ X.conj().T
    return SchurSplit(T[head, head], T[tail, tail], right, left)


def _reorder(T: Array, Z: Array, stable: Array) -> tuple[Array, Array]:
    trsen, trsen_lwork = sla.get_lapack_funcs(("trsen", "trsen_lwork"), (T,))
    lwork = trsen_lwork(stable.astype(int), T, job="N")[0]
    result = trsen(stable.astype(int), T, Z, job="N", lwork=max(int(np.real(lwork)), 1))
    if result[-1] != 0:
        raise ConvergenceError(
            "the Schur form could not be reordered: some poles are too close to each other"
        )
    return result[0], result[1]


def _classify(T: Array, poles: Array, size: float, *, discrete: bool, tol: float) -> Array:
    stable = is_stable_pole(poles, size, discrete=discrete, tol=tol)
    distance = distance_to_boundary(poles, discrete=discrete)
    # Rounding splits a multiple pole on the boundary (a double integrator) into a cluster around it, with
    # members on both sides. A member of a cluster centered on the boundary is marginal too if rounding
    # alone could have moved it there: a k-fold pole moves by up to eps^(1/k), and a matrix within rounding
    # of A has a pole on the boundary.
    complex_T: Array | None = None
    for i in np.flatnonzero(stable & (distance < (100 * EPS) ** (1 / MAX_CLUSTER) * size)):
        cluster = np.abs(poles - poles[i]) <= 4 * distance[i]
        members = int(np.count_nonzero(cluster))
        if not 2 <= members <= MAX_CLUSTER or distance[i] > (100 * EPS) ** (1 / members) * size:
            continue
        if abs(float(distance[cluster].mean())) > 0.1 * distance[i]:
            continue
        if complex_T is None:
            complex_T = T if np.iscomplexobj(T) else sla.rsf2csf(T, np.eye(T.shape[0]))[0]
        boundary_point = poles[i] / abs(poles[i]) if discrete else 1j * poles[i].imag
        if _distance_to_pole(complex_T, boundary_point) <= 10 * EPS * size:
            stable[i] = False
    # a conjugate pair stays together
    if not (np.iscomplexobj(T) or stable.all()):
        first = np.flatnonzero(np.diag(T, -1))
        pair_is_stable = stable[first] & stable[first + 1]
        stable[first] = stable[first + 1] = pair_is_stable
    return stable


#: Largest number of poles in a cluster that is considered.
MAX_CLUSTER = 3


def _distance_to_pole(T: Array, point: complex) -> float:
    """Return the size of the smallest change of a triangular T that puts a pole at a point.

    That is the smallest singular value of T - point, computed by inverse iteration.
    """
    shifted = T - point * np.eye(T.shape[0])
    v: Any = np.random.default_rng(0).standard_normal(T.shape[0]) + 0j
    size = 0.0
    for step in range(6):
        v = v / float(np.linalg.norm(v))
        v, info = ztrtrs(shifted, v, trans=2 * (step % 2))
        size = float(np.linalg.norm(v))
        if info != 0 or not math.isfinite(size):
            return 0.0
    return 1 / size


def checked_tol(stability_tol: float) -> float:
    """Check the tolerance that separates marginal poles from stable ones."""
    requirement = "stability_tol must be a number in [0, 1)"
    return real_number(stability_tol, lambda tol: 0 <= tol < 1, requirement, OrderError)
