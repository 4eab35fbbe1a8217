"""Diagonal systems: a model as poles, input rows and output columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from ._arrays import Array
from ._errors import ModelError
from ._pairs import real_coordinates
from .models import LARGEST, LinearModel, Timebase, as_model, is_discrete, validated_timebase

#: Eigenvectors with a larger condition number are taken for those of a defective matrix.
DEFECTIVE = 1e12


class ModalSystem:
    """A linear system with diagonal A, given by its poles on a logarithmic scale.

    In discrete time the poles are ``exp(log_poles)``, so that a decay of 1e-9 per sample keeps all its
    digits; in continuous time they are ``log_poles`` themselves. Gramians are closed forms and cost
    O(n^2 (m + p)). Every function of hankelred that takes a model takes this one.

    Parameters
    ----------
    log_poles : array_like, shape (n,)
        Complex poles of a real system come in conjugate pairs standing side by side. ``-inf`` is the
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
        finite_poles = np.isfinite(self.log_poles)
        if is_discrete(self.dt):
            finite_poles |= np.isneginf(self.log_poles.real) & np.isfinite(self.log_poles.imag)
        for name, ok in (
            ("log_poles", finite_poles),
            ("B", np.isfinite(self.B)),
            ("C", np.isfinite(self.C)),
            ("D", np.isfinite(() if direct is None else direct)),
        ):
            if not np.all(ok):
                where = tuple(int(i) for i in np.argwhere(~ok)[0])
                raise ModelError(
                    f"{name}{list(where)} is {getattr(self, name)[where]}; every entry must be finite"
                )
        # the same room for squares that other models need; exp(log_poles) must have it too
        logs = self.log_poles.real if is_discrete(self.dt) else np.zeros(0)
        for name, size, largest in (
            ("log_poles", float(logs.max(initial=0.0)), math.log(LARGEST)),
            ("B", float(np.abs(self.B).max(initial=0.0)), LARGEST),
            ("C", float(np.abs(self.C).max(initial=0.0)), LARGEST),
            ("D", 0.0 if direct is None else float(np.abs(direct).max(initial=0.0)), LARGEST),
        ):
            if size > largest:
                raise ModelError(
                    f"the largest entry of {name} is {size:.1e}, and at most {largest:.3g} can be worked "
                    "with: choose other units"
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


def modal_form(sys: Any, *, dt: Timebase = 0) -> ModalSystem:
    """Diagonalise a model.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`.
    dt : 0, True, float or None
        Timebase of a tuple.

    Returns
    -------
    ModalSystem
        Slowest pole first; conjugate pairs stand side by side, the one above the real axis first. Each
        row of B and column of C have the same norm where neither is zero.

    Raises
    ------
    ModelError
        The model cannot be used, or A has multiple poles without enough eigenvectors, so that no
        diagonal form exists.

    Examples
    --------
    >>> import hankelred
    >>> modal = hankelred.modal_form(([[0.0, 1.0], [-2.0, -3.0]], [[0.0], [1.0]], [[1.0, 0.0]], 0))
    >>> modal.log_poles.real.round(6)
    array([-1., -2.])
    """
    return _modal_of_model(as_model(sys, dt))


def _modal_of_model(model: LinearModel) -> ModalSystem:
    return diagonalised(model)[0]


def diagonalised(model: LinearModel) -> tuple[ModalSystem, Array]:
    """Return the modal system and the matrix from its states to those of the model."""
    # thousands of inputs and outputs without a direct term: a D of zeros is not worth checking
    D = model.D if np.any(model.D) else None
    if model.n_states == 0:
        return ModalSystem(np.zeros(0), model.B, model.C, D, dt=model.dt), np.zeros((0, 0))
    if model.log_poles is not None:
        same = ModalSystem(model.log_poles, model.B, model.C, D, dt=model.dt)
        return same, np.eye(model.n_states)
    poles, V = np.linalg.eig(model.A)
    condition = np.linalg.cond(V)
    if not condition < DEFECTIVE:
        raise ModelError(
            f"the model has no diagonal form: its eigenvectors have condition number {condition:.1e}, so it "
            "has (nearly) multiple poles; perturb the model, or keep it as a state space"
        )
    order, real = _pole_order(poles, discrete=model.is_discrete, paired=not model.is_complex)
    poles, V = poles[order].astype(complex), V[:, order].astype(complex)
    if not model.is_complex:
        # exact conjugates, so that nothing imaginary is left when the pairs are summed
        for k in np.flatnonzero(~real[order])[::2]:
            poles[k + 1], V[:, k + 1] = poles[k].conjugate(), V[:, k].conj()
    B, C = sla.solve(V, model.B.astype(complex)), model.C @ V
    reach, sight = np.linalg.norm(B, axis=1), np.linalg.norm(C, axis=0)
    usable = (reach > 0) & (sight > 0)
    scale = np.ones(poles.size)
    scale[usable] = np.sqrt(sight[usable] / reach[usable])
    B, C = B * scale[:, None], C / scale
    if not model.is_complex:
        for k in np.flatnonzero(~real[order])[::2]:
            B[k + 1], C[:, k + 1] = B[k].conj(), C[:, k].conj()
        single = real[order]
        B[single], C[:, single] = B[single].real, C[:, single].real
    if not model.is_discrete:
        return ModalSystem(poles, B, C, D, dt=model.dt), V / scale
    with np.errstate(divide="ignore"):
        logs = np.log(poles)
    return ModalSystem(logs, B, C, D, dt=model.dt), V / scale


def _pole_order(poles: Array, *, discrete: bool, paired: bool) -> tuple[Array, Array]:
    """Return the order slowest first, pairs together, and which poles are real."""
    rate = np.abs(poles) if discrete else poles.real
    real = poles.imag == 0
    if not paired:
        return np.argsort(-rate, kind="stable"), real
    # members of a pair come from LAPACK with equal real part and opposite imaginary part
    keys = (poles.imag < 0, np.abs(poles.imag), -rate)
    return np.lexsort(keys), real
