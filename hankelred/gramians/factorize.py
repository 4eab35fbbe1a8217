"""The choice of the Gramian solver, by a static rule.

The solvers return factors L of both Gramians of a stable system, W = L L^H; W itself is never formed.

1. A system defined by its poles (a :class:`hankelred.ModalSystem`): closed form (:mod:`.cauchy`). The same
   for a Hermitian A in continuous time, such as that of diffusion, whose rates differ by a factor of
   `CLOSED_FORM_CONDITION` or more: its eigenvectors are orthogonal and cost a fifth of a Schur form.
2. Factored Smith doubling (:mod:`.smith`), unless one of these holds:
   the system is in continuous time and has at most `SMALL_SIZE` states, where calls cost more than sums;
   it has at most `SCHUR_FIRST_SIZE` states, or separate modes, so that a Schur form costs little, and by its
   poles more than `MAX_DOUBLINGS_CONTINUOUS` squarings are needed;
   the stability tolerance is above `EXPLICIT_POLES_TOL`, so that the poles must be known;
   the system has more than `FULL_RANK_SIZE` states, and extrapolation from the first Krylov columns predicts
   factors of more than `FULL_RANK_SHARE` of full rank, or the factors grow to that;
   the powers of A do not vanish after `MAX_DOUBLINGS` squarings (`MAX_DOUBLINGS_CONTINUOUS`), which is
   predicted from the trace of A or after a few of them (a pole is near the stability boundary, on it, or
   beyond it); the residual is above `SMITH_RESIDUAL`.
3. Schur form, split into stable and other poles (:mod:`.stability`), and Hammarling's method in tiles
   (:mod:`.hammarling`) for the stable part. A residual above `ACCEPTED_RESIDUAL` raises an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dsyevd, zheevd

from .._util.arrays import Array, largest_entry, length
from .._util.schur import is_block_triangular, order_of_separate_modes
from ..errors import ConvergenceError, ModelError
from ..models.conjugate_pairs import real_coordinates
from ..models.linear_model import LinearModel
from ..models.scaling import ScaledSystem, gain_exponent, scale_system, times_power_of_two
from .cauchy import cauchy_factor
from .hammarling import hammarling_factors, reduce_joined
from .smith import MAX_DOUBLINGS_CONTINUOUS, doublings_needed, smith_factors
from .stability import SchurSplit, is_stable_pole, matrix_size, split_schur

#: A stability tolerance above this needs the poles, so doubling is skipped.
EXPLICIT_POLES_TOL = 1e-9
#: Up to this size the Schur method is used in continuous time; up to the next the Schur form comes first,
#: from whose poles the choice is made.
SMALL_SIZE = 16
SCHUR_FIRST_SIZE = 64
#: A Hermitian A with a larger ratio of the fastest to the slowest rate is diagonalized.
CLOSED_FORM_CONDITION = 1000.0
#: With a larger relative residual of doubling the Schur method is used.
SMITH_RESIDUAL = 1e-11
#: A larger relative residual of any solver is an error.
ACCEPTED_RESIDUAL = 1e-8

#: Limits of the size of A (equilibrated): beyond them squares of Gramians would overflow or underflow.
RATE_LIMITS = (1e-70, 1e70)


@dataclass(frozen=True)
class FactoredSystem:
    """A system split into a stable part, with both Gramian factors, and a part with all other poles.

    ``scaled_system`` is the model scaled by powers of two. ``A, B, C`` are its stable part in the states of
    the solver, which may have the rounding of a Schur form; ``right`` (n, n_stable) and ``left`` map them to
    the states of ``scaled_system``, with left^H right = 1. They are None where the solver used these states
    themselves. ``unstable_A, ..., unstable_left`` are the same for the unstable and marginal poles.
    """

    scaled_system: ScaledSystem
    A: Array
    B: Array
    C: Array
    controllability: Array
    observability: Array
    right: Array | None
    left: Array | None
    unstable_A: Array
    unstable_B: Array
    unstable_C: Array
    unstable_right: Array
    unstable_left: Array
    solver: str
    residual: float
    rounding: float

    def right_states(self, basis: Array) -> Array:
        """Convert columns of a right basis from the states of the solver to those of ``scaled_system``."""
        return basis if self.right is None else self.right @ basis

    def left_states(self, basis: Array) -> Array:
        """Convert columns of a left basis from the states of the solver to those of ``scaled_system``."""
        return basis if self.left is None else self.left @ basis

    @property
    def n_stable(self) -> int:
        """Number of stable states."""
        return int(self.A.shape[0])

    @property
    def n_unstable(self) -> int:
        """Number of states of unstable and marginal poles."""
        return int(self.unstable_A.shape[0])


def factorize(model: LinearModel, stability_tol: float, *, both: bool = True) -> FactoredSystem:
    """Equilibrate, split and factor by the rule of this module.

    With ``both=False`` the observability factor may have no columns: it is computed only where it costs
    nothing.

    Raises
    ------
    ConvergenceError
        No solver reached its accuracy.
    ModelError
        Rates so large or small that their squares overflow or underflow.
    """
    if model.log_poles is not None:
        return _factorize_modal(model, model.log_poles, stability_tol)
    if model.n_states == 0:  # LAPACK prints errors about empty matrices on stderr
        empty = np.zeros((0, 0))
        stable = (model.A, model.B, model.C)
        return _factored_system(
            ScaledSystem(*stable, np.ones(0), 0, 0), stable, empty, empty, None, "smith", 0.0
        )
    system = scale_system(model.A, model.B, model.C)
    A, B, C = system.A, system.B, system.C
    discrete = model.is_discrete
    check_rates(A, discrete)
    size = matrix_size(A)
    stability_tol = model.tolerance(stability_tol, size)
    if not discrete and A[0, -1] == A[-1, 0].conj() and np.array_equal(A, A.conj().T):
        diagonal = _factorize_hermitian(system, stability_tol)
        if diagonal is not None:
            return diagonal
    parts = None
    doubling = stability_tol <= EXPLICIT_POLES_TOL
    if not discrete and (
        A.shape[0] <= SCHUR_FIRST_SIZE or is_block_triangular(A) or order_of_separate_modes(A) is not None
    ):
        parts = split_schur(A, discrete=False, tol=stability_tol, size=size)
        doubling = (
            doubling and A.shape[0] > SMALL_SIZE and doublings_by_poles(parts) <= MAX_DOUBLINGS_CONTINUOUS
        )
    if doubling:
        observed = C if both else C[:0]
        result = smith_factors(A, B, observed, discrete=discrete)
        if result.controllability is not None and result.observability is not None:
            residual = _residual(A, B, observed, result.controllability, result.observability, discrete)
            if residual <= SMITH_RESIDUAL:
                Lc, Lo = result.controllability, result.observability
                return _factored_system(
                    system, (A, B, C), Lc, Lo, None, "smith", residual, rounding=result.rounding
                )
    if parts is None:
        parts = split_schur(A, discrete=discrete, tol=stability_tol, size=size)
    return _factorize_schur(system, parts, discrete, both=both)


def doublings_by_poles(parts: SchurSplit) -> float:
    """Return how many doublings a continuous system needs, by its poles; inf where one is not stable."""
    poles = parts.poles
    if poles is None:
        return math.inf
    sizes = np.abs(poles)
    shift = math.sqrt(float(sizes.max()) * float(sizes.min()))
    slowest = float(np.abs((shift + poles) / (shift - poles)).max())
    return doublings_needed(slowest)


def with_user_factors(
    factored: FactoredSystem, controllability: Array | None, observability: Array | None
) -> FactoredSystem:
    """Return the system with the user's factors, (n, k) in the model's states, in place of its own.

    Their components in unstable and marginal states are ignored, as these states are not reduced.

    Raises
    ------
    ModelError
        A real system with a user's Gramian that is not real in real states.
    """
    Lc, Lo = factored.controllability, factored.observability
    system = factored.scaled_system
    if controllability is not None:
        scaled_factor = system.scale_right(controllability) * 2.0**-system.input_exponent
        scaled_factor = scaled_factor if factored.left is None else factored.left.conj().T @ scaled_factor
        Lc = _in_real_states(factored, scaled_factor, "controllability_factor")
    if observability is not None:
        scaled_factor = system.scale_left(observability) * 2.0**-system.output_exponent
        scaled_factor = scaled_factor if factored.right is None else factored.right.conj().T @ scaled_factor
        Lo = _in_real_states(factored, scaled_factor, "observability_factor")
    return replace(factored, controllability=Lc, observability=Lo, solver="given", rounding=0.0)


def _in_real_states(factored: FactoredSystem, L: Array, name: str) -> Array:
    """Return a real factor if the system is real."""
    if any(np.iscomplexobj(M) for M in (factored.A, factored.B, factored.C)):
        return L
    W = L @ L.conj().T
    if np.iscomplexobj(W) and np.abs(W.imag).max(initial=0.0) > ACCEPTED_RESIDUAL * np.abs(W).max(
        initial=0.0
    ):
        raise ModelError(
            f"{name} is the factor of a Gramian with an imaginary part of size {np.abs(W.imag).max():.1e} in "
            "real states, but the model is real: both members of a conjugate pair need conjugate rows"
        )
    return real_factor(L)


def check_rates(A: Array, discrete: bool) -> None:
    """Refuse an equilibrated A whose squares would overflow or underflow."""
    size = largest_entry(A)
    if size > RATE_LIMITS[1] or (0 < size < RATE_LIMITS[0] and not discrete):
        raise ModelError(
            f"the rates of the model, as large as {size:.1e}, are not between {RATE_LIMITS[0]:.0e} and "
            f"{RATE_LIMITS[1]:.0e}: choose another unit of time"
        )


def _factorize_hermitian(system: ScaledSystem, stability_tol: float) -> FactoredSystem | None:
    """Factor by the eigenvectors of a Hermitian A; None where a pole is unstable or the rates are similar."""
    A = system.A
    heevd = zheevd if np.iscomplexobj(A) else dsyevd
    poles, Z, info = heevd(A)
    if info != 0 or not -poles[0] >= CLOSED_FORM_CONDITION * -poles[-1]:
        return None
    if not np.all(is_stable_pole(poles, matrix_size(A), discrete=False, tol=stability_tol)):
        return None
    B, C = Z.conj().T @ system.B, system.C @ Z
    Lc, Lo = (cauchy_factor(poles, M, discrete=False) for M in (B, C.conj().T))
    stable = np.diag(poles).astype(A.dtype), B, C
    residual = _residual(*stable, Lc, Lo, False)
    unstable = np.zeros((0, 0), A.dtype), B[:0], C[:, :0]
    return _factored_system(system, stable, Lc, Lo, unstable, "cauchy", residual, (Z, Z))


def _factorize_schur(
    system: ScaledSystem, parts: SchurSplit, discrete: bool, *, both: bool
) -> FactoredSystem:
    n = parts.n_stable
    B, C = parts.left.conj().T @ system.B, system.C @ parts.right
    T, Bs, Cs = parts.T_stable, B[:n], C[:, :n]
    observed = Cs if both else Cs[:0]
    if discrete and not np.iscomplexobj(T):
        Tc, Q = sla.rsf2csf(T, np.eye(n))
        Lc, Lo = hammarling_factors(Tc, Q.conj().T @ Bs, observed @ Q, discrete=True)
        Lc, Lo = real_factor(Q @ Lc), real_factor(Q @ Lo)
    else:
        Lc, Lo = hammarling_factors(T, Bs, observed, discrete=discrete, poles=parts.poles)
        if both:  # an H2 norm needs one product with the factor of each input only
            Lc, Lo = reduce_joined(Lc), reduce_joined(Lo)
    residual = _residual(T, Bs, observed, Lc, Lo, discrete)
    if not residual <= ACCEPTED_RESIDUAL:
        raise ConvergenceError(
            f"the Gramians could not be computed: relative residual {residual:.1e} where at most "
            f"{ACCEPTED_RESIDUAL:.0e} is accepted; the system is extremely ill-conditioned, check the units "
            "of its states and parameters"
        )
    unstable = (parts.T_unstable, B[n:], C[:, n:])
    bases = parts.right, parts.left
    return _factored_system(system, (T, Bs, Cs), Lc, Lo, unstable, "hammarling", residual, bases)


def _factorize_modal(model: LinearModel, logs: Array, stability_tol: float) -> FactoredSystem:
    """Split by the known poles and factor in closed form; real systems are returned in real states."""
    discrete = model.is_discrete
    poles = np.exp(logs) if discrete else logs
    size = float(np.abs(poles).max(initial=0.0))
    if discrete:
        # from the logarithm: 1 - |exp(log)| would lose a slow decay by rounding
        stable = -np.expm1(logs.real) > stability_tol * max(1.0, size)
    else:
        stable = is_stable_pole(poles, size, discrete=False, tol=stability_tol)
    order = np.concatenate([np.flatnonzero(stable), np.flatnonzero(~stable)])
    n = int(stable.sum())
    logs, poles, B, C = logs[order], poles[order], model.B[order], model.C[:, order]
    input_exponent, output_exponent = gain_exponent(B), gain_exponent(C)
    B, C = times_power_of_two(B, -input_exponent), times_power_of_two(C, -output_exponent)
    Lc = cauchy_factor(logs[:n], B[:n], discrete=discrete)
    Lo = cauchy_factor(logs[:n].conj(), C[:, :n].conj().T, discrete=discrete)
    unitary = real_coordinates(logs, B, C, model.D, discrete=discrete)
    if unitary is None:
        A, basis = np.diag(poles), np.eye(logs.size)
    else:
        A, B, C = ((unitary * poles) @ unitary.conj().T).real, (unitary @ B).real, (C @ unitary.conj().T).real
        Lc, Lo = real_factor(unitary[:n, :n] @ Lc), real_factor(unitary[:n, :n] @ Lo)
        basis = unitary.conj().T
    modal_basis = np.zeros_like(basis)
    modal_basis[order] = basis
    system = ScaledSystem(A, B, C, modal_basis, input_exponent, output_exponent)
    stable_part, unstable = (A[:n, :n], B[:n], C[:, :n]), (A[n:, n:], B[n:], C[:, n:])
    residual = _residual(*stable_part, Lc, Lo, discrete)
    bases = (np.eye(logs.size), np.eye(logs.size)) if n < logs.size else None
    return _factored_system(system, stable_part, Lc, Lo, unstable, "cauchy", residual, bases)


def real_factor(L: Array) -> Array:
    """Return a real factor of the real matrix L L^H, with as many columns as L has."""
    if not np.iscomplexobj(L):
        return L
    stacked = np.hstack([L.real, L.imag])
    if stacked.shape[1] <= stacked.shape[0]:
        return stacked
    return np.asarray(np.linalg.qr(stacked.T, mode="r")).T


def _factored_system(
    system: ScaledSystem,
    stable: tuple[Array, Array, Array],
    Lc: Array,
    Lo: Array,
    unstable: tuple[Array, Array, Array] | None,
    solver: str,
    residual: float,
    bases: tuple[Array, Array] | None = None,
    *,
    rounding: float = 0.0,
) -> FactoredSystem:
    """Assemble the result; the leading columns of the bases (right, left) belong to the stable part."""
    A, B, C = stable
    n = A.shape[0]
    if unstable is None:
        unstable = (
            np.zeros((0, 0), A.dtype),
            np.zeros((0, B.shape[1]), A.dtype),
            np.zeros((C.shape[0], 0), A.dtype),
        )
    if bases is None:
        no_basis = np.zeros((n, 0), A.dtype)
        return FactoredSystem(
            system, A, B, C, Lc, Lo, None, None, *unstable, no_basis, no_basis, solver, residual, rounding
        )
    right, left = bases
    return FactoredSystem(
        system,
        A,
        B,
        C,
        Lc,
        Lo,
        right[:, :n],
        left[:, :n],
        *unstable,
        right[:, n:],
        left[:, n:],
        solver,
        residual,
        rounding,
    )


@lru_cache(maxsize=4)
def _probes(n: int) -> Array:
    return np.random.default_rng(0).standard_normal((n, 8))


def _residual(A: Array, B: Array, C: Array, Lc: Array, Lo: Array, discrete: bool) -> float:
    """Return the larger relative residual of both equations, from products with random vectors.

    For a Gaussian vector the mean of |R v|^2 is |R|_F^2, so that a few products give the size of R.
    """
    n = A.shape[0]
    if n == 0:
        return 0.0
    probes = _probes(n)
    size = matrix_size(A)

    def relative(A: Array, B: Array, L: Array) -> float:
        def gramian(v: Array) -> Array:
            return L @ (L.conj().T @ v)

        image_B = B @ (B.conj().T @ probes)
        image_W = gramian(probes)
        image_WA = gramian(A.conj().T @ probes)
        if discrete:
            defect, scale = A @ image_WA - image_W + image_B, max(size, 1.0) ** 2
        else:
            defect, scale = A @ image_W + image_WA + image_B, 2 * size
        total = scale * length(image_W) + length(image_B)
        return length(defect) / total if total > 0 else 0.0

    return max(relative(A, B, Lc), relative(A.conj().T, C.conj().T, Lo))
