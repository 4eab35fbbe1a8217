"""Hankel singular values and the balanced realization, from Gramian factors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla
from scipy.linalg.blas import dtrsm, ztrsm
from scipy.linalg.lapack import dgeqp3, dgesvd, dgetrf, dormqr, zgetrf

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ReductionWarning
from ..gramians.factorize import FactoredSystem
from ..gramians.factorize import factorize as factored_system
from ..gramians.low_rank import LowRankFactors, low_rank_factors
from ..gramians.smith import compress, upper_triangle
from ..gramians.stability import STABILITY_TOL, checked_tol, is_stable_pole
from ..models.linear_model import LinearModel, Timebase, as_model
from ..models.modal import check_transform, diagonalize
from ..models.pencil import Factorize
from ..models.projection import ProjectedSystem, project, project_exactly, rounding_of_projection
from ..models.scaling import in_range
from ..models.sparse_model import SparseModel, by_size
from .order import repeated_clusters

#: Factor products up to this size are brought to graded form first, so that small singular values are
#: accurate.
GRADED_LIMIT = 256

#: If the smallest pivot of that form is at least this fraction of the largest, the singular vectors come from
#: divide and conquer, whose relative error is about EPS divided by it; else from the QR iteration.
SIMILAR_VALUES = 1e-4

#: The rounding of a projection is accepted below this fraction of the bound of the removed states, or below
#: this fraction of the noise floor.
NEGLIGIBLE_OF_BOUND = 1e-3
NEGLIGIBLE_OF_FLOOR = 0.1


@dataclass(frozen=True)
class BalancedFactors:
    """The SVD U diag(values) V^H of Lo^H Lc, the product of two Gramian factors.

    The columns of Lc V and Lo U, divided by the square roots of ``values``, are the balancing transformation.
    They are computed as far as they are asked for: most orders are small.
    """

    values: Array
    controllability: Array
    observability: Array
    U: Array
    V: Array

    @classmethod
    def of(cls, controllability: Array, observability: Array) -> BalancedFactors:
        """Return the SVD of the product of these factors, (n, k) each."""
        U, values, Vh = _svd(observability.conj().T @ controllability)
        return cls(values, controllability, observability, U, Vh.conj().T)

    def bases(self, r: int) -> tuple[Array, Array]:
        """Return left and right (n_stable, r) with left^H right = 1 that balance the leading r states.

        The bases of fewer states are their leading columns.
        """
        scale = 1 / np.sqrt(self.values[:r])
        left, right = self.observability @ self.U[:, :r] * scale, self.controllability @ self.V[:, :r] * scale
        if r == 0:
            return left, right
        # The rounding of right^H left, of size eps * sigma_1 / sigma_r, is corrected. Without pivots its LU
        # factors change a state only by the states before it, which are more accurate.
        complex_ = np.iscomplexobj(left) or np.iscomplexobj(right)
        # trsm, not trtrs: OpenBLAS starts threads for the latter, which cost milliseconds on a busy machine
        getrf, trsm = (zgetrf, ztrsm) if complex_ else (dgetrf, dtrsm)
        lower, pivots, info = getrf(right.conj().T @ left)
        if info != 0 or (pivots != np.arange(r)).any():
            return left @ sla.inv(right.conj().T @ left), right
        left = trsm(1.0, lower, left.T, trans_a=1).T
        right = trsm(1.0, lower.conj(), right.T, lower=1, diag=1).T
        return left, right


@dataclass(frozen=True)
class Balancing(BalancedFactors):
    """The bases that balance the stable part of a system, in the states of ``factored``.

    Gains (``values``, ``noise_floor``, ``rounding``) are in the units of ``factored.scaled_system``.
    """

    factored: FactoredSystem
    noise_floor: float
    rounding: float

    @property
    def rank(self) -> int:
        """Number of singular values above the noise floor."""
        return int(np.count_nonzero(self.values > self.noise_floor))

    @cached_property
    def n_computable(self) -> int:
        """Number of states above the rounding errors; the directions of all others would be arbitrary."""
        return int(np.count_nonzero(self.values > self.rounding))

    def bases_in_scaled_states(self, r: int) -> tuple[Array, Array]:
        """Return the bases of :meth:`bases` in the states of ``factored.scaled_system``."""
        left, right = self.bases(r)
        return self.factored.left_states(left), self.factored.right_states(right)


def factor_product(factored: FactoredSystem) -> tuple[Array, Array, Array, float]:
    """Return Lc, Lo, Lo^H Lc and the size of the rounding errors in that product."""
    Lc, Lo = factored.controllability, factored.observability
    if min(Lc.shape[1], Lo.shape[1]) <= GRADED_LIMIT:
        Lc, Lo = compress(Lc), compress(Lo)
    rounding = EPS * float(np.linalg.norm(np.abs(Lo).T @ np.abs(Lc)))
    return Lc, Lo, Lo.conj().T @ Lc, rounding


def noise_floor_of(values: Array, rounding: float, factored: FactoredSystem) -> float:
    """Return the size below which a singular value is meaningless for the choice of an order.

    The rounding of a backward stable solver is of size eps sigma_1 for each state, although the product of
    its factors may have smaller singular values. Doubling loses more where powers of A grow before they
    vanish, as those of matrices far from normal do.
    """
    n = factored.n_stable + factored.n_unstable
    return max(rounding, factored.rounding, n * EPS * float(values.max(initial=0.0)))


def balance(factored: FactoredSystem, *, reciprocal: bool = False) -> Balancing:
    """Return the singular values of the factor product and the balancing bases.

    Bases of repeated values are chosen for the truncation of the system or, with ``reciprocal``, of the
    system with s replaced by 1 / s, which is residualization.
    """
    Lc, Lo, product, rounding = factor_product(factored)
    U, values, Vh = _svd(product)
    floor = noise_floor_of(values, rounding, factored)
    balancing = Balancing(values, Lc, Lo, U, Vh.conj().T, factored, floor, rounding)
    clusters = repeated_clusters(values[: balancing.n_computable])
    if clusters:
        _separate_repeated(balancing, clusters, reciprocal)
    return balancing


def _separate_repeated(balancing: Balancing, clusters: list[slice], reciprocal: bool) -> None:
    """Choose, in place, bases of repeated singular values that can be truncated at any state.

    The SVD returns an arbitrary basis of the space of such a value. A state in it that neither the input nor
    earlier states drive would become a pole on the stability boundary if the states after it were removed.
    So the states are ordered by controllability: a staircase form.
    """
    left, right = balancing.bases(balancing.n_computable)
    A, B = left.conj().T @ balancing.factored.A @ right, left.conj().T @ balancing.factored.B
    if reciprocal:
        A = np.linalg.inv(A)
        B = A @ B
    for cluster in clusters:
        Q = _staircase(A[cluster, cluster], np.concatenate([B[cluster], A[cluster, : cluster.start]], axis=1))
        A[cluster], B[cluster] = Q.conj().T @ A[cluster], Q.conj().T @ B[cluster]
        A[:, cluster] = A[:, cluster] @ Q
        for vectors in (balancing.U, balancing.V):
            vectors[:, cluster] = vectors[:, cluster] @ Q


def _staircase(A: Array, B: Array) -> Array:
    """Return a unitary basis of the ranges of B, A B, A^2 B, ... in turn, strongest directions first."""
    n = A.shape[0]
    Q, block = np.zeros((n, 0), A.dtype), B
    size = max(float(np.linalg.norm(A)), float(np.linalg.norm(B)))
    while Q.shape[1] < n:
        for _ in range(2):
            block = block - Q @ (Q.conj().T @ block)
        directions, strength, _ = np.linalg.svd(block, full_matrices=False)
        directions = directions[:, strength > 1e-12 * size]
        if directions.shape[1] == 0:
            directions = sla.null_space(Q.conj().T) if Q.shape[1] else np.eye(n)
        Q = np.concatenate([Q, directions[:, : n - Q.shape[1]]], axis=1)
        block = A @ directions
    return Q


def singular_values(factored: FactoredSystem) -> tuple[Array, float]:
    """Return all n Hankel singular values, inf first, and the noise floor."""
    _, _, product, rounding = factor_product(factored)
    values = _svd_values(product)[: factored.n_stable]
    return pad_values(values, factored), noise_floor_of(
        values, rounding, factored
    ) * factored.scaled_system.gain


def pad_values(values: Array, factored: FactoredSystem) -> Array:
    """Return n values in the model's units: inf for unstable poles, the values, and zeros."""
    system = factored.scaled_system
    values = in_range(values, system.exponent, "Hankel norm")
    n_stable, n_unstable = factored.n_stable, factored.n_unstable
    if values.size == n_stable and not n_unstable:
        return values
    return np.concatenate([np.full(n_unstable, np.inf), values, np.zeros(n_stable - values.size)])


def _svd(M: Array) -> tuple[Array, Array, Array]:
    if 0 in M.shape:
        return np.zeros((M.shape[0], 0)), np.zeros(0), np.zeros((0, M.shape[1]))
    if not _may_be_graded(M):
        return np.linalg.svd(M, full_matrices=False)
    if M.shape[0] < M.shape[1]:
        U, values, Vh = _svd(M.T)
        return Vh.T, values, U.T
    n = M.shape[1]
    qr, pivots, tau = _graded(M)
    R = qr[:n] * upper_triangle(n)
    similar = abs(R[-1, -1]) >= SIMILAR_VALUES * abs(R[0, 0])
    U, values, V_of_pivots = np.linalg.svd(R) if similar else _svd_by_qr_iteration(R)
    padded = np.zeros(M.shape, order="F")
    padded[:n] = U
    U = dormqr("L", "N", qr, tau, padded, lwork=64 * n, overwrite_c=1)[0]
    Vh = np.empty_like(V_of_pivots)
    Vh[:, pivots - 1] = V_of_pivots
    return U, values, Vh


def _svd_by_qr_iteration(R: Array) -> tuple[Array, Array, Array]:
    """Return the SVD of a triangular matrix with graded rows.

    The QR iteration without shifts computes small singular values of a bidiagonal matrix, and their vectors,
    with as many digits as large ones. Divide and conquer does not.

    Source: Demmel and Kahan, SIAM J. Sci. Stat. Comput. 11 (1990).
    """
    U, values, Vh, info = dgesvd(R, lwork=70 * R.shape[0])
    if info != 0:
        raise ConvergenceError("the singular value decomposition of the factors did not converge")
    return U, values, Vh


def _svd_values(M: Array) -> Array:
    if 0 in M.shape:
        return np.zeros(0)
    if _may_be_graded(M):
        M = M if M.shape[0] >= M.shape[1] else M.T
        n = M.shape[1]
        M = _graded(M)[0][:n] * upper_triangle(n)
    return np.asarray(np.linalg.svd(M, compute_uv=False))


def _may_be_graded(M: Array) -> bool:
    return not np.iscomplexobj(M) and min(M.shape) <= GRADED_LIMIT


def _graded(M: Array) -> tuple[Array, Array, Array]:
    """Return a QR decomposition with pivoting: R above the reflectors of Q, the pivots and tau.

    The rows of R are graded from large to small, and then bidiagonalization, and so the SVD, computes small
    singular values with about the relative accuracy of one-sided Jacobi.

    Source: Barlow, SIAM J. Matrix Anal. Appl. 23 (2002).
    """
    n = M.shape[1]
    # the workspace is that of blocks of 32 columns
    qr, pivots, tau, _, _ = dgeqp3(M, lwork=2 * n + 32 * (n + 1))
    return qr, pivots, tau


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
        in which A and E may be sparse and E may be singular. Infinite poles have no values here.
    dt : 0, True, float or None
        Timebase of a tuple, as in python-control. Other types have their own.
    stability_tol : float
        Poles nearer to the stability boundary than this, relative to the size of A, count as
        marginal.
    solver : {"auto", "dense", "low_rank"}
        "low_rank" uses sparse factorizations and never makes A dense. "auto" uses it for sparse tuples of
        more than 5000 states, and for sparse second-order models if their Gramians have low rank or the
        models are too large for the dense solver.
    accuracy : float, optional
        Required accuracy of the low-rank solver, relative to the largest value; default 1e-4.
        ``reduce(...).certificate`` contains the accuracy reached, and whether it is proved.
    factorize : callable, optional
        A sparse solver to use instead of that of scipy: a function from a sparse matrix (CSC, real or
        complex) to an object with ``solve(b, trans)``, trans "N" or "T".

    Returns
    -------
    ndarray, shape (n,), or (k,) with the low-rank solver
        In descending order, in the unit of the gain from input to output. ``inf`` is first, once for each
        unstable or marginal pole. The low-rank solver returns the values that it has computed.

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
    """Hankel singular values, with the solver that computed them."""

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

    def of_large(large: SparseModel) -> SolvedSpectrum:
        factors = low_rank_factors(large, accuracy, factorize, tol)
        floor = factors.certificate * factors.problem.gain
        return SolvedSpectrum(values_of_large(factors), floor, "low_rank", factors.residual)

    def of_dense(model: LinearModel) -> SolvedSpectrum:
        factored = factored_system(model, tol)
        return SolvedSpectrum(*singular_values(factored), factored.solver, factored.residual)

    return by_size(sys, dt, solver, of_large, of_dense)


def values_of_large(factors: LowRankFactors) -> Array:
    """Return the singular values in the units of the model, inf first for unstable and marginal poles."""
    problem = factors.problem
    finite = in_range(factors.values, problem.input_exponent + problem.output_exponent, "Hankel norm")
    return np.concatenate([np.full(factors.n_unstable, np.inf), finite])


def balanced_realization(
    sys: Any, *, return_transform: bool = False, dt: Timebase = 0, stability_tol: float = STABILITY_TOL
) -> Any:
    """Return the balanced realization: both Gramians are equal and diagonal.

    Parameters
    ----------
    sys, dt, stability_tol
        As in :func:`hankel_singular_values`.
    return_transform : bool
        Return ``(model, T)``, T of shape (n, r) with x = T z for the states x of ``sys`` and z of the
        result. If no state was removed, T is square and the matrices are T^-1 A T, T^-1 B and C T; otherwise
        ``reduce(sys, r)`` has the transformation in both directions, ``left`` and ``right``. In MATLAB's
        ``balreal`` T is the inverse.

    Returns
    -------
    model
        The same type, dt and names as ``sys``. Unstable and marginal modes are first and are not balanced.
        States that are not reachable or not observable cannot be balanced and are removed.
    model, T
        With ``return_transform=True``.

    Warns
    -----
    ReductionWarning
        States were removed, so the result has fewer states than ``sys``.

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
    out, _, T = truncate_balanced(model, balancing, rank)
    while rank and unstable_poles(out, factored.n_unstable).size:
        rank -= 1
        out, _, T = truncate_balanced(model, balancing, rank)
    if out.n_states < model.n_states:
        floor = balancing.noise_floor * factored.scaled_system.gain
        warnings.warn(
            f"{model.n_states - out.n_states} of {model.n_states} states are not reachable or not observable "
            f"above the noise floor {floor:.1e} and were removed",
            ReductionWarning,
            stacklevel=2,
        )
    if model.log_poles is not None:
        # return the model in modal states
        modal, to_balanced = diagonalize(out)
        return (modal, T @ to_balanced) if return_transform else modal
    return (out.to_user(), T) if return_transform else out.to_user()


def unstable_poles(model: LinearModel, n_unstable: int) -> Array:
    """Return the poles outside the stability region, except those of the first n_unstable states."""
    A = model.A[n_unstable:, n_unstable:]
    poles = np.linalg.eigvals(A)
    return poles[~is_stable_pole(poles, 0.0, discrete=model.is_discrete, tol=0.0)]


def truncate_balanced(model: LinearModel, balancing: Balancing, r: int) -> tuple[LinearModel, Array, Array]:
    """Truncate to the unstable states and the r leading balanced ones; return also left and right.

    ``left.T @ A @ right`` is the new A, also for complex models, for which left is conjugated.
    """
    factored = balancing.factored
    left, right = balancing.bases_in_scaled_states(r)
    out = assemble_model(model, balancing, *_project_accurately(balancing, left, right), model.D)
    scaling = factored.scaled_system
    # scales B and C of the balanced model equally, so that its Gramians are equal in the model's units too
    state_scale = 2.0 ** ((scaling.input_exponent - scaling.output_exponent) // 2)
    W, V = scaling.unscale_left(left) / state_scale, scaling.unscale_right(right) * state_scale
    if factored.n_unstable:
        W = np.concatenate([scaling.unscale_left(factored.unstable_left), W], axis=1)
        V = np.concatenate([scaling.unscale_right(factored.unstable_right), V], axis=1)
    return out, W.conj(), V


def _project_accurately(balancing: Balancing, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return A, B and C of a projection onto balanced states.

    They are computed from the matrices of the model, not from its Schur form, whose rounding can be larger
    than all the removed states. Products with twice the digits cost ten times as much, so they are used only
    where rounding is not negligible beside the removed states.
    """
    r = left.shape[1]
    system, values = balancing.factored.scaled_system, balancing.values
    bound = 2 * float(values[r:].sum())
    rounding = rounding_of_projection(system, left, right, values[:r])
    if rounding <= max(NEGLIGIBLE_OF_BOUND * bound, NEGLIGIBLE_OF_FLOOR * balancing.noise_floor):
        return project(system, left, right)
    projection = project_exactly(system, left, right)
    return projection.A, projection.B, projection.C


def assemble_model(
    model: LinearModel, balancing: Balancing, A: Array, B: Array, C: Array, D: Array
) -> LinearModel:
    """Return the model, in its units, of the unstable states and of balanced states in scaled units."""
    factored = balancing.factored
    system = factored.scaled_system
    sqrt_gain = 2.0 ** ((system.exponent) // 2)
    if factored.n_unstable == 0:
        return model.with_matrices(A, B * sqrt_gain, C * sqrt_gain, D)
    unstable = project_unstable(factored)
    return model.with_matrices(
        _block_diagonal(unstable.A, A),
        np.concatenate([unstable.B * 2.0**system.input_exponent, B * sqrt_gain]),
        np.concatenate([unstable.C * 2.0**system.output_exponent, C * sqrt_gain], axis=1),
        D,
    )


def project_unstable(factored: FactoredSystem) -> ProjectedSystem:
    """Return the unstable and marginal states; a pole that is exactly zero stays so.

    A state on which nothing depends, such as that of an integrator behind a plant, has the pole 0 in the
    Schur form too, exactly; the product with the bases would put it at a rounding error on either side.
    """
    part = project_exactly(factored.scaled_system, factored.unstable_left, factored.unstable_right)
    schur = factored.unstable_A
    A, A_low = part.A.copy(), part.A_low.copy()
    for i in np.flatnonzero(np.diag(schur) == 0):
        if not schur[i:, i].any() and not schur[i, :i].any():
            for M in (A, A_low):
                M[i:, i] = M[i, :i] = 0.0
    return replace(part, A=A, A_low=A_low)


def _block_diagonal(first: Array, second: Array) -> Array:
    k, n = first.shape[0], first.shape[0] + second.shape[0]
    out = np.zeros((n, n), np.result_type(first, second))
    out[:k, :k] = first
    out[k:, k:] = second
    return out
