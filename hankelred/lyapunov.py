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

from ._arrays import Array
from ._cauchy import cauchy_factor
from ._errors import ConvergenceError, ModelError
from ._hammarling import hammarling_factors
from ._pairs import real_coordinates
from ._scaling import equilibrate
from ._smith import smith_factors
from ._split import is_stable_pole, matrix_size, split
from .models import LinearModel

#: A stability tolerance above this is the user's own and needs the poles, so doubling is skipped.
EXPLICIT_POLES_TOL = 1e-9
#: Doubling with a larger relative residual gives way to the Schur route.
SMITH_RESIDUAL = 1e-11
#: No solver with a larger relative residual is believed.
ACCEPTED_RESIDUAL = 1e-8

#: Outside these sizes of A (equilibrated) squares of Gramians would leave the range of double precision.
RATES = (1e-70, 1e70)
#: The same for B and C.
PORTS = 1e100


@dataclass(frozen=True)
class FactoredSystem:
    """A system split into a stable part with both Gramian factors and a part that is kept as it is.

    ``A, B, C`` are the stable part in the coordinates of the solver; ``right`` (n, n_stable) and
    ``left`` map them to the model's states, with left^H right = 1, and the same holds for the kept
    part.
    """

    A: Array
    B: Array
    C: Array
    controllability: Array
    observability: Array
    right: Array
    left: Array
    kept_A: Array
    kept_B: Array
    kept_C: Array
    kept_right: Array
    kept_left: Array
    solver: str
    residual: float

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
        return _assembled(stable, none, none, none, none, None, "smith", 0.0)
    scales = equilibrate(model.A, model.B, model.C)
    A, B, C = model.A * scales / scales[:, None], model.B / scales[:, None], model.C * scales
    discrete = model.is_discrete
    check_sizes(A, B, C, discrete)
    if stability_tol <= EXPLICIT_POLES_TOL:
        result = smith_factors(A, B, C, discrete=discrete)
        if result.controllability is not None and result.observability is not None:
            residual = _residual(A, B, C, result.controllability, result.observability, discrete)
            if residual <= SMITH_RESIDUAL:
                right, left = np.diag(scales), np.diag(1 / scales)
                return _assembled(
                    (A, B, C),
                    result.controllability,
                    result.observability,
                    right,
                    left,
                    None,
                    "smith",
                    residual,
                )
    return _factorize_schur(A, B, C, scales, discrete, stability_tol)


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
    if controllability is not None:
        Lc = _in_real_states(factored, factored.left.conj().T @ controllability, "controllability_factor")
    if observability is not None:
        Lo = _in_real_states(factored, factored.right.conj().T @ observability, "observability_factor")
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


def check_sizes(A: Array, B: Array, C: Array, discrete: bool) -> None:
    """Refuse an equilibrated system that leaves no room for the squares of its Gramians."""
    size = float(np.abs(A).max())
    if size > RATES[1] or (0 < size < RATES[0] and not discrete):
        raise ModelError(
            f"the rates of the model, as large as {size:.1e}, are not between {RATES[0]:.0e} and "
            f"{RATES[1]:.0e}: choose another unit of time"
        )
    size = max(float(np.abs(M).max(initial=0.0)) for M in (B, C))
    if size > PORTS:
        raise ModelError(
            f"entries of B or C (in balanced units) reach {size:.1e}, more than {PORTS:.0e}: choose other "
            "units of the inputs or outputs"
        )


def _factorize_schur(
    A: Array, B: Array, C: Array, scales: Array, discrete: bool, stability_tol: float
) -> FactoredSystem:
    parts = split(A, discrete=discrete, tol=stability_tol)
    n = parts.n_stable
    B, C = parts.left.conj().T @ B, C @ parts.right
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
    right, left = parts.right * scales[:, None], parts.left / scales[:, None]
    kept = (parts.kept, B[n:], C[:, n:])
    return _assembled((T, Bs, Cs), Lc, Lo, right, left, kept, "hammarling", residual)


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
    stable_part, kept = (A[:n, :n], B[:n], C[:, :n]), (A[n:, n:], B[n:], C[:, n:])
    residual = _residual(*stable_part, Lc, Lo, discrete)
    return _assembled(stable_part, Lc, Lo, back, back, kept, "cauchy", residual)


def real_factor(L: Array) -> Array:
    """Return a real factor of the real matrix L L^H, with as many columns as L has."""
    if not np.iscomplexobj(L):
        return L
    stacked = np.hstack([L.real, L.imag])
    if stacked.shape[1] <= stacked.shape[0]:
        return stacked
    return np.asarray(np.linalg.qr(stacked.T, mode="r")).T


def _assembled(
    stable: tuple[Array, Array, Array],
    Lc: Array,
    Lo: Array,
    right: Array,
    left: Array,
    kept: tuple[Array, Array, Array] | None,
    solver: str,
    residual: float,
) -> FactoredSystem:
    A, B, C = stable
    n = A.shape[0]
    if kept is None:
        kept = (
            np.zeros((0, 0), A.dtype),
            np.zeros((0, B.shape[1]), A.dtype),
            np.zeros((C.shape[0], 0), A.dtype),
        )
    return FactoredSystem(
        A, B, C, Lc, Lo, right[:, :n], left[:, :n], *kept, right[:, n:], left[:, n:], solver, residual
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
