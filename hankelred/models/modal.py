"""Diagonal systems: a model as poles, input rows and output columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from .._util.checks import first_index, require_option
from ..errors import ModelError
from .block_diagonal import block_diagonalize
from .conjugate_pairs import real_coordinates
from .frequency_response import MAX_RESPONSE_CHANGE, difference_of_responses
from .linear_model import LARGEST_ENTRY, LinearModel, Timebase, as_model, is_discrete, validated_timebase
from .projection import ProjectedSystem, project_exactly
from .scaling import ScaledSystem, equalizing_scales, scale_system

#: A matrix is considered defective if the condition number of its eigenvectors is larger than this.
DEFECTIVE = 1e12
#: Largest first-order correction of eigenvectors that is applied: its square is the error that remains.
LARGEST_CORRECTION = 1e-3


class ModalSystem:
    """A linear system with diagonal A, given by its poles on a logarithmic scale.

    In discrete time the poles are ``exp(log_poles)``, so that a decay of 1e-9 per sample keeps all its
    digits; in continuous time they are ``log_poles`` themselves. Gramians are closed forms and cost
    O(n^2 (m + p)). Every function of hankelred that takes a model takes this one.

    Parameters
    ----------
    log_poles : array_like, shape (n,)
        Complex poles of a real system come in conjugate pairs, next to each other. ``-inf`` is the
        discrete pole 0.
    B : array_like, shape (n, m)
    C : array_like, shape (p, n)
    D : array_like, shape (p, m), optional
        Default: zero.
    dt : True, float, 0 or None
        Timebase as in python-control; default True, discrete with unspecified step.

    Attributes
    ----------
    log_poles, B, C, D, dt
        As given, as arrays.

    Raises
    ------
    ModelError
        Shapes that do not fit, or entries that are not finite.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> slow = hankelred.ModalSystem([-1e-3, -0.5], B=[[1.0], [1.0]], C=[[1.0, 1.0]])
    >>> slow.poles.real.round(4)
    array([0.999 , 0.6065])
    >>> hankelred.hankel_singular_values(slow).round(3)
    array([500.513,   1.569])
    """

    def __init__(
        self,
        log_poles: npt.ArrayLike,
        B: npt.ArrayLike,
        C: npt.ArrayLike,
        D: npt.ArrayLike | None = None,
        *,
        dt: Timebase = True,
    ):
        self.dt: Timebase = validated_timebase(dt)
        try:
            self.log_poles: Array = np.atleast_1d(np.array(log_poles, dtype=complex))
            self.B: Array = np.array(B, dtype=complex)
            self.C: Array = np.array(C, dtype=complex)
            direct = None if D is None else np.atleast_2d(np.array(D, dtype=complex))
        except (TypeError, ValueError) as error:
            raise ModelError(f"log_poles, B, C and D must be numeric arrays: {error}") from None
        if self.log_poles.ndim != 1:
            raise ModelError(f"log_poles must have one dimension, got shape {self.log_poles.shape}")
        n = self.log_poles.size
        self.B = self.B.reshape(n, -1) if self.B.ndim == 1 and n else self.B
        self.C = self.C.reshape(-1, n) if self.C.ndim == 1 and n else self.C
        if self.B.ndim != 2 or self.B.shape[0] != n:
            raise ModelError(f"B must have {n} rows, one for each pole, got shape {self.B.shape}")
        if self.C.ndim != 2 or self.C.shape[1] != n:
            raise ModelError(f"C must have {n} columns, one for each pole, got shape {self.C.shape}")
        shape = (self.C.shape[0], self.B.shape[1])
        self.D: Array = np.zeros(shape) if direct is None else direct
        if self.D.shape != shape:
            raise ModelError(f"D must have shape {shape} (outputs, inputs), got {self.D.shape}")
        if direct is not None and not np.any(direct.imag):
            self.D = direct.real.copy()
        self._check_entries()

    def _check_entries(self) -> None:
        """Refuse entries that are not finite, or whose squares are not, as for other models."""
        discrete = is_discrete(self.dt)
        finite_poles = np.isfinite(self.log_poles)
        if discrete:
            finite_poles |= np.isneginf(self.log_poles.real) & np.isfinite(self.log_poles.imag)
        matrices = {"B": self.B, "C": self.C, "D": self.D}
        for name, ok in {
            "log_poles": finite_poles,
            **{k: np.isfinite(M) for k, M in matrices.items()},
        }.items():
            where = first_index(~ok)
            if where is not None:
                raise ModelError(
                    f"{name}{list(where)} is {getattr(self, name)[where]}; every entry must be finite"
                )
        # of the poles, the squares of exp(log_poles) must be finite
        largest_log = float(self.log_poles.real.max(initial=0.0)) if discrete else 0.0
        largest_entries = {k: (float(np.abs(M).max(initial=0.0)), LARGEST_ENTRY) for k, M in matrices.items()}
        for name, (size, limit) in {
            "log_poles": (largest_log, math.log(LARGEST_ENTRY)),
            **largest_entries,
        }.items():
            if size > limit:
                raise ModelError(
                    f"the largest entry of {name} is {size:.1e}, and at most {limit:.3g} is accepted: "
                    "choose other units"
                )

    @property
    def n_states(self) -> int:
        """Number of poles."""
        return int(self.log_poles.size)

    @property
    def poles(self) -> Array:
        """The poles, shape (n,)."""
        return np.exp(self.log_poles) if is_discrete(self.dt) else self.log_poles.copy()

    def state_space(self) -> tuple[Array, Array, Array, Array]:
        """Return (A, B, C, D), real with 2 x 2 blocks where the system is real, else complex diagonal.

        Examples
        --------
        >>> import hankelred
        >>> pair = hankelred.ModalSystem([-1 + 2j, -1 - 2j], [[1], [1]], [[1, 1]], dt=0)
        >>> pair.state_space()[0].round(12) + 0.0
        array([[-1., -2.],
               [ 2., -1.]])
        """
        unitary = real_coordinates(self.log_poles, self.B, self.C, self.D, discrete=is_discrete(self.dt))
        if unitary is None:
            return np.diag(self.poles), self.B, self.C, self.D
        A = (unitary * self.poles) @ unitary.conj().T
        return A.real, (unitary @ self.B).real, (self.C @ unitary.conj().T).real, self.D.real

    def __repr__(self) -> str:
        (p, m), n = self.D.shape, self.n_states
        return f"ModalSystem({n} states, {m} inputs, {p} outputs, dt={self.dt})"

    def __hankelred_model__(self) -> LinearModel:
        return LinearModel(
            np.diag(self.poles), self.B, self.C, self.D, self.dt, _modal_of_model, log_poles=self.log_poles
        )


def modal_form(
    sys: Any,
    *,
    form: Literal["diagonal", "block_diagonal"] = "diagonal",
    return_transform: bool = False,
    dt: Timebase = 0,
) -> Any:
    """Bring a model to modal form, in which its poles are decoupled.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`.
    form : {"diagonal", "block_diagonal"}
        "diagonal": one state for each pole, which multiple poles without enough eigenvectors do not allow.
        "block_diagonal": exists for every model. A real state for each real pole; two for each conjugate
        pair a +- jw, with the block [[a, w], [-w, a]]; and larger quasi-triangular blocks for poles that no
        transformation with moderate entries (1e4) can separate.
    return_transform : bool
        Return ``(modal, T)``, T of shape (n, n) with x = T z for the states x of ``sys`` and z of the
        result, so that its matrices are T^-1 A T, T^-1 B and C T. This is the convention of
        ``control.modal_form``; in MATLAB's ``canon`` T is the inverse.
    dt : 0, True, float or None
        Timebase of a tuple.

    Returns
    -------
    ModalSystem
        With "diagonal". Slowest pole first; conjugate poles are next to each other, the one above the real
        axis first. Each row of B and the same column of C have equal norms where neither is zero.
    model
        With "block_diagonal": a state space of the package ``sys`` came from; a tuple for tuples and for a
        ModalSystem. The block with the slowest pole comes first. B and C have equal norms in each block
        where neither is zero.
    modal, T
        With ``return_transform=True``.

    Raises
    ------
    ModelError
        The model cannot be used; the form is unknown; the transformation of a transfer function, which has no
        states, is requested; or A has (nearly) multiple poles without enough eigenvectors, so that a diagonal
        form does not exist or would change the response by more than 1e-6 of its largest value.

    Notes
    -----
    Computed from eigenvectors in balanced units; blocks from a Schur form and Sylvester equations (Bavely and
    Stewart, SIAM J. Numer. Anal. 16 (1979)). The response of the result is compared with that of the model
    before it is returned.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> A, B, C = np.array([[0.0, 1.0], [-2.0, -3.0]]), np.array([[0.0], [1.0]]), np.array([[1.0, 0.0]])
    >>> modal, T = hankelred.modal_form((A, B, C, 0), return_transform=True)
    >>> modal.log_poles.real.round(6)
    array([-1., -2.])
    >>> bool(np.allclose(A @ T, T @ np.diag(modal.log_poles)))
    True

    A double pole with one eigenvector needs a block of two states:

    >>> jordan = ([[-1.0, 1.0], [0.0, -1.0]], [[0.0], [1.0]], [[1.0, 0.0]], 0)
    >>> hankelred.modal_form(jordan, form="block_diagonal")[0].round(6)
    array([[-1.,  1.],
           [ 0., -1.]])
    """
    require_option(form, ("diagonal", "block_diagonal"), "form", ModelError)
    model = as_model(sys, dt)
    if form == "diagonal":
        model.require_proper("a ModalSystem holds no polynomial part (form='block_diagonal' does)")
    check_transform(model, return_transform)
    if form == "diagonal":
        modal, T = diagonalize(model)
        return (modal, T) if return_transform else modal
    blocks, T = block_diagonalize(model)
    return (blocks.to_user(), T) if return_transform else blocks.to_user()


def check_transform(model: LinearModel, return_transform: bool) -> None:
    """Refuse to return a transformation of states for a transfer function, which has none."""
    if return_transform and not model.has_states:
        raise ModelError(
            "a transfer function has no states that a transformation could refer to; convert it to a state "
            "space first, or omit return_transform"
        )


def _modal_of_model(model: LinearModel) -> ModalSystem:
    return diagonalize(model)[0]


def exported(
    model: LinearModel, left: Array | None, right: Array | None
) -> tuple[Any, Array | None, Array | None]:
    """Return a reduced model in the type of the user's model, and its projection in states of these.

    The bases ``left`` and ``right`` are given from the states of the full state space, which are the finite
    ones if E is singular, to those of the reduced one. They are None if the model is no projection.
    """
    if left is None or right is None:
        return model.to_user(), None, None
    if model.infinite is not None:
        left, right = model.infinite.left @ left, model.infinite.right @ right
    if model.export is not _modal_of_model:
        return model.to_user(), left, right
    system, to_model = diagonalize(model)
    return system, left @ np.linalg.inv(to_model).T, right @ to_model


def diagonalize(model: LinearModel) -> tuple[ModalSystem, Array]:
    """Return the modal system and the matrix from its states to those of the model."""
    # a D of zeros is not checked: with thousands of inputs and outputs it is large
    D = model.D if np.any(model.D) else None
    if model.n_states == 0:
        return ModalSystem(np.zeros(0), model.B, model.C, D, dt=model.dt), np.zeros((0, 0))
    if model.log_poles is not None:
        modal = ModalSystem(model.log_poles, model.B, model.C, D, dt=model.dt)
        return modal, np.eye(model.n_states)
    system = scale_system(model.A, model.B, model.C)
    poles, V = np.linalg.eig(system.A)
    condition = float(np.linalg.cond(V))
    if not condition < 1 / EPS:
        raise ModelError(_no_diagonal_form(condition, "all digits of its response would be lost"))
    candidates = _diagonal_forms(system, poles, V, discrete=model.is_discrete)
    best = min(candidates, key=lambda form: form.response_change)
    if not (condition < DEFECTIVE and best.response_change <= MAX_RESPONSE_CHANGE):
        raise ModelError(
            _no_diagonal_form(
                condition, f"its response would change by {best.response_change:.1e} of its largest value"
            )
        )
    B, C = best.B, best.C
    half = 2.0 ** ((system.input_exponent + system.output_exponent) // 2)
    scale = equalizing_scales(np.linalg.norm(B, axis=1), np.linalg.norm(C, axis=0))
    B, C = B * (half * scale[:, None]), C * (half / scale)
    T = system.unscale_right(
        best.V * (2.0 ** ((system.input_exponent - system.output_exponent) // 2) / scale)
    )
    # make conjugates exact, so that sums over pairs are real
    for k in best.pairs:
        B[k + 1], C[:, k + 1], T[:, k + 1] = B[k].conj(), C[:, k].conj(), T[:, k].conj()
    return ModalSystem(best.log_poles, B, C, D, dt=model.dt), T


def _no_diagonal_form(condition: float, consequence: str) -> str:
    return (
        "the model has no diagonal form: it has (nearly) multiple poles without enough eigenvectors, whose "
        f"condition number is {condition:.1e}; {consequence}. modal_form(..., "
        "form='block_diagonal') keeps such poles together in one block"
    )


@dataclass(frozen=True)
class _DiagonalForm:
    """A diagonal form in the units of the scaled model, and its largest relative change of the response."""

    log_poles: Array
    B: Array
    C: Array
    V: Array
    #: where conjugate pairs start; empty for a complex model
    pairs: list[int]
    response_change: float


def _diagonal_forms(system: ScaledSystem, poles: Array, V: Array, *, discrete: bool) -> list[_DiagonalForm]:
    """Return two diagonal forms: by projection onto the eigenvectors, and by the eigenvectors alone.

    The projection, with twice the digits, has a slow pole beside fast ones to full accuracy; nearly
    multiple poles it may have less accurately.

    LAPACK returns a conjugate pair of a real matrix as neighbors, the pole above the axis first. Linear
    systems are solved with two real columns, Re v and Im v, in place of their eigenvectors: huge coefficients
    of nearly parallel eigenvectors then cancel in real arithmetic, and the solutions stay exact conjugates.
    """
    paired = not (np.iscomplexobj(system.A) or np.iscomplexobj(system.B))
    upper = np.flatnonzero(poles.imag > 0) if paired else np.zeros(0, dtype=int)
    columns = _real_columns(V, upper) if paired else V
    plain = sla.solve(columns, system.B.astype(columns.dtype)), system.C @ columns
    projection = project_exactly(system, np.linalg.inv(columns).conj().T, columns)
    correction = _eigenvector_correction(projection, poles, upper)
    corrected = V
    if correction is not None:
        corrected = V + V @ correction
        columns = _real_columns(corrected, upper) if paired else corrected
        projection = project_exactly(system, np.linalg.inv(columns).conj().T, columns)
    high, low = (np.diag(M).astype(complex) for M in (projection.A, projection.A_low))
    for diagonal, M in ((high, projection.A), (low, projection.A_low)):
        # the block of a pair a +- jw is [[a, w], [-w, a]] in these columns
        diagonal[upper] = (M[upper, upper] + M[upper + 1, upper + 1]) / 2 + 0.5j * (
            M[upper, upper + 1] - M[upper + 1, upper]
        )
        diagonal[upper + 1] = diagonal[upper].conj()
    forms = []
    for pole, pole_low, B, C, right in (
        (high, low, projection.B, projection.C, corrected),
        (poles.astype(complex), np.zeros(poles.size), *plain, V),
    ):
        B, C = B.astype(complex), C.astype(complex)
        # x = p Re v + q Im v is the sum of (p - jq) / 2 v and its conjugate
        B[upper], C[:, upper] = (B[upper] - 1j * B[upper + 1]) / 2, C[:, upper] + 1j * C[:, upper + 1]
        B[upper + 1], C[:, upper + 1] = B[upper].conj(), C[:, upper].conj()
        order = _pole_order(pole, upper if paired else None, discrete=discrete)
        logs = pole + pole_low
        if discrete:
            with np.errstate(divide="ignore", invalid="ignore"):
                # near 1 the low part dominates the logarithm
                logs = np.where(pole == 0, -np.inf, np.log(pole) + pole_low / pole)
        logs, B, C = logs[order], B[order], C[:, order]
        poles_of_logs = np.exp(logs) if discrete else logs
        response_change = difference_of_responses(
            (system.A, system.B, system.C),
            lambda s, C=C, B=B, poles_of_logs=poles_of_logs: (C / (s - poles_of_logs)) @ B,  # type: ignore[misc]
            poles_of_logs,
            discrete=discrete,
        )
        pairs = [int(k) for k in np.flatnonzero(np.isin(order, upper))]
        forms.append(_DiagonalForm(logs, B, C, right[:, order].astype(complex), pairs, response_change))
    return forms


def _real_columns(V: Array, upper: Array) -> Array:
    """Return real columns Re v, Im v for each conjugate pair of eigenvectors v that starts at `upper`."""
    columns = V.copy()
    columns[:, upper + 1] = V[:, upper].imag
    return columns.real


def _eigenvector_correction(projected: ProjectedSystem, poles: Array, upper: Array) -> Array | None:
    """Return F so that V (1 + F) are eigenvectors up to the square of F; None if F is large.

    The off-diagonal entries of the projection are the errors of the eigenvectors V times the distances of
    their poles; a few digits of them are enough.
    """
    # from the real columns of pairs to their eigenvectors, v = Re v + j Im v and its conjugate
    to_pairs = np.eye(poles.size, dtype=complex)
    for k in upper:
        to_pairs[k : k + 2, k : k + 2] = [[1, 1], [1j, -1j]]
    off_diagonal = np.linalg.solve(to_pairs, (projected.A + projected.A_low) @ to_pairs)
    gaps = poles[None, :] - poles[:, None]
    correction = np.where(gaps == 0, 0.0, off_diagonal / np.where(gaps == 0, 1.0, gaps))
    return correction if np.abs(correction).max(initial=0.0) < LARGEST_CORRECTION else None


def _pole_order(poles: Array, upper: Array | None, *, discrete: bool) -> Array:
    """Return the order slowest pole first; pairs, which start at `upper`, stay together (None: complex)."""
    rate = np.abs(poles) if discrete else poles.real
    if upper is None:
        return np.argsort(-rate, kind="stable")
    first = np.setdiff1d(np.arange(poles.size), upper + 1)
    starts = first[np.lexsort((np.abs(poles[first].imag), -rate[first]))]
    return np.concatenate([[k, k + 1] if k in upper else [k] for k in starts]).astype(int)
