"""Deflation of the few unstable and marginal poles of a large sparse pencil."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from ..models.pencil import Pencil, Solver, as_real
from ..models.second_order import NO_COUPLING, SecondOrderPencil
from .poles import krylov
from .stability import is_stable_pole

#: Number of columns of the Krylov spaces in which such poles are searched for.
COLUMNS = 40
#: Largest number of deflated poles.
MAX_POLES = 20
#: The computed poles of a chain of two integrators have the size of the square root of rounding.
CLUSTER = 1e-6
#: The search is repeated nearer to the origin, at most this often, until the nearest poles are exact.
ROUNDS = 5
NEAREST = 6
#: Largest relative residual of an eigenvector whose eigenvalue counts as a pole.
CONVERGED = 1e-6
#: Number of steps of subspace iteration, and largest relative residual of the invariant subspace.
STEPS = 6
INVARIANT = 1e-8


@dataclass(frozen=True, eq=False)
class InvariantSubspace:
    """An invariant subspace of a pencil: A right = E right A_k, left^H E right = 1.

    That of the unstable and marginal poles is empty for stable models.
    """

    A: Array
    left: Array
    right: Array


def no_unstable_part(n: int) -> InvariantSubspace:
    """Return the part of a stable model."""
    return InvariantSubspace(np.zeros((0, 0)), np.zeros((n, 0)), np.zeros((n, 0)))


class WithKnownPoles(SecondOrderPencil):
    """A second-order pencil with an invariant subspace that is known to full accuracy.

    Linear systems are solved exactly there. The other poles of damped rigid body modes need this: rounding of
    the entries of K would move them as far as it moves poles at the origin.
    """

    def __init__(self, pencil: SecondOrderPencil, known: InvariantSubspace):
        # the matrices and factorizations of the pencil itself, which takes seconds to make again
        self.__dict__.update(pencil.__dict__)
        self._known = known
        self._image = self.E(known.right), self.E(known.left, transposed=True)

    def shifted(self, shift: complex) -> Solver:
        """Return the solver of A + shift E."""
        solve = super().shifted(shift)

        def solve_shifted(b: Array, *, transposed: bool = False) -> Array:
            exact, rest = self._separated(b, shift, transposed)
            return exact + self.without_known(solve(rest, transposed=transposed), transposed=transposed)

        return solve_shifted

    def solve_both(self, shift: complex, right: Array, left: Array) -> tuple[Array, Array]:
        """Return (A + shift E)^-1 right and (A + shift E)^-T left, with one factorization."""
        exact_right, right = self._separated(right, shift, False)
        exact_left, left = self._separated(left, shift, True)
        x, y = super().solve_both(shift, right, left)
        return exact_right + self.without_known(x), exact_left + self.without_known(y, transposed=True)

    def without_known(self, x: Array, *, transposed: bool = False) -> Array:
        """Return states, or left vectors, without their part in the known subspace."""
        known, (E_right, E_left) = self._known, self._image
        if transposed:
            return np.asarray(x - known.left @ (E_right.T @ x))
        return np.asarray(x - known.right @ (E_left.T @ x))

    def _separated(self, b: Array, shift: complex, transposed: bool) -> tuple[Array, Array]:
        """Return the solution for the part of b in the known subspace, and the rest of b."""
        known = self._known
        A, basis, dual, image = known.A, known.right, known.left, self._image[0]
        if transposed:
            A, basis, dual, image = A.T, dual, basis, self._image[1]
        part = dual.T @ b
        return basis @ np.linalg.solve(A + as_real(shift) * np.eye(A.shape[0]), part), b - image @ part


@dataclass(frozen=True, eq=False)
class RigidBodyPart:
    """The poles of rigid body modes, and the frequency of the slowest other mode."""

    #: the poles at the origin, and the other poles of damped modes that are all unstable by negative friction
    at_origin: InvariantSubspace
    #: the other poles of damped modes; None if there are none, or if their damping acts on other modes too
    damped: InvariantSubspace | None
    slowest: float


def rigid_body_part(pencil: Pencil) -> RigidBodyPart | None:
    """Return the poles of the rigid body modes of a second-order model with a singular stiffness matrix.

    Each rigid body mode z has two poles at the origin if no damping acts on it, and one otherwise. Krylov
    methods find such poles with half of the digits only, whereas the modes are known from K to full accuracy.
    The result is None if there are no such modes, or if the damping of the modes without damping is coupled.
    """
    if not isinstance(pencil, SecondOrderPencil):
        return None
    Z, frequency = pencil.rigid_body_modes()
    if Z.shape[1] == 0:
        return None
    D, M = pencil.D, pencil.M
    damping = Z.T @ (D @ Z)
    size = float(np.linalg.norm(np.abs(Z).T @ (abs(D) @ np.abs(Z))))
    rates, turn = np.linalg.eigh((damping + damping.T) / 2)
    Z = Z @ turn
    free, damped = Z[:, np.abs(rates) <= NO_COUPLING * size], Z[:, np.abs(rates) > NO_COUPLING * size]
    forces = abs(D) @ np.abs(free)
    if any(np.linalg.norm(T @ free) > NO_COUPLING * np.linalg.norm(forces) for T in (D, D.T)):
        return None
    zeros, k = np.zeros_like(free), free.shape[1]
    right = np.block([[free, zeros, damped], [zeros, free, np.zeros_like(damped)]])
    dual = np.linalg.solve(damped.T @ (D @ damped), damped.T).T  # left^T E right = 1
    left = np.block([[M @ free, zeros, D.T @ dual], [zeros, free, dual]])
    A = np.zeros((right.shape[1],) * 2)
    A[:k, k : 2 * k] = np.eye(k)
    rates = rates[np.abs(rates) > NO_COUPLING * size]
    at_origin, known = InvariantSubspace(A, left, right), _damped_poles(pencil, damped, rates)
    # with friction of both signs, values of low accuracy were seen to be wrong by more than their estimate
    if known is not None and np.all(rates < 0):
        at_origin, known = _together(at_origin, known), None
    return RigidBodyPart(at_origin, known, frequency)


def _damped_poles(pencil: SecondOrderPencil, Z: Array, rates: Array) -> InvariantSubspace | None:
    """Return the poles -rates of rigid body modes with D z = rate M z; None for any other damping of them."""
    forces = np.linalg.norm(abs(pencil.D) @ np.abs(Z))
    defects = (np.linalg.norm(D @ Z - pencil.M @ Z * rates) for D in (pencil.D, pencil.D.T))
    if rates.size == 0 or any(defect > NO_COUPLING * forces for defect in defects):
        return None
    left = np.concatenate([np.zeros_like(Z), -Z / rates])
    return InvariantSubspace(np.diag(-rates), left, np.concatenate([Z, -Z * rates]))


def _together(first: InvariantSubspace, second: InvariantSubspace) -> InvariantSubspace:
    """Return the sum of two subspaces without common poles."""
    return InvariantSubspace(
        sla.block_diag(first.A, second.A),
        np.hstack([first.left, second.left]),
        np.hstack([first.right, second.right]),
    )


def unstable_part(pencil: Pencil, near: float, tol: float) -> InvariantSubspace:
    """Return the invariant subspace of the unstable and marginal poles among those nearest the origin.

    Parameters
    ----------
    near : float
        Approximate modulus of the slowest poles: poles are searched for around this positive number, where a
        stable pencil has none.
    tol : float
        Poles nearer to the stability boundary than this, relative to the size of the fastest pole, are
        marginal.

    Raises
    ------
    ConvergenceError
        There are too many such poles, or their subspace did not become invariant.
    """
    for _ in range(ROUNDS):
        solve, right, left, poles, Y, X, converged = _projected_near(pencil, near)
        nearest = np.argsort(np.abs(poles))[:NEAREST]
        if np.all(converged[nearest]) or not np.any(np.abs(poles[nearest]) < near):
            break
        near = float(np.median(np.abs(poles[nearest])))
    size = float(np.abs(poles[np.isfinite(poles)]).max(initial=0.0))
    tol = max(tol, 10 * EPS)
    unstable = converged & ~is_stable_pole(poles, size, discrete=False, tol=tol)
    # the computed poles of a chain of integrators lie on both sides of the boundary, with their mean on it
    group = converged & (np.abs(poles) <= CLUSTER * near)
    if np.any(group) and abs(np.mean(poles[group])) <= tol * size:
        unstable |= group
    if not np.any(unstable):
        return no_unstable_part(pencil.n)
    count = int(np.count_nonzero(unstable))
    if count > min(MAX_POLES, right.shape[1] // 2):
        raise ConvergenceError(
            f"at least {count} poles near {near:.1e} are unstable or marginal, and the low-rank solver can "
            f"deflate at most {MAX_POLES}: use solver='dense', and check the sign of A (a stable model has "
            "its poles in the left half plane)"
        )
    V, U = right @ X[:, unstable], left.conj() @ Y[:, unstable]
    if not pencil.is_complex:
        V, U = _real_basis(V), _real_basis(U)
    return _refined(pencil, solve, V[:, :count], U[:, :count], near)


def _projected_near(pencil: Pencil, near: float) -> tuple[Solver, Array, Array, Array, Array, Array, Array]:
    """Return a solver, both Krylov spaces around a positive number, and the poles and vectors in them.

    The last item marks the converged poles: some poles of a projection are not poles of the pencil.
    """
    solve = _solver_near(pencil, near)
    start = np.random.default_rng(0).standard_normal((pencil.n, 2))
    right = krylov(pencil, solve, start, COLUMNS, transposed=False)
    left = krylov(pencil, solve, start, COLUMNS, transposed=True)
    k = min(right.shape[1], left.shape[1])
    right, left = right[:, :k], left[:, :k]
    poles, Y, X = sla.eig(left.T @ pencil.A(right), left.T @ pencil.E(right), left=True, right=True)
    converged = np.isfinite(poles) & (_defects(pencil, right @ X, poles, near) <= CONVERGED)
    return solve, right, left, poles, Y, X, converged


def _defects(pencil: Pencil, V: Array, poles: Array, near: float) -> Array:
    """Return the residuals of eigenvectors, relative to the size of the terms with a pole of size `near`."""
    image, E = pencil.A(V), pencil.E(V)
    sizes = np.linalg.norm(image, axis=0) + (np.abs(poles) + near) * np.linalg.norm(E, axis=0)
    with np.errstate(all="ignore"):
        return np.linalg.norm(image - E * poles, axis=0) / sizes


def _solver_near(pencil: Pencil, near: float) -> Solver:
    """Return the solver of A - s E with s around a positive number that is no pole."""
    for factor in (1.0, 1.3, 0.7):
        try:
            return pencil.shifted(complex(-near * factor))
        except (ModelError, ConvergenceError):
            continue
    raise ConvergenceError(
        f"A - s E could not be factored for s around {near:.1e}: the pencil is singular, or has more poles "
        "at the origin than were found; use solver='dense'"
    )


def _real_basis(V: Array) -> Array:
    """Return an orthonormal real basis of a space that contains the conjugates of its vectors."""
    U, _, _ = np.linalg.svd(np.hstack([V.real, V.imag]), full_matrices=False)
    return U


def _refined(pencil: Pencil, solve: Solver, V: Array, U: Array, near: float) -> InvariantSubspace:
    """Return the subspaces of both sides, refined by steps of subspace iteration."""
    for _ in range(STEPS):
        V = np.linalg.qr(solve(pencil.E(V)))[0]
        U = np.linalg.qr(solve(pencil.E(U.conj(), transposed=True), transposed=True).conj())[0]
    U = np.linalg.solve(U.conj().T @ pencil.E(V), U.conj().T).conj().T
    image = pencil.A(V)
    A = U.conj().T @ image
    E = pencil.E(V)
    defect = float(np.linalg.norm(image - E @ A))
    size = float(np.linalg.norm(image)) + float(np.linalg.norm(E)) * (float(np.linalg.norm(A)) + near)
    if not defect <= INVARIANT * size:
        raise ConvergenceError(
            "the unstable or marginal poles could not be deflated: the relative residual of their subspace "
            f"is {defect / size:.1e}, and at most {INVARIANT:.0e} is accepted; use solver='dense'"
        )
    return InvariantSubspace(A, U, V)
