"""Hankel singular values and the balanced realisation, from Gramian factors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..errors import ReductionWarning
from ..gramians.factorize import FactoredSystem
from ..gramians.factorize import factorize as factored_system
from ..gramians.low_rank import LowRankFactors, low_rank_factors
from ..gramians.smith import compress
from ..gramians.stability import STABILITY_TOL, checked_tol, is_stable_pole
from ..models.linear_model import LinearModel, Timebase, as_model
from ..models.modal import check_transform, diagonalised
from ..models.pencil import Factorize
from ..models.projection import exactly_projected, projected, rounding_of_projection
from ..models.scaling import in_range
from ..models.sparse_model import SparseModel, dense_model, large_or_none
from .order import repeated

#: Factor products up to this size go through one-sided Jacobi, which keeps the digits of small
#: singular values; larger ones through bidiagonalisation, which is some ten times faster there.
JACOBI_LIMIT = 256

#: Rounding of a projection below this share of the bound of the states left out, or this share of the noise
#: floor, is let be.
UNSEEN = 1e-3
UNSEEN_BY_CHOICE = 0.1


@dataclass(frozen=True)
class Balancing:
    """The SVD of the factor product, and the bases that balance the stable part.

    ``right`` is Lc V and ``left`` is Lo U in the coordinates of ``factored``; scaled by the inverse
    square roots of ``values`` they are the balancing transformation. Gains (``values``, ``noise_floor``,
    ``rounding``) are in the units of ``factored.scaled``.
    """

    factored: FactoredSystem
    values: Array
    left: Array
    right: Array
    noise_floor: float
    rounding: float

    @property
    def rank(self) -> int:
        """Number of singular values above the noise floor."""
        return int(np.count_nonzero(self.values > self.noise_floor))

    @property
    def computable(self) -> int:
        """Number of states that can be told from rounding: above it every direction would be arbitrary."""
        return int(np.count_nonzero(self.values > self.rounding))

    @property
    def below_rank(self) -> float:
        """What the states below the noise floor can add to a gain, with the floor itself for rounding."""
        return 2 * float(self.values[self.rank :].sum()) + self.noise_floor

    def bases(self, r: int) -> tuple[Array, Array]:
        """Return left and right (n_stable, r) with left^H right = 1 that balance the leading r states.

        Those of fewer states are their leading columns.
        """
        scale = 1 / np.sqrt(self.values[:r])
        left, right = self.left[:, :r] * scale, self.right[:, :r] * scale
        if r == 0:
            return left, right
        # Rounding of size eps * sigma_1 / sigma_r in right^H left is taken out. Without pivots its LU factors
        # change a state by those before it only, which are better known.
        lower, pivots = sla.lu_factor(right.conj().T @ left, check_finite=False)
        if np.any(pivots != np.arange(r)):
            return left @ sla.inv(right.conj().T @ left), right
        left = sla.solve_triangular(lower, left.T, trans="T", check_finite=False).T
        right = sla.solve_triangular(
            lower.conj(), right.T, lower=True, unit_diagonal=True, check_finite=False
        ).T
        return left, right

    def in_scaled_states(self, r: int) -> tuple[Array, Array]:
        """Return the bases of :meth:`bases` in the states of ``factored.scaled``."""
        left, right = self.bases(r)
        return self.factored.left_states(left), self.factored.right_states(right)


def factor_product(factored: FactoredSystem) -> tuple[Array, Array, Array, float]:
    """Return Lc, Lo, Lo^H Lc and the size of the rounding errors in that product."""
    Lc, Lo = factored.controllability, factored.observability
    if min(Lc.shape[1], Lo.shape[1]) <= JACOBI_LIMIT:
        Lc, Lo = compress(Lc), compress(Lo)
    rounding = EPS * float(np.linalg.norm(np.abs(Lo).T @ np.abs(Lc)))
    return Lc, Lo, Lo.conj().T @ Lc, rounding


def noise_floor_of(values: Array, rounding: float, factored: FactoredSystem) -> float:
    """Return the size below which a singular value means nothing to somebody who chooses an order.

    The rounding of a backward stable solver is of size eps sigma_1 for each state, whatever the product of
    the factors it returned would still resolve.
    """
    n = factored.n_stable + factored.n_kept
    return max(rounding, n * EPS * float(values.max(initial=0.0)))


def balance(factored: FactoredSystem, *, reciprocal: bool = False) -> Balancing:
    """Return the singular values of the factor product and the balancing bases.

    Bases of repeated values are chosen for leaving states out of the system or, with ``reciprocal``,
    of the system with s replaced by 1 / s, which is what residualization does.
    """
    Lc, Lo, product, rounding = factor_product(factored)
    U, values, Vh = _svd(product)
    floor = noise_floor_of(values, rounding, factored)
    balancing = Balancing(factored, values, Lo @ U, Lc @ Vh.conj().T, floor, rounding)
    clusters = repeated(values[: balancing.computable])
    if clusters:
        _untangle(balancing, clusters, reciprocal)
    return balancing


def _untangle(balancing: Balancing, clusters: list[slice], reciprocal: bool) -> None:
    """Choose, in place, bases of repeated singular values in which they can be cut anywhere.

    The SVD gives any basis of the space of such a value. A state of it that neither the input nor the
    states before it drive would leave a pole on the stability boundary if the others were left out,
    so the states are ordered by how they are reached: a staircase form.
    """
    left, right = balancing.bases(balancing.computable)
    A, B = left.conj().T @ balancing.factored.A @ right, left.conj().T @ balancing.factored.B
    if reciprocal:
        A = np.linalg.inv(A)
        B = A @ B
    for cluster in clusters:
        Q = _staircase(A[cluster, cluster], np.concatenate([B[cluster], A[cluster, : cluster.start]], axis=1))
        A[cluster], B[cluster] = Q.conj().T @ A[cluster], Q.conj().T @ B[cluster]
        A[:, cluster] = A[:, cluster] @ Q
        for bases in (balancing.left, balancing.right):
            bases[:, cluster] = bases[:, cluster] @ Q


def _staircase(A: Array, B: Array) -> Array:
    """Return a unitary basis: what B reaches, strongest first, then what that reaches, and so on."""
    n = A.shape[0]
    Q, reached = np.zeros((n, 0), A.dtype), B
    size = max(float(np.linalg.norm(A)), float(np.linalg.norm(B)))
    while Q.shape[1] < n:
        for _ in range(2):
            reached = reached - Q @ (Q.conj().T @ reached)
        directions, strength, _ = np.linalg.svd(reached, full_matrices=False)
        directions = directions[:, strength > 1e-12 * size]
        if directions.shape[1] == 0:
            directions = sla.null_space(Q.conj().T) if Q.shape[1] else np.eye(n)
        Q = np.concatenate([Q, directions[:, : n - Q.shape[1]]], axis=1)
        reached = A @ directions
    return Q


def singular_values(factored: FactoredSystem) -> tuple[Array, float]:
    """Return all n Hankel singular values, inf first, and the noise floor."""
    _, _, product, rounding = factor_product(factored)
    values = _svd_values(product)[: factored.n_stable]
    return padded(values, factored), noise_floor_of(values, rounding, factored) * factored.scaled.gain


def padded(values: Array, factored: FactoredSystem) -> Array:
    """Return the values in the model's units, with inf in front for kept poles and zeros behind up to n."""
    system = factored.scaled
    values = in_range(values, system.input_exponent + system.output_exponent, "Hankel norm")
    zeros = np.zeros(factored.n_stable - values.size)
    return np.concatenate([np.full(factored.n_kept, np.inf), values, zeros])


def _svd(M: Array) -> tuple[Array, Array, Array]:
    if 0 in M.shape:
        return np.zeros((M.shape[0], 0)), np.zeros(0), np.zeros((0, M.shape[1]))
    if np.iscomplexobj(M) or min(M.shape) > JACOBI_LIMIT:
        U, values, Vh = np.linalg.svd(M, full_matrices=False)
        return U, values, Vh
    if M.shape[0] < M.shape[1]:
        U, values, Vh = _svd(M.T)
        return Vh.T, values, U.T
    jacobi = _jacobi(M, vectors=True)
    return jacobi if jacobi is not None else np.linalg.svd(M, full_matrices=False)


def _svd_values(M: Array) -> Array:
    if 0 in M.shape:
        return np.zeros(0)
    if not np.iscomplexobj(M) and min(M.shape) <= JACOBI_LIMIT:
        jacobi = _jacobi(M if M.shape[0] >= M.shape[1] else M.T, vectors=False)
        if jacobi is not None:
            return jacobi[1]
    return sla.svdvals(M, check_finite=False)


def _jacobi(M: Array, *, vectors: bool) -> tuple[Array, Array, Array] | None:
    """One-sided Jacobi SVD; None where LAPACK reports that it did not converge.

    Source: Drmac and Veselic, SIAM J. Matrix Anal. Appl. 29 (2008).
    """
    (gejsv,) = sla.get_lapack_funcs(("gejsv",), (M,))
    size = float(np.abs(M).max())
    if size == 0:
        return np.eye(*M.shape), np.zeros(M.shape[1]), np.eye(M.shape[1])
    # joba=2: rows and columns both graded; jobr=0: nothing is set to zero for being small
    scaled, U, V, work, _, info = gejsv(
        M / size, joba=2, jobu=0 if vectors else 3, jobv=0 if vectors else 3, jobr=0
    )
    if info != 0:
        return None
    values = scaled * (work[0] / work[1]) * size
    return U[:, : M.shape[1]], values, V.T


def hankel_singular_values(
    sys: Any,
    *,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
    solver: Literal["auto", "dense", "low_rank"] = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
) -> Array:
    """Return the Hankel singular values of a model.

    Parameters
    ----------
    sys : model
        ``control.StateSpace``, ``control.TransferFunction``, a ``scipy.signal`` lti or dlti,
        :class:`ModalSystem`, :class:`SecondOrderModel`, or a tuple ``(A, B, C, D)`` or ``(A, B, C, D, E)``,
        in which A and E may be sparse.
    dt : 0, True, float or None
        Timebase of a tuple, as in python-control. Other types carry their own.
    stability_tol : float
        Poles nearer to the stability boundary than this, relative to the size of A, count as
        marginal.
    solver : {"auto", "dense", "low_rank"}
        "low_rank" works with sparse factorizations and never makes A dense. "auto" takes it for sparse
        tuples of more than 5000 states and for sparse models of second order, where these have Gramians of
        low rank or are too large for the dense way.
    accuracy : float, optional
        What the low-rank solver is to be sure of, relative to the largest value; default 1e-4.
        ``reduce(...).certificate`` says what it reached and how sure that is.
    factorize : callable, optional
        Another sparse solver than that of scipy: a function from a sparse matrix (CSC, real or complex) to an
        object with ``solve(b, trans)``, trans "N" or "T".

    Returns
    -------
    ndarray, shape (n,), or (k,) with the low-rank solver
        In falling order, in the unit of the gain from input to output. ``inf`` comes first, once for
        every unstable or marginal pole. The low-rank solver returns those that it has computed.

    Raises
    ------
    ModelError
        The model cannot be used (shapes, NaN, type).
    ConvergenceError
        No solver reached its accuracy.

    Notes
    -----
    Computed as the singular values of Lo^H Lc with Gramian factors Lc, Lo that are never squared
    (Moore, IEEE Trans. Autom. Control 26 (1981); Laub, Heath, Paige, Ward, ibid. 32 (1987)).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0]); B = np.ones((2, 1)); C = np.ones((1, 2))
    >>> hankelred.hankel_singular_values((A, B, C, 0)).round(6)
    array([0.731, 0.019])
    """
    tol = checked_tol(stability_tol)
    return spectrum_of(sys, tol, dt=dt, solver=solver, accuracy=accuracy, factorize=factorize).values


@dataclass(frozen=True)
class SolvedSpectrum:
    """Hankel singular values, and how they were found."""

    values: Array
    noise_floor: float
    solver: str
    residual: float


def spectrum_of(
    sys: Any,
    tol: float,
    *,
    dt: Timebase = 0,
    solver: str = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
) -> SolvedSpectrum:
    """Return the Hankel singular values of any model, dense or large."""

    def by_low_rank(large: SparseModel) -> SolvedSpectrum:
        factors = low_rank_factors(large, accuracy, factorize, tol)
        floor = factors.certificate * factors.problem.gain
        return SolvedSpectrum(values_of_large(factors), floor, "low_rank", factors.residual)

    spectrum = large_or_none(sys, dt, solver, by_low_rank)
    if spectrum is not None:
        return spectrum
    factored = factored_system(dense_model(sys, dt, solver), tol)
    return SolvedSpectrum(*singular_values(factored), factored.solver, factored.residual)


def values_of_large(factors: LowRankFactors) -> Array:
    """Return the singular values in the units of the model, inf first for every pole that is kept."""
    problem = factors.problem
    finite = in_range(factors.values, problem.input_exponent + problem.output_exponent, "Hankel norm")
    return np.concatenate([np.full(factors.kept.A.shape[0], np.inf), finite])


def balanced_realization(
    sys: Any, *, return_transform: bool = False, dt: Timebase = 0, stability_tol: float = STABILITY_TOL
) -> Any:
    """Return the balanced realisation: both Gramians equal and diagonal.

    Parameters
    ----------
    sys, dt, stability_tol
        As in :func:`hankel_singular_values`.
    return_transform : bool
        Return ``(model, T)``, T of shape (n, r) with x = T z for the states x of ``sys`` and z of the
        result. Where no state was left out, T is square and the matrices are T^-1 A T, T^-1 B and C T; else
        ``reduce(sys, r)`` has the transformation in both directions, ``left`` and ``right``. MATLAB's
        ``balreal`` calls its inverse T.

    Returns
    -------
    model
        The same type, dt and names as ``sys``. Unstable and marginal modes stand first, as they are.
        States that are not reachable or not observable cannot be balanced and are left out.
    model, T
        With ``return_transform=True``.

    Warns
    -----
    ReductionWarning
        States were left out, so the result has fewer states than ``sys``.

    Raises
    ------
    ModelError
        The model cannot be used; or it is a transfer function, which has no states, and
        ``return_transform=True``.
    ConvergenceError
        As in :func:`hankel_singular_values`.

    Notes
    -----
    Moore, IEEE Trans. Autom. Control 26 (1981).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0]); B = np.ones((2, 1)); C = np.ones((1, 2))
    >>> balanced = hankelred.balanced_realization((A, B, C, 0))
    >>> hankelred.gramian(balanced, "controllability").round(6) + 0.0
    array([[0.731, 0.   ],
           [0.   , 0.019]])
    """
    model = as_model(sys, dt)
    check_transform(model, return_transform)
    factored = factored_system(model, checked_tol(stability_tol))
    balancing = balance(factored)
    rank = balancing.rank
    out, _, T = truncated(model, balancing, rank)
    while rank and unstable_poles(out, factored.n_kept).size:
        rank -= 1
        out, _, T = truncated(model, balancing, rank)
    if out.n_states < model.n_states:
        floor = balancing.noise_floor * factored.scaled.gain
        warnings.warn(
            f"{model.n_states - out.n_states} of {model.n_states} states are not reachable or not observable "
            f"above the noise floor {floor:.1e} and were left out",
            ReductionWarning,
            stacklevel=2,
        )
    if model.log_poles is not None:
        # handed out in modal states
        modal, to_balanced = diagonalised(out)
        return (modal, T @ to_balanced) if return_transform else modal
    return (out.to_user(), T) if return_transform else out.to_user()


def unstable_poles(model: LinearModel, n_kept: int) -> Array:
    """Return the poles outside the stability region, those of the kept states in front aside."""
    A = model.A[n_kept:, n_kept:]
    poles = np.linalg.eigvals(A) if A.size else np.zeros(0)
    return poles[~is_stable_pole(poles, 0.0, discrete=model.is_discrete, tol=0.0)]


def truncated(model: LinearModel, balancing: Balancing, r: int) -> tuple[LinearModel, Array, Array]:
    """Keep the r leading balanced states behind the kept ones; return also left and right.

    ``left.T @ A @ right`` is the new A, for complex models too (left is conjugated for that).
    """
    f = balancing.factored
    left, right = balancing.in_scaled_states(r)
    out = assembled(model, balancing, *_in_good_arithmetic(balancing, left, right), model.D)
    states, half = f.scaled, 2.0 ** ((f.scaled.input_exponent - f.scaled.output_exponent) // 2)
    onto = np.concatenate([states.left(f.kept_left), states.left(left) / half], axis=1)
    back = np.concatenate([states.right(f.kept_right), states.right(right) * half], axis=1)
    return out, onto.conj(), back


def _in_good_arithmetic(balancing: Balancing, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return A, B and C of a projection onto balanced states.

    From the matrices of the model itself, never from its Schur form, whose rounding can be larger than all
    the states that are left out. Products with twice the digits cost ten times as much, so they are for
    where rounding would be seen beside these states.
    """
    r = left.shape[1]
    system, values = balancing.factored.scaled, balancing.values
    left_out = 2 * float(values[r:].sum())
    rounding = rounding_of_projection(system, left, right, values[:r])
    if rounding <= max(UNSEEN * left_out, UNSEEN_BY_CHOICE * balancing.noise_floor):
        return projected(system, left, right)
    exact = exactly_projected(system, left, right)
    return exact.A, exact.B, exact.C


def assembled(
    model: LinearModel, balancing: Balancing, A: Array, B: Array, C: Array, D: Array
) -> LinearModel:
    """Return the model, in its own units, of the kept states and of balanced states in scaled units."""
    f = balancing.factored
    system = f.scaled
    half = 2.0 ** ((system.input_exponent + system.output_exponent) // 2)
    kept = exactly_projected(system, f.kept_left, f.kept_right)
    return model.with_matrices(
        _block_diagonal(kept.A, A),
        np.concatenate([kept.B * 2.0**system.input_exponent, B * half]),
        np.concatenate([kept.C * 2.0**system.output_exponent, C * half], axis=1),
        D,
    )


def _block_diagonal(first: Array, second: Array) -> Array:
    k, n = first.shape[0], first.shape[0] + second.shape[0]
    out = np.zeros((n, n), np.result_type(first, second))
    out[:k, :k] = first
    out[k:, k:] = second
    return out
