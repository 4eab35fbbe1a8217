"""The ladder of factored Gramian solvers, and the static rule that chooses between them.

Both Gramians of a stable system come as factors L with W = L L^H; W itself is never formed.

1. A system given by its poles (a :class:`hankelred.ModalSystem`): closed form (`_cauchy`).
2. Factored Smith doubling (`_smith`), unless one of these holds:
   the tolerance of stability was set above `EXPLICIT_POLES_TOL`, so that the poles must be known;
   the system has more than `FULL_RANK_SIZE` states and the first Krylov columns foretell factors of
   more than `FULL_RANK_SHARE` of full rank, or the factors grow to that;
   `MAX_DOUBLINGS` squarings do not bring the powers of A to zero (a pole is near the boundary, on
   it, or beyond it); the residual is above `SMITH_RESIDUAL`.
3. Schur form, split into stable and other poles (`_split`), and tiled Hammarling (`_hammarling`) on
   the stable part. A residual above `ACCEPTED_RESIDUAL` raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError, ModelError
from ..models.conjugate_pairs import real_coordinates
from ..models.linear_model import LinearModel
from ..models.scaling import ScaledSystem, gain_exponent, scale_system
from .cauchy import cauchy_factor
from .hammarling import hammarling_factors
from .smith import smith_factors
from .stability import is_stable_pole, matrix_size, split

#: A stability tolerance above this is the user's own and needs the poles, so doubling is skipped.
EXPLICIT_POLES_TOL = 1e-9
#: Doubling with a larger relative residual gives way to the Schur route.
SMITH_RESIDUAL = 1e-11
#: No solver with a larger relative residual is believed.
ACCEPTED_RESIDUAL = 1e-8

#: Outside these sizes of A (equilibrated) squares of Gramians would leave the range of double precision.
RATES = (1e-70, 1e70)


@dataclass(frozen=True)
class FactoredSystem:
    """A system split into a stable part with both Gramian factors and a part that is kept as it is.

    ``scaled`` is the model itself but for powers of two. ``A, B, C`` are its stable part in the
    coordinates of the solver, which may carry the rounding of a Schur form; ``right`` (n, n_stable) and
    ``left`` map them to the states of ``scaled``, with left^H right = 1, and the same holds for the kept
    part. None where the solver worked on the states of ``scaled`` themselves.
    """

    scaled: ScaledSystem
    A: Array
    B: Array
    C: Array
    controllability: Array
    observability: Array
    right: Array | None
    left: Array | None
    kept_A: Array
    kept_B: Array
    kept_C: Array
    kept_right: Array
    kept_left: Array
    solver: str
    residual: float

    def right_states(self, basis: Array) -> Array:
        """Take columns of solver states to the states of ``scaled``."""
        return basis if self.right is None else self.right @ basis

    def left_states(self, basis: Array) -> Array:
        """Take columns that products with solver states are formed with to the states of ``scaled``."""
        return basis if self.left is None else self.left @ basis

    @property
    def n_stable(self) -> int:
        """Number of stable states."""
        return int(self.A.shape[0])

    @property
    def n_kept(self) -> int:
        """Number of states of unstable and marginal poles."""
        return int(self.kept_A.shape[0])


def factorize(model: LinearModel, stability_tol: float) -> FactoredSystem:
    """Equilibrate, split and factor by the rule of this module.

    Raises
    ------
    ConvergenceError
        No solver of the ladder reached its accuracy.
    ModelError
        Rates so large or small that their squares leave the range of double precision.
    """
    if model.log_poles is not None:
        return _factorize_modal(model, model.log_poles, stability_tol)
    if model.n_states == 0:  # LAPACK complains of empty matrices on stderr
        none = np.zeros((0, 0))
        stable = (model.A, model.B, model.C)
        return _assembled(ScaledSystem(*stable, np.ones(0), 0, 0), stable, none, none, None, "smith", 0.0)
    system = scale_system(model.A, model.B, model.C)
    A, B, C = system.A, system.B, system.C
    discrete = model.is_discrete
    check_rates(A, discrete)
    if stability_tol <= EXPLICIT_POLES_TOL:
        result = smith_factors(A, B, C, discrete=discrete)
        if result.controllability is not None and result.observability is not None:
            residual = _residual(A, B, C, result.controllability, result.observability, discrete)
            if residual <= SMITH_RESIDUAL:
                Lc, Lo = result.controllability, result.observability
                return _assembled(system, (A, B, C), Lc, Lo, None, "smith", residual)
    return _factorize_schur(system, discrete, stability_tol)


def with_given_factors(
    factored: FactoredSystem, controllability: Array | None, observability: Array | None
) -> FactoredSystem:
    """Return the system with other factors, (n, k) in the model's states, in place of its own.

    Those of unstable and marginal poles are left aside, as these poles are kept.

    Raises
    ------
    ModelError
        A real system whose given Gramian is not real in real states.
    """
    Lc, Lo = factored.controllability, factored.observability
    system = factored.scaled
    if controllability is not None:
        scaled_factor = system.scale_right(controllability) * 2.0**-system.input_exponent
        scaled_factor = scaled_factor if factored.left is None else factored.left.conj().T @ scaled_factor
        Lc = _in_real_states(factored, scaled_factor, "controllability_factor")
    if observability is not None:
        scaled_factor = system.scale_left(observability) * 2.0**-system.output_exponent
        scaled_factor = scaled_factor if factored.right is None else factored.right.conj().T @ scaled_factor
        Lo = _in_real_states(factored, scaled_factor, "observability_factor")
    return replace(factored, controllability=Lc, observability=Lo, solver="given")


def _in_real_states(factored: FactoredSystem, L: Array, name: str) -> Array:
    """Return a real factor where the system is in real states."""
    if any(np.iscomplexobj(M) for M in (factored.A, factored.B, factored.C)):
        return L
    W = L @ L.conj().T
    if np.iscomplexobj(W) and np.abs(W.imag).max(initial=0.0) > ACCEPTED_RESIDUAL * np.abs(W).max(
        initial=0.0
    ):
        raise ModelError(
            f"{name} belongs to a Gramian with an imaginary part of size {np.abs(W.imag).max():.1e} in real "
            "states, but the model is real: its factor must treat both members of a conjugate pair alike"
        )
    return real_factor(L)


def check_rates(A: Array, discrete: bool) -> None:
    """Refuse an equilibrated A that leaves no room for squares."""
    size = float(np.abs(A).max())
    if size > RATES[1] or (0 < size < RATES[0] and not discrete):
        raise ModelError(
            f"the rates of the model, as large as {size:.1e}, are not between {RATES[0]:.0e} and "
            f"{RATES[1]:.0e}: choose another unit of time"
        )


def _factorize_schur(system: ScaledSystem, discrete: bool, stability_tol: float) -> FactoredSystem:
    parts = split(system.A, discrete=discrete, tol=stability_tol)
    n = parts.n_stable
    B, C = parts.left.conj().T @ system.B, system.C @ parts.right
    T, Bs, Cs = parts.T, B[:n], C[:, :n]
    if discrete and not np.iscomplexobj(T):
        Tc, Q = sla.rsf2csf(T, np.eye(n))
        Lc, Lo = hammarling_factors(Tc, Q.conj().T @ Bs, Cs @ Q, discrete=True)
        Lc, Lo = real_factor(Q @ Lc), real_factor(Q @ Lo)
    else:
        Lc, Lo = hammarling_factors(T, Bs, Cs, discrete=discrete)
    residual = _residual(T, Bs, Cs, Lc, Lo, discrete)
    if not residual <= ACCEPTED_RESIDUAL:
        raise ConvergenceError(
            f"the Gramians could not be computed: relative residual {residual:.1e} where at most "
            f"{ACCEPTED_RESIDUAL:.0e} is accepted; the system is extremely ill-conditioned, check the units "
            "of its states and parameters"
        )
    kept = (parts.kept, B[n:], C[:, n:])
    bases = parts.right, parts.left
    return _assembled(system, (T, Bs, Cs), Lc, Lo, kept, "hammarling", residual, bases)


def _factorize_modal(model: LinearModel, logs: Array, stability_tol: float) -> FactoredSystem:
    """Split by the given poles and factor in closed form; real systems are worked on in real states."""
    discrete = model.is_discrete
    poles = np.exp(logs) if discrete else logs
    size = float(np.abs(poles).max(initial=0.0))
    if discrete:
        # from the logarithm: 1 - |exp(log)| would round a slow decay away
        stable = -np.expm1(logs.real) > stability_tol * max(1.0, size)
    else:
        stable = is_stable_pole(poles, size, discrete=False, tol=stability_tol)
    order = np.concatenate([np.flatnonzero(stable), np.flatnonzero(~stable)])
    n = int(stable.sum())
    logs, poles, B, C = logs[order], poles[order], model.B[order], model.C[:, order]
    input_exponent, output_exponent = gain_exponent(B), gain_exponent(C)
    B, C = B * 2.0**-input_exponent, C * 2.0**-output_exponent
    Lc = cauchy_factor(logs[:n], B[:n], discrete=discrete)
    Lo = cauchy_factor(logs[:n].conj(), C[:, :n].conj().T, discrete=discrete)
    unitary = real_coordinates(logs, B, C, model.D, discrete=discrete)
    if unitary is None:
        A, basis = np.diag(poles), np.eye(logs.size)
    else:
        A, B, C = ((unitary * poles) @ unitary.conj().T).real, (unitary @ B).real, (C @ unitary.conj().T).real
        Lc, Lo = real_factor(unitary[:n, :n] @ Lc), real_factor(unitary[:n, :n] @ Lo)
        basis = unitary.conj().T
    back = np.zeros_like(basis)
    back[order] = basis
    system = ScaledSystem(A, B, C, back, input_exponent, output_exponent)
    stable_part, kept = (A[:n, :n], B[:n], C[:, :n]), (A[n:, n:], B[n:], C[:, n:])
    residual = _residual(*stable_part, Lc, Lo, discrete)
    bases = (np.eye(logs.size), np.eye(logs.size)) if n < logs.size else None
    return _assembled(system, stable_part, Lc, Lo, kept, "cauchy", residual, bases)


def real_factor(L: Array) -> Array:
    """Return a real factor of the real matrix L L^H, with as many columns as L has."""
    if not np.iscomplexobj(L):
        return L
    stacked = np.hstack([L.real, L.imag])
    if stacked.shape[1] <= stacked.shape[0]:
        return stacked
    return np.asarray(np.linalg.qr(stacked.T, mode="r")).T


def _assembled(
    system: ScaledSystem,
    stable: tuple[Array, Array, Array],
    Lc: Array,
    Lo: Array,
    kept: tuple[Array, Array, Array] | None,
    solver: str,
    residual: float,
    bases: tuple[Array, Array] | None = None,
) -> FactoredSystem:
    """Put the result together; the leading columns of the bases (right, left) belong to the stable part."""
    A, B, C = stable
    n = A.shape[0]
    if kept is None:
        kept = (
            np.zeros((0, 0), A.dtype),
            np.zeros((0, B.shape[1]), A.dtype),
            np.zeros((C.shape[0], 0), A.dtype),
        )
    if bases is None:
        nothing = np.zeros((n, 0), A.dtype)
        return FactoredSystem(system, A, B, C, Lc, Lo, None, None, *kept, nothing, nothing, solver, residual)
    right, left = bases
    return FactoredSystem(
        system, A, B, C, Lc, Lo, right[:, :n], left[:, :n], *kept, right[:, n:], left[:, n:], solver, residual
    )


def _residual(A: Array, B: Array, C: Array, Lc: Array, Lo: Array, discrete: bool) -> float:
    """Return the larger relative residual of both equations, from products with random vectors.

    For a Gaussian vector the mean of |R v|^2 is |R|_F^2, so a few of them give the size of R without
    forming it.
    """
    n = A.shape[0]
    if n == 0:
        return 0.0
    probes = np.random.default_rng(0).standard_normal((n, 8))
    size = matrix_size(A)

    def relative(A: Array, B: Array, L: Array) -> float:
        def gramian(v: Array) -> Array:
            return L @ (L.conj().T @ v)

        source = B @ (B.conj().T @ probes)
        here = gramian(probes)
        image = gramian(A.conj().T @ probes)
        if discrete:
            defect, scale = A @ image - here + source, max(size, 1.0) ** 2
        else:
            defect, scale = A @ here + image + source, 2 * size
        total = scale * float(np.linalg.norm(here)) + float(np.linalg.norm(source))
        return float(np.linalg.norm(defect)) / total if total > 0 else 0.0

    return max(relative(A, B, Lc), relative(A.conj().T, C.conj().T, Lo))
