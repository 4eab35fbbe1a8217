"""Second-order models of mechanics, ``M x'' + D x' + K x = B u, y = Cp x + Cv x' + Du u``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from .linear_model import DENSE_LIMIT, LinearModel
from .pencil import FactoredSolver, Factorize, Product, Solver, SparseFamily, as_real, is_hermitian
from .sparse_model import SparseModel, checked_ports, is_sparse, square_sparse

#: The low-rank solver is the default for sparse second-order models with more states than this.
SPARSE_STATES = 500
#: A mode z may be a rigid body mode if |K z| is at most this share of ||K| |z||, as rounding makes it. The
#: slowest mode of a clamped beam has 2.6e-13 with 1000 elements, and 4e-16 with 5000.
RIGID_ROUNDING = 8e-16
#: Up to this many times as much may be rounding or not, and is refused.
UNCERTAIN_UP_TO = 10
#: Rounding of the entries of K changes the squared frequency of a rigid body mode z by EPS |z|^T |K| |z|. All
#: other squared frequencies must be larger by this factor. A clamped beam, whose second one is 39 times the
#: first, does not fulfill this if its first one is rounding.
GAP = 200
#: Number of the slowest modes of the first search for rigid body modes; a body in space has six.
SLOWEST_MODES = 12
#: Steps of inverse iteration for rigid body modes, and the number of other modes that are computed with them.
INVERSE_STEPS = 5
OTHER_MODES = 4
#: A rigid body mode changes by no more than this share if its rounding is removed.
SMALL_CHANGE = 1e-6
#: Number of vectors of the Lanczos iteration for slow modes beyond those of the modes.
OTHER_VECTORS = 24
#: The search is around minus this share of the largest quotient of a diagonal entry of K and that of M.
NEAR_ZERO = 1e-14
#: If no pivot of K is below this share of its largest diagonal entry, K has no rigid body modes.
SMALL_PIVOT = 1e-10
#: A term of the damping below this share of its parts is rounding.
NO_COUPLING = 1e-13
#: A squared frequency below this share of the largest computed one belongs to a rigid body mode.
RIGID = 1e-10
#: Squared frequencies that differ by less than this share may belong to combinations of several modes.
EQUAL_FREQUENCIES = 1e-3

NOT_DISTINGUISHED = (
    "rigid body modes cannot be told from slow modes: a squared frequency below {limit:.1e} may be rounding "
    "of the entries of K, and that of {count} mode(s) is, which may or may not be rigid body modes; use a "
    "coarser mesh, enter K with more correct digits, or add supports that remove the rigid body modes"
)


class SecondOrderModel:
    """A model with mass, damping and stiffness matrices.

    ``M x'' + D x' + K x = B u`` and ``y = Cp x + Cv x' + Du u``, in continuous time. It can be passed to
    every function that accepts a model; its first-order form has 2 N states. It is never converted to
    companion form: dense models are converted to energy coordinates, sparse models require one N x N
    factorization per shift.

    Parameters
    ----------
    M, D, K : array_like or sparse, shape (N, N)
        Mass (symmetric, positive definite), damping, stiffness. With a singular K, rigid body modes are
        integrators and are kept.
    B : array_like or sparse, shape (N, m)
        Forces as functions of the inputs.
    Cp : array_like or sparse, shape (p, N)
        Outputs as functions of the positions.
    Cv : array_like or sparse, shape (p, N), optional
        Outputs as functions of the velocities; default: zero.
    Du : array_like, shape (p, m)
        Direct term.

    Raises
    ------
    ModelError
        The shapes are inconsistent, there is NaN or Inf, or M is not symmetric and positive definite.

    Examples
    --------
    >>> import hankelred
    >>> mass = hankelred.SecondOrderModel([[1.0]], [[0.2]], [[4.0]], [[1.0]], [[1.0]])
    >>> mass.n_states
    2
    >>> hankelred.hankel_singular_values(mass).round(4)
    array([1.3141, 1.1891])
    """

    def __init__(self, M: Any, D: Any, K: Any, B: Any, Cp: Any, Cv: Any = None, Du: Any = 0):
        self.is_sparse = any(is_sparse(each) for each in (M, D, K))
        M = square_sparse(M, "M")
        N = M.shape[0]
        matrices = [M, square_sparse(D, "D", N), square_sparse(K, "K", N)]
        if not is_hermitian(M):
            raise ModelError(
                "M must be symmetric; if it is not, multiply the equations by the inverse of M first"
            )
        if any(np.iscomplexobj(each.data) for each in matrices):
            raise ModelError("M, D and K must be real; pass a complex model as (A, B, C, D, E)")
        self.M, self.D, self.K = matrices if self.is_sparse else (each.toarray() for each in matrices)
        if not np.all(M.diagonal() > 0):
            at = int(np.argmin(M.diagonal()))
            raise ModelError(
                f"M must be positive definite, and M[{at}, {at}] is {M.diagonal()[at]:.3g}; eliminate states "
                "without mass first"
            )
        self.B, self.Cp, self.Du = checked_ports(B, Cp, Du, N, ("M", "B", "Cp", "Du"))
        if Cv is None:
            self.Cv = np.zeros_like(self.Cp)
        else:
            self.Cv = checked_ports(B, Cv, Du, N, ("M", "B", "Cv", "Du"))[1]
        if any(np.iscomplexobj(each) for each in (self.B, self.Cp, self.Cv, self.Du)):
            raise ModelError("B, Cp, Cv and Du must be real; pass a complex model as (A, B, C, D, E)")

    def projected(self, left: Array, right: Array, mass: Array | None = None) -> SecondOrderModel:
        """Return the model for x = right z, multiplied by left^T; `mass` is left^T M right, if known."""
        M, D, K = (_symmetrized(left.T @ (each @ right)) for each in (self.M, self.D, self.K))
        M = M if mass is None else mass
        return SecondOrderModel(M, D, K, left.T @ self.B, self.Cp @ right, self.Cv @ right, self.Du)

    def positions(self, first: Array) -> Array:
        """Return the positions x for the first half of the states of :meth:`dense`.

        This holds for models without rigid body modes.
        """
        stiffness = _cholesky(self._dense(self.K))
        if stiffness is None:
            return first
        return sla.solve_triangular(stiffness, first, lower=True, trans="T", check_finite=False)

    def velocities(self, second: Array) -> Array:
        """Return the velocities x' for the second half of the states of :meth:`dense`.

        This holds for models without rigid body modes.
        """
        mass = self._mass_factor()
        return sla.solve_triangular(mass, second, lower=True, trans="T", check_finite=False)

    @property
    def n_states(self) -> int:
        """Number of states of the first-order form, 2 N."""
        return 2 * self.M.shape[0]

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return int(self.B.shape[1])

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return int(self.Cp.shape[0])

    #: always in continuous time
    dt = 0
    is_discrete = False

    def __repr__(self) -> str:
        return (
            f"<SecondOrderModel of {self.M.shape[0]} degrees of freedom, {self.B.shape[1]} input(s), "
            f"{self.Cp.shape[0]} output(s)>"
        )

    def __hankelred_model__(self) -> LinearModel:
        """Return the dense first-order form in energy coordinates."""
        if self.is_sparse and self.n_states > DENSE_LIMIT:
            raise ModelError(
                f"the sparse second-order model has {self.n_states} states, and models of more than "
                f"{DENSE_LIMIT} are not converted to dense ones: reduce it first"
            )
        return self.dense()

    def __hankelred_sparse_model__(self, solver: str) -> SparseModel | None:
        """Return the sparse form, if the low-rank solver is to be used."""
        if solver == "auto" and not (self.is_sparse and self.n_states > SPARSE_STATES):
            return None
        N = self.M.shape[0]
        B = np.concatenate([np.zeros_like(self.B), self.B])
        C = np.concatenate([self.Cp, self.Cv], axis=1)
        falls_back = solver == "auto" and 2 * N <= DENSE_LIMIT
        return SparseModel(self._pencil, B, C, self.Du, 0, self.dense, falls_back)

    def _pencil(self, factorize: Factorize | None) -> SecondOrderPencil:
        import scipy.sparse as sp

        M, D, K = (sp.csc_array(each) for each in (self.M, self.D, self.K))
        return SecondOrderPencil(M, D, K, factorize)

    def dense(self) -> LinearModel:
        """Return the first-order form in energy coordinates, for any number of states.

        With M = Lm Lm^T and K = Lk Lk^T the states are Lk^T x and Lm^T x', whose squares are twice the
        energies. This avoids a matrix that contains both entries of the size of K and entries of size one.
        Rigid body modes are separated first: the states are their coordinates, their velocities, and Lk^T x
        and Lm^T x' of the other modes, with zeros where rounding would move the poles. If K is not positive
        semidefinite, the positions x are states instead of Lk^T x.
        """
        K = self._dense(self.K)
        if K.shape[0] == 0:  # LAPACK refuses empty factors
            return LinearModel(K, self.B, self.Cp, self.Du, 0)
        stiffness = _cholesky(K)
        if stiffness is None or np.diag(stiffness).min() ** 2 < SMALL_PIVOT * np.diag(K).max():
            rigid = self._rigid_body_modes()
            if rigid.shape[1]:
                return self._with_separate_rigid_body(rigid)
        return self._in_energy_coordinates(stiffness)

    def _rigid_body_modes(self) -> Array:
        """Return an M-orthonormal basis of the null space of K, shape (N, k)."""
        M, K = self._dense(self.M), self._dense(self.K)
        self._mass_factor()
        N = K.shape[0]
        if not is_hermitian(K):
            return np.zeros((N, 0))
        K, M = _symmetrized(K), _symmetrized(M)
        center = NEAR_ZERO * float((np.diag(K) / np.diag(M)).max()) or 1.0

        def solve(b: Array) -> Array:
            return np.asarray(sla.solve(K + center * M, b, assume_a="sym", check_finite=False))

        count = min(SLOWEST_MODES, N)
        while True:
            squares, modes = sla.eigh(K, M, subset_by_index=[0, count - 1], check_finite=False)
            # a step of inverse iteration removes the rounding of the reduction to one matrix
            modes = solve(M @ modes)
            modes = modes @ np.linalg.inv(sla.cholesky(modes.T @ M @ modes))
            modes = without_rounding(K, modes, solve)
            rigid = is_rigid(K, modes)
            if count == N or (squares[-1] > 0 and not rigid[-1]):
                break
            count = min(2 * count, N)
        others = np.abs(np.sum(modes * (K @ modes), axis=0))[~rigid]
        limit = GAP * rounding_of_squares(K, modes[:, rigid])
        if np.any(rigid) and others.min(initial=np.inf) < limit:
            near = np.count_nonzero(others < limit)
            raise ConvergenceError(NOT_DISTINGUISHED.format(count=near, limit=limit))
        return modes[:, rigid]

    def _with_separate_rigid_body(self, Z: Array) -> LinearModel:
        """Return the first-order form with the coordinates of the rigid body modes Z first.

        The other positions are those that M separates from Z.
        """
        M, D = self._dense(self.M), self._dense(self.D)
        k = Z.shape[1]
        Y = np.linalg.qr(M @ Z, mode="complete")[0][:, k:]
        if Y.shape[1] == 0:  # K is zero
            return self._in_energy_coordinates(None)
        rest = self.projected(Y, Y)
        elastic = rest._in_energy_coordinates(_cholesky(rest.K))
        n = elastic.n_states
        mass = rest._mass_factor()

        def coupling(left: Array, right: Array) -> Array:
            product = left.T @ D @ right
            size = np.linalg.norm(np.abs(left).T @ np.abs(D) @ np.abs(right))
            return product if np.linalg.norm(product) > NO_COUPLING * size else np.zeros_like(product)

        A = np.zeros((2 * k + n, 2 * k + n))
        A[:k, k : 2 * k] = np.eye(k)
        A[k : 2 * k, k : 2 * k] = -coupling(Z, Z)
        A[2 * k :, 2 * k :] = elastic.A
        A[k : 2 * k, 2 * k + n // 2 :] = -sla.solve_triangular(mass, coupling(Z, Y).T, lower=True).T
        A[2 * k + n // 2 :, k : 2 * k] = -sla.solve_triangular(mass, coupling(Y, Z), lower=True)
        B = np.concatenate([np.zeros((k, self.n_inputs)), Z.T @ self.B, elastic.B])
        C = np.concatenate([self.Cp @ Z, self.Cv @ Z, elastic.C], axis=1)
        return LinearModel(A, B, C, self.Du, 0)

    def _in_energy_coordinates(self, stiffness: Array | None) -> LinearModel:
        D, K = self._dense(self.D), self._dense(self.K)
        N = D.shape[0]
        mass = self._mass_factor()

        def solve_mass(X: Array) -> Array:
            return sla.solve_triangular(mass, X, lower=True, check_finite=False)

        damping = solve_mass(solve_mass(D).T).T  # Lm^-1 D Lm^-T
        A = np.zeros((2 * N, 2 * N))
        A[N:, N:] = -damping
        if stiffness is not None:
            coupling = solve_mass(stiffness)  # Lm^-1 Lk
            A[:N, N:], A[N:, :N] = coupling.T, -coupling
            position = sla.solve_triangular(stiffness, self.Cp.T, lower=True, check_finite=False).T
        else:
            A[:N, N:], A[N:, :N] = solve_mass(np.eye(N)).T, -solve_mass(K)
            position = self.Cp
        B = np.concatenate([np.zeros_like(self.B), solve_mass(self.B)])
        C = np.concatenate([position, solve_mass(self.Cv.T).T], axis=1)
        return LinearModel(A, B, C, self.Du, 0)

    @staticmethod
    def _dense(M: Any) -> Array:
        return np.asarray(M.toarray() if is_sparse(M) else M)

    def _mass_factor(self) -> Array:
        mass = _cholesky(self._dense(self.M))
        if mass is None:
            raise ModelError(
                "M must be positive definite, and its Cholesky factorization fails; eliminate states without "
                "mass first"
            )
        return mass


def is_rigid(K: Any, modes: Array) -> Array:
    """Tell for each column whether it is a rigid body mode of the stiffness K.

    Raises
    ------
    ConvergenceError
        For some columns this cannot be decided.
    """
    force: Array = np.linalg.norm(K @ modes, axis=0)
    rounding = RIGID_ROUNDING * np.linalg.norm(abs(K) @ np.abs(modes), axis=0)
    uncertain = (force > rounding) & (force <= UNCERTAIN_UP_TO * rounding)
    if np.any(uncertain):
        limit = GAP * rounding_of_squares(K, modes[:, uncertain])
        raise ConvergenceError(NOT_DISTINGUISHED.format(count=np.count_nonzero(uncertain), limit=limit))
    return force <= rounding


def without_rounding(K: Any, modes: Array, solve: Callable[[Array], Array]) -> Array:
    """Return the modes, rigid body modes among them so changed that K z = 0 as well as rounding of z allows.

    Parameters
    ----------
    solve : callable
        Solves linear systems with K plus a small multiple of M.
    """
    change = solve(K @ modes)
    small = np.linalg.norm(change, axis=0) <= SMALL_CHANGE * np.linalg.norm(modes, axis=0)
    return modes - np.where(small, change, 0.0)


def rounding_of_squares(K: Any, modes: Array) -> float:
    """Return how much rounding of the entries of K changes the squared frequencies of these modes."""
    sizes = np.abs(modes)
    return EPS * float(np.sum(sizes * (abs(K) @ sizes), axis=0).max(initial=0.0))


def _symmetrized(M: Array) -> Array:
    """Return the symmetric part of a matrix that is symmetric up to rounding, and any other unchanged."""
    even = (M + M.T) / 2
    return even if np.abs(M - even).max(initial=0.0) <= 1e-10 * np.abs(M).max(initial=0.0) else M


def _cholesky(M: Array) -> Array | None:
    """Return the lower Cholesky factor of a matrix, or None if it is not symmetric positive definite."""
    if not is_hermitian(M):
        return None
    try:
        return np.asarray(sla.cholesky(M, lower=True, check_finite=False))
    except np.linalg.LinAlgError:
        return None


class SecondOrderPencil:
    """The pencil of A = [0 I; -K -D] and E = [I 0; 0 M]; only K - s D + s^2 M is ever factored."""

    is_complex = False

    def __init__(self, M: Any, D: Any, K: Any, factorize: Factorize | None = None):
        self.family = SparseFamily([M, D, K], factorize)
        self.M, self.D, self.K = self.family.matrices
        self._times_M, self._times_D, self._times_K = map(Product, self.family.matrices)
        self.N = int(M.shape[0])
        self.n = 2 * self.N

    @property
    def factorizations(self) -> int:
        """Factorizations made so far."""
        return self.family.factorizations

    def _halves(self, x: Array) -> tuple[Array, Array]:
        return x[: self.N], x[self.N :]

    def A(self, x: Array, *, transposed: bool = False) -> Array:
        """Return A x, or A^T x."""
        p, v = self._halves(x)
        if transposed:
            return np.concatenate([-self._times_K(v, True), p - self._times_D(v, True)])
        return np.concatenate([v, -self._times_K(p) - self._times_D(v)])

    def E(self, x: Array, *, transposed: bool = False) -> Array:
        """Return E x, or E^T x."""
        p, v = self._halves(x)
        return np.concatenate([p, self._times_M(v, transposed)])

    def into(self, x: Array) -> Array:
        """Permute states of the model to the order of this pencil."""
        return np.concatenate([self.family.into(half) for half in self._halves(x)])

    def back(self, x: Array) -> Array:
        """Permute states in the order of this pencil to the order of the model."""
        return np.concatenate([self.family.back(half) for half in self._halves(x)])

    def sizes(self, left: Array, right: Array) -> Array:
        """Return left^T |A| right for each pair of columns, whose entries must not be negative."""
        (lp, lv), (rp, rv) = self._halves(left), self._halves(right)
        return np.sum(lp * rv + lv * (abs(self.K) @ rp + abs(self.D) @ rv), axis=0)

    def shifted(self, shift: complex) -> Solver:
        """Return the solver of A + shift E."""
        s, solve = self._factored(shift)

        def solve_shifted(b: Array, *, transposed: bool = False) -> Array:
            if transposed:
                return self._with_positions(b, solve(self._velocity_source(b, s), transposed=True), s)
            return self._with_velocities(b, solve(self._position_source(b, s)), s)

        return solve_shifted

    def solve_both(self, shift: complex, right: Array, left: Array) -> tuple[Array, Array]:
        """Return (A + shift E)^-1 right and (A + shift E)^-T left, with one factorization."""
        s, solve = self._factored(shift)
        sources = self._position_source(right, s), self._velocity_source(left, s)
        p, v = self.family.solve_with_both(solve, *sources)
        return self._with_velocities(right, p, s), self._with_positions(left, v, s)

    def _factored(self, shift: complex) -> tuple[complex, Solver]:
        s = as_real(shift)
        return s, self.family.combined(s * s, -s, 1.0)

    def _position_source(self, b: Array, s: complex) -> Array:
        """Return the right side of the equation for the positions p of a solution [p, v] with A + s E."""
        first, second = self._halves(b)
        return s * self._times_M(first) - self._times_D(first) - second

    def _with_velocities(self, b: Array, p: Array, s: complex) -> Array:
        return np.concatenate([p, self._halves(b)[0] - s * p])

    def _velocity_source(self, b: Array, s: complex) -> Array:
        """Return the right side of the equation for the half v of a solution [p, v] with (A + s E)^T."""
        first, second = self._halves(b)
        return s * second - first

    def _with_positions(self, b: Array, v: Array, s: complex) -> Array:
        second = self._halves(b)[1]
        return np.concatenate([second + self._times_D(v, True) - s * self._times_M(v, True), v])

    def mass(self) -> Solver:
        """Return the solver of E."""
        solve = self.family.combined(1.0, 0.0, 0.0)

        def solve_mass(b: Array, *, transposed: bool = False) -> Array:
            first, second = self._halves(b)
            return np.concatenate([first, solve(second, transposed=transposed)])

        return solve_mass

    @cached_property
    def has_symmetric_stiffness(self) -> bool:
        """Whether K is symmetric, so that modes without damping are orthogonal."""
        return is_hermitian(self.K)

    def rigid_body_modes(self) -> tuple[Array, float]:
        """Return an M-orthonormal basis of the null space of K, and the frequency of the slowest other mode.

        The inertia of K - s M proves the number of modes. The basis is empty if K is not symmetric, and if
        the search finds no rigid body mode.

        Raises
        ------
        ConvergenceError
            Rigid body modes cannot be told from slow modes, or all modes are rigid body modes.
        """
        none = np.zeros((self.N, 0)), 0.0
        center = NEAR_ZERO * float((self.K.diagonal() / self.M.diagonal()).max(initial=0.0))
        if not (center > 0 and self.has_symmetric_stiffness):
            return none
        solve = self.family.combined(center, 0.0, 1.0)
        nearest = self._modes_near(center, SLOWEST_MODES, tol=0, solver=solve)
        squares, modes = self._slowest_modes(SLOWEST_MODES, solve) if nearest is None else nearest
        rigid = is_rigid(self.K, modes)
        if not np.any(rigid):
            return none
        limit = GAP * rounding_of_squares(self.K, modes[:, rigid])
        count = self._number_of_modes_below(limit)
        # an iteration from one vector finds a part of the modes of an eigenvalue that is repeated often
        if count is not None and (count > np.count_nonzero(rigid) or np.all(rigid)):
            squares, modes = self._slowest_modes(count + OTHER_MODES, solve)
            rigid = is_rigid(self.K, modes)
        if count != np.count_nonzero(rigid):
            others = "an unknown number of" if count is None else abs(count - np.count_nonzero(rigid))
            raise ConvergenceError(NOT_DISTINGUISHED.format(count=others, limit=limit))
        if np.all(rigid):
            raise ConvergenceError(
                f"all {count} modes are rigid body modes, and the low-rank solver requires others; use "
                "solver='dense'"
            )
        return modes[:, rigid], float(np.abs(squares[~rigid]).min()) ** 0.5

    def _number_of_modes_below(self, limit: float) -> int | None:
        """Return the number of squared frequencies between -limit and limit, or None if it is not certain."""
        family = SparseFamily([self.K, self.M])
        K, M = family.matrices
        below = []
        for square in (-limit, limit):
            shifted = (K - square * M).tocsc()
            shifted.sort_indices()
            try:
                inertia = family.solver(shifted, for_inertia=True).inertia(0.0)
            except ModelError:
                return None
            if inertia is None or sum(inertia) != self.N:
                return None
            below.append(inertia[1])
        return below[1] - below[0]

    def _slowest_modes(self, count: int, solve: Solver) -> tuple[Array, Array]:
        """Return the slowest modes and their squared frequencies by subspace iteration.

        Rigid body modes are returned without their rounding. `solve` is that of K plus a small multiple of M.
        """
        count = min(count, self.N)
        modes = np.random.default_rng(0).standard_normal((self.N, count))
        for _ in range(INVERSE_STEPS):
            modes = np.linalg.qr(solve(self.M @ modes))[0]
        squares, turn = sla.eigh(modes.T @ (self.K @ modes), modes.T @ (self.M @ modes))
        return squares, without_rounding(self.K, modes @ turn, solve)

    def _modes_near(
        self, center: float, count: int, tol: float, solver: FactoredSolver | None = None
    ) -> tuple[Array, Array] | None:
        """Return the squared frequencies nearest to -center, and their modes.

        The result is None if K is not symmetric, or the eigenvalues do not converge. `solver` is that of
        K + center M, if there is one already.
        """
        import scipy.sparse.linalg as spl

        count = min(count, self.N - 2)
        if count < 1 or not self.has_symmetric_stiffness:
            return None
        try:
            solver = solver or self.family.combined(center, 0.0, 1.0)
            inverse = spl.LinearOperator((self.N, self.N), matvec=solver.operator(), dtype=float)
            # not a vector of ones, which is a rigid body mode
            start = np.random.default_rng(0).standard_normal(self.N)
            squares, modes = spl.eigsh(
                self.K,
                k=count,
                M=self.M,
                sigma=-center,
                OPinv=inverse,
                v0=start,
                tol=tol,
                ncv=min(count + OTHER_VECTORS, self.N),
            )
        except (ModelError, ConvergenceError, RuntimeError):  # of ARPACK
            return None
        return squares, modes

    def _uncoupled(self, squares: Array, modes: Array) -> tuple[Array, Array]:
        """Return squared frequencies and modes; those of nearly equal frequency are not coupled by damping.

        Modes of equal frequency, such as those of equal bodies, may be any combinations of each other, and
        the damping of a combination is none of the damping of the bodies.
        """
        order = np.argsort(squares)
        squares, modes = squares[order], modes[:, order]
        smallest = RIGID * float(np.abs(squares).max(initial=0.0))
        apart = np.diff(squares) > EQUAL_FREQUENCIES * np.maximum(np.abs(squares[1:]), smallest)
        for group in np.split(np.arange(squares.size), np.flatnonzero(apart) + 1):
            if group.size > 1:
                D = modes[:, group].T @ (self.D @ modes[:, group])
                rotation = np.linalg.eigh((D + D.T) / 2)[1]
                modes[:, group] = modes[:, group] @ rotation
                squares[group] = squares[group] @ rotation**2
        return squares, modes

    def slow_poles(self, count: int, B: Array, C: Array, center: float) -> tuple[Array, Array] | None:
        """Return poles of the slowest modes, as if they were not coupled by damping, or None.

        The modes are those of K and M, without damping, whose frequencies are nearest to i `center`. Only
        poles in the upper half plane are returned, with the contribution of each to the largest gain from B
        to C. The result is None if K is not symmetric, or the eigenvalues do not converge.
        """
        nearest = self._modes_near(center**2, count, tol=1e-8)
        if nearest is None:
            return None
        squares, modes = self._uncoupled(*nearest)
        damping = np.sum(modes * (self.D @ modes), axis=0) / 2
        # for an overdamped mode this is the slower one of its two poles
        root = np.sqrt((damping**2 - squares).astype(complex))
        poles = -damping + root
        # the other pole of a damped rigid body mode is zero, and deflated
        largest = max(float(np.abs(squares).max()), center**2)  # all modes may be rigid body modes
        elastic = squares > RIGID * largest
        damped = damping > RIGID * np.sqrt(largest)
        poles = np.where(elastic, poles, -2 * damping)
        output_gains = np.linalg.norm(C[:, : self.N] @ modes + poles * (C[:, self.N :] @ modes), axis=0)
        input_gains = np.linalg.norm(modes.T @ B[self.N :], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = output_gains * input_gains / np.abs(2 * root * poles.real)
        stable = (poles.real < 0) & (elastic | damped)
        return poles[stable], np.nan_to_num(gains[stable], nan=0.0, posinf=np.finfo(float).max)
