"""Conversion of any linear time-invariant model to one internal state space, and back to its type.

Only this module handles the different types of models. All other modules work on :class:`LinearModel` and
return their results through :meth:`LinearModel.to_user`.
"""

from __future__ import annotations

import math
import os
import sys as _sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array, is_moderate, largest_entry
from .._util.checks import real_number, require_finite
from ..errors import ConvergenceError, ModelError
from .conjugate_pairs import real_coordinates
from .descriptor import (
    ALWAYS_CORRECTED,
    InfinitePart,
    finite_part,
    keeps_response,
    nilpotent_realization,
)
from .other_packages import matrices_of
from .rational import series_from_zpk, state_space_from_rational, transfer_entries, zeros_poles_gain

Timebase: TypeAlias = bool | int | float | None

#: Sparse matrices are converted to dense ones up to this many states.
DENSE_LIMIT = 5000

#: Rows of E smaller than this share of the largest may be stray capacitances, and poles smaller than this
#: share of the fastest are rounding in E^-1 A.
STRAY = 1e-9

#: With a smaller reciprocal condition number of E the rank of E is decided by singular values.
NEARLY_SINGULAR = 1e-13

#: With a larger one, E^-1 A has the digits of the model; below, its transfer function is compared.
WELL_CONDITIONED = 1e-6

#: Upper limit of the entries of a model: sums of their squares must stay finite.
LARGEST_ENTRY = 1e152

ACCEPTED_TYPES = (
    "control.StateSpace, control.TransferFunction, a scipy.signal lti/dlti, "
    "a hankelred.ModalSystem, a tuple (A, B, C, D) or (A, B, C, D, E), a dict of these, or an object of "
    "another package that has them and a sampling time"
)


def to_tuple(model: LinearModel) -> tuple[Array, ...]:
    """Return the matrices, with an E only where the model is improper."""
    if not model.improper:
        return model.as_tuple()
    E, B, C = nilpotent_realization(model.improper)
    return (
        sla.block_diag(model.A, np.eye(E.shape[0])),
        np.concatenate([model.B, B]),
        np.concatenate([model.C, C], axis=1),
        model.D,
        sla.block_diag(np.eye(model.n_states), E),
    )


class Dimensions:
    """Numbers of states, inputs and outputs, and the time domain, from B, C and dt."""

    B: Array
    C: Array
    dt: Timebase

    @property
    def n_states(self) -> int:
        """Number of states."""
        return int(self.B.shape[0])

    @property
    def n_all_states(self) -> int:
        """Number of states, those that a singular E makes algebraic included."""
        return self.n_states

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return int(self.B.shape[1])

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return int(self.C.shape[0])

    @property
    def is_discrete(self) -> bool:
        """Whether the model is in discrete time."""
        return is_discrete(self.dt)


@dataclass(frozen=True, eq=False)
class LinearModel(Dimensions):
    """The internal state space, with the conversion back to the type of the user's model.

    ``x' = A x + B u, y = C x + D u`` in continuous time (``dt`` 0 or None),
    ``x[k+1] = A x[k] + B u[k]`` otherwise.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    dt: Timebase = 0
    #: converts this model to the user's type
    export: Callable[[LinearModel], Any] = field(default=to_tuple, repr=False)
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None
    name: str | None = None
    #: log poles, where A is diag(log_poles) or, in discrete time, diag(exp(log_poles))
    log_poles: Array | None = None
    #: what a model with a singular E has beside A, B, C and D, which are those of its finite poles
    infinite: InfinitePart | None = None

    @property
    def n_all_states(self) -> int:
        """Number of states, those that a singular E makes algebraic included."""
        return self.n_states if self.infinite is None else self.infinite.n_states

    @property
    def is_complex(self) -> bool:
        """Whether any matrix is complex."""
        return any(np.iscomplexobj(M) for M in (self.A, self.B, self.C, self.D))

    def as_tuple(self) -> tuple[Array, Array, Array, Array]:
        """Return (A, B, C, D)."""
        return self.A, self.B, self.C, self.D

    def in_real_states(self) -> tuple[LinearModel, Array | None]:
        """Return a real state space of a modal model that is real, and the unitary map to its states.

        Any other model is returned unchanged, with None.
        """
        if self.log_poles is None:
            return self, None
        unitary = real_coordinates(self.log_poles, self.B, self.C, self.D, discrete=self.is_discrete)
        if unitary is None:
            return self, None
        adjoint = unitary.conj().T
        A, B, C = (unitary @ self.A @ adjoint).real, (unitary @ self.B).real, (self.C @ adjoint).real
        return self.with_matrices(A, B, C, self.D.real), unitary

    def with_matrices(self, A: Array, B: Array, C: Array, D: Array) -> LinearModel:
        """Return a model of the same type, dt and names with other matrices."""
        return replace(self, A=A, B=B, C=C, D=D, log_poles=None)

    def to_user(self) -> Any:
        """Return the model in the type of the user's model."""
        return self.export(self)

    @property
    def improper(self) -> tuple[Array, ...]:
        """D_1, D_2, ... of the transfer function C (s - A)^-1 B + D + s D_1 + ...; empty if it is proper."""
        return () if self.infinite is None else self.infinite.improper

    def require_proper(self, what: str) -> None:
        """Refuse a model whose gain grows with frequency.

        Raises
        ------
        ModelError
            An improper model.
        """
        if self.improper:
            sizes = ", ".join(f"|D_{k}| = {np.linalg.norm(D):.2g}" for k, D in enumerate(self.improper, 1))
            raise ModelError(
                f"the model is improper of degree {len(self.improper)} ({sizes} of s^k D_k), and {what}: "
                "choose outputs, or filter inputs, so that no derivative of an input is an output"
            )

    def tolerance(self, tol: float, size: float) -> float:
        """Return the tolerance of stability relative to the size of A; with a singular E by its pencil."""
        if self.infinite is None:
            return tol
        return self.infinite.tolerance(tol, size, discrete=self.is_discrete)

    def proper_part(self) -> LinearModel:
        """Return the model without the polynomial s D_1 + s^2 D_2 + ..."""
        return self if self.infinite is None else replace(self, infinite=None)

    @property
    def has_states(self) -> bool:
        """Whether the type of the user's model has states: a transfer function has none."""
        return self.export not in STATELESS

    def as_state_space(self) -> LinearModel:
        """Return the model with an export to the state-space type of the package it came from."""
        return replace(self, export=STATELESS.get(self.export, self.export))


def is_discrete(dt: Timebase) -> bool:
    """Return whether a timebase means discrete time; None does not, as in python-control."""
    return dt is not None and bool(dt)


def as_model(sys: Any, dt: Timebase = 0) -> LinearModel:
    """Convert any accepted model to the internal form.

    Parameters
    ----------
    sys : model
        See :data:`ACCEPTED_TYPES`.
    dt : 0, True, float or None
        Timebase of a tuple; every other type has its own.

    Raises
    ------
    ModelError
        Unknown type, shapes that do not fit, NaN or Inf, a singular pencil, too large.
    """
    if isinstance(sys, LinearModel):
        return sys
    convert = getattr(sys, "__hankelred_model__", None)
    if convert is not None:
        return convert()
    if isinstance(sys, tuple | list):
        return _from_tuple(sys, dt)
    model = _from_loaded_package(sys)
    if model is not None:
        return model
    if isinstance(sys, str | os.PathLike) or hasattr(sys, "hankel_singular_values"):
        raise ModelError(_not_a_model(sys))
    matrices = matrices_of(sys, dt)
    if matrices is None:
        raise ModelError(_not_a_model(sys))
    return _from_tuple(*matrices)


def _from_loaded_package(sys: Any) -> LinearModel | None:
    """Convert an object of control or scipy.signal, None for others.

    Such an object exists only if its module is loaded, so neither is imported here: both are slow to import,
    and control brings matplotlib.
    """
    control = _sys.modules.get("control")
    if control is not None:
        if isinstance(sys, control.StateSpace):
            return _from_control_ss(sys)
        if isinstance(sys, control.TransferFunction):
            return _from_control_tf(sys)
        if isinstance(sys, control.FrequencyResponseData):
            raise ModelError(
                "a FrequencyResponseData holds a response at some frequencies, not a model; fit one to it "
                "first, with hankelred.fit_frequency_response"
            )
        if isinstance(sys, control.InputOutputSystem):
            raise ModelError(
                f"{type(sys).__name__} is not a linear model; linearize it (its .linearize(x0, u0)), or "
                "pass a simulator of it to empirical_gramians"
            )
    signal = _sys.modules.get("scipy.signal")
    if signal is not None and isinstance(sys, signal.lti | signal.dlti):
        return _from_scipy(sys)
    return None


def _not_a_model(sys: Any) -> str:
    """Return what an object is that is no model, and what to do with it."""
    if isinstance(sys, str | os.PathLike):
        return f"{str(sys)!r} is a path, not a model; read it with `from hankelred.files import read_model`"
    if hasattr(sys, "hankel_singular_values"):
        usable = "its .system" if hasattr(sys, "system") else "the model it came from"
        return f"{type(sys).__name__} is a result, not a model; pass {usable}"
    advice = "; pass a simulator to empirical_gramians" if callable(sys) else ""
    return f"cannot use {type(sys).__module__}.{type(sys).__name__} as a model; pass {ACCEPTED_TYPES}{advice}"


def validated_matrices(
    A: Any, B: Any, C: Any, D: Any = None, *, dt: Timebase = 0
) -> tuple[Array, Array, Array, Array, Timebase]:
    """Check matrices and convert them to 2-D float64 or complex128 arrays."""
    A, B, C, D = _with_one_dtype(*_shaped_matrices(A, B, C, D))
    check_range("ABCD", A, B, C, D)
    return A, B, C, D, validated_timebase(dt)


def matrices_model(A: Any, B: Any, C: Any, D: Any = None, E: Any = None, *, dt: Timebase = 0) -> LinearModel:
    """Return the model of matrices; E is eliminated, and infinite poles are separated if it is singular."""
    if E is None:
        return LinearModel(*validated_matrices(A, B, C, D, dt=dt))
    dt = validated_timebase(dt)
    A, B, C, D = _shaped_matrices(A, B, C, D)
    E = numeric_matrix(E, "E")
    if E.shape != A.shape:
        raise ModelError(f"E must have shape {A.shape} as A has, got {E.shape}")
    folded = _fold_descriptor(A, B, E)
    # fast poles of a nearly singular E leave rounding in E^-1 A that is large beside the slow ones
    if folded is not None and folded[2] < WELL_CONDITIONED:
        model = A, B, C, D, E
        folded = folded if keeps_response(model, folded[:2], discrete=is_discrete(dt)) else None
    infinite = stray = None
    if folded is not None and not is_discrete(dt) and _has_stray_entries(E):
        stray = _without_infinite_poles(A, B, C, D, E)
    if stray is not None:
        A, B, C, D, infinite = stray
    elif folded is not None:
        A, B, C, D = _with_one_dtype(*folded[:2], C, D)
    else:
        A, B, C, D, E = _with_one_dtype(A, B, C, D, E)
        check_range("ABCD", A, B, C, D)
        A, B, C, D, infinite = finite_part(A, B, C, D, E, discrete=is_discrete(dt))
    check_range("ABCD", A, B, C, D)
    return LinearModel(A, B, C, D, dt, infinite=infinite)


def _has_stray_entries(E: Array) -> bool:
    """Tell whether the sizes of the rows of E, none of which is zero, differ as with stray capacitances."""
    if not 0 < E.shape[0] <= ALWAYS_CORRECTED:
        return False
    rows = np.abs(E).max(axis=1)
    return bool(rows.min() < STRAY * rows.max())


def _without_infinite_poles(
    A: Array, B: Array, C: Array, D: Array, E: Array
) -> tuple[Array, Array, Array, Array, InfinitePart] | None:
    """Return the state space in which stability is decided on the pencil; None if it has infinite poles.

    Poles of stray entries are so fast that the others are rounding beside the size of E^-1 A.
    """
    A, B, C, D, E = _with_one_dtype(A, B, C, D, E)
    try:
        parts = finite_part(A, B, C, D, E, discrete=False)
    except (ModelError, ConvergenceError):
        return None
    poles = parts[-1].poles
    if poles is None or poles.size < A.shape[0] or np.abs(poles).min() >= STRAY * np.abs(poles).max():
        return None
    return parts


def _with_one_dtype(*matrices: Array) -> tuple[Array, ...]:
    """Return all matrices as complex ones if an entry has an imaginary part, and as real ones otherwise."""
    if not any(map(np.iscomplexobj, matrices)):
        return matrices
    dtype = complex if any(np.iscomplexobj(M) and np.any(M.imag) for M in matrices) else float
    return tuple(np.asarray(M if dtype is complex else M.real, dtype=dtype) for M in matrices)


def _shaped_matrices(A: Any, B: Any, C: Any, D: Any) -> tuple[Array, Array, Array, Array]:
    """Return the matrices as 2-D arrays of numbers; refuse shapes that do not fit."""
    A = numeric_matrix(A, "A")
    if A.size == 0:
        A = A.reshape(0, 0)
    n = A.shape[0]
    if A.shape != (n, n):
        raise ModelError(f"A must be square, got shape {A.shape}")
    if n == 0:
        B, C = _empty_inputs_and_outputs(B, C, D)
    return A, *shaped_ports(B, C, D, n)


def shaped_ports(B: Any, C: Any, D: Any, n: int, names: Sequence[str] = "ABCD") -> tuple[Array, Array, Array]:
    """Return B, C and D as 2-D arrays of numbers; refuse shapes that do not fit n states.

    The errors name the matrices as `names` does: the one with a row for each state, and these three.
    """
    square, in_name, out_name, direct_name = names
    B = numeric_matrix(B, in_name, column=True)
    C = numeric_matrix(C, out_name)
    if B.shape[0] != n:
        raise ModelError(f"{in_name} must have {n} rows as {square} has, got shape {B.shape}")
    if C.shape[1] != n:
        raise ModelError(f"{out_name} must have {n} columns as {square} has, got shape {C.shape}")
    shape = (C.shape[0], B.shape[1])
    if D is None or (type(D) in (int, float) and D == 0):
        return B, C, np.zeros(shape)
    D = numeric_matrix(D, direct_name)
    if (D.size == 1 and D.flat[0] == 0) or (D.size == 0 and 0 in shape):
        D = np.zeros(shape)  # D = 0 is customary for any size
    if D.shape != shape:
        raise ModelError(f"{direct_name} must have shape {shape} (outputs, inputs), got {D.shape}")
    return B, C, D


def check_range(names: Sequence[str], *matrices: Array) -> None:
    """Refuse entries whose squares would overflow."""
    for name, M in zip(names, matrices, strict=True):
        if is_moderate(M):
            continue
        size = largest_entry(M)
        if size > LARGEST_ENTRY:
            raise ModelError(
                f"the largest entry of {name} is {size:.1e}, and at most {LARGEST_ENTRY:.0e} is accepted: "
                "choose other units"
            )


def validated_timebase(dt: Any) -> Timebase:
    """Check a timebase: 0, True, a positive number of seconds, or None."""
    if isinstance(dt, np.bool_):
        dt = bool(dt)
    if dt is None or dt is True:
        return dt
    if isinstance(dt, np.ndarray) and dt.ndim > 0:
        raise ModelError(f"dt must be one number, the seconds between samples, got shape {dt.shape}")
    requirement = "dt must be 0, True, a positive number of seconds or None"
    value = real_number(dt, lambda seconds: 0 <= seconds < math.inf, requirement, ModelError)
    return 0 if value == 0 else value


def numeric_matrix(M: Any, name: str, *, column: bool = False) -> Array:
    """Return a matrix of finite floats or complex numbers; refuse what is none."""
    if M is None:
        raise ModelError(
            f"{name} is None; a model needs A, B and C (and D = 0 where there is no direct term)"
        )
    if hasattr(M, "toarray"):  # sparse; scipy.sparse itself is slow to import
        if max(M.shape) > DENSE_LIMIT:
            raise ModelError(
                f"{name} is sparse with shape {M.shape}; sparse models are converted to dense ones up to "
                f"n = {DENSE_LIMIT} states; hankel_singular_values, reduce, norm and gramian(factor=True) "
                "take larger ones"
            )
        M = checked_sparse(M, name).toarray()
    try:
        out = np.array(M, copy=True)
        is_converted = out.dtype in (np.float64, np.complex128)
        # numpy would silently convert these to numbers
        if (not is_converted and out.dtype.kind in "USMm") or (
            out.dtype == object and any(isinstance(x, str | bytes) for x in out.flat)
        ):
            raise TypeError("it holds strings or dates")
        if not is_converted:
            with np.errstate(over="ignore"):  # of a longer floating-point type; refused below
                out = out.astype(complex if np.iscomplexobj(out) else float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{name} is not a numeric matrix: {error}") from None
    if out.ndim < 2:
        out = out.reshape(-1, 1) if column else out.reshape(1, -1)
    if out.ndim != 2:
        raise ModelError(f"{name} must be a matrix, got an array of shape {out.shape}")
    if not is_moderate(out) and not math.isfinite(largest_entry(out)):
        require_finite(out, name, ModelError)
    return out


def checked_sparse(M: Any, name: str) -> Any:
    """Refuse a sparse matrix with indices out of range: toarray would write outside its array."""
    try:
        if hasattr(M, "check_format"):
            M = M.copy()  # the check drops unused space
            M.check_format(full_check=True)
        elif M.format == "coo" and M.nnz:
            for length, index in zip(M.shape, (M.row, M.col), strict=True):
                if index.min() < 0 or index.max() >= length:
                    raise ValueError(f"index {index.max()} or {index.min()} for a length of {length}")
    except ValueError as error:
        raise ModelError(f"{name} is a damaged sparse matrix: {error}") from None
    return M


def _empty_inputs_and_outputs(B: Any, C: Any, D: Any) -> tuple[Any, Any]:
    """Give B and C of a model without states their shapes: their own, or by those of D where they are []."""
    shapes = [getattr(M, "shape", None) or np.shape(M) for M in (B, C)]
    if any(0 not in shape for shape in shapes):
        return B, C  # refused later for their shapes
    shape_of_D = (1, 1) if D is None else np.shape(np.atleast_2d(D))[-2:]
    if len(shapes[0]) != 2 or shapes[0] == (1, 0):
        B = np.zeros((0, shape_of_D[1]))
    if len(shapes[1]) != 2 or shapes[1] == (1, 0):
        C = np.zeros((shape_of_D[0], 0))
    return B, C


def _fold_descriptor(A: Array, B: Array, E: Array) -> tuple[Array, Array, float] | None:
    """Return E^-1 A, E^-1 B and the reciprocal condition of E; None if E is singular to working precision."""
    n = A.shape[0]
    if n == 0:
        return A, B, 1.0
    # Scale rows and columns first, so that bad units alone do not make E look singular.
    rows = np.abs(E).max(axis=1)
    if rows.min() == 0:
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = E / rows[:, None]
    if not np.all(np.isfinite(scaled)):
        raise ModelError(_TINY_E.format(rows.min()))
    cols = np.abs(scaled).max(axis=0)
    if cols.min() == 0:
        return None
    scaled = scaled / cols
    # of A and B too: the solver of a real E would drop the imaginary parts of a right side
    gecon, getrf, getrs = sla.get_lapack_funcs(("gecon", "getrf", "getrs"), (scaled, A, B))
    lu, piv, info = getrf(scaled)
    rcond = 0.0 if info > 0 else float(gecon(lu, np.linalg.norm(scaled, 1))[0])
    if rcond < max(n * EPS, NEARLY_SINGULAR):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        rhs = np.concatenate([A, B], axis=1) / rows[:, None]
        solved = getrs(lu, piv, rhs.astype(np.result_type(lu, rhs)))[0] / cols[:, None]
    if not np.all(np.isfinite(solved)):
        raise ModelError(_TINY_E.format(rows.min()))
    return solved[:, :n], solved[:, n:], rcond


_TINY_E = (
    "E^-1 A or E^-1 B exceeds double precision: the largest entry of a row of E is down to {:.1e}; choose "
    "other units"
)


def _from_tuple(sys: Sequence[Any], dt: Timebase) -> LinearModel:
    if len(sys) not in (4, 5):
        raise ModelError(
            f"a tuple model has 4 or 5 entries, (A, B, C, D) or (A, B, C, D, E), got {len(sys)}; write D = 0 "
            "where there is none; pass numerator/denominator or zeros/poles/gain as "
            "scipy.signal.TransferFunction or ZerosPolesGain"
        )
    return matrices_model(*sys, dt=dt)


def _from_control_ss(sys: Any) -> LinearModel:
    A, B, C, D, dt = validated_matrices(sys.A, sys.B, sys.C, sys.D, dt=sys.dt)
    return LinearModel(
        A, B, C, D, dt, to_control, tuple(sys.input_labels), tuple(sys.output_labels), sys.name
    )


def _from_control_tf(sys: Any) -> LinearModel:
    p, m = sys.noutputs, sys.ninputs
    num = [[np.asarray(sys.num_array[i, j]) for j in range(m)] for i in range(p)]
    den = [[np.asarray(sys.den_array[i, j]) for j in range(m)] for i in range(p)]
    A, B, C, D, dt = validated_matrices(*state_space_from_rational(num, den), dt=sys.dt)
    return LinearModel(
        A, B, C, D, dt, _to_control_tf, tuple(sys.input_labels), tuple(sys.output_labels), sys.name
    )


def _from_scipy(sys: Any) -> LinearModel:
    import scipy.signal as signal

    matrices: tuple[Any, ...]
    export: Callable[[LinearModel], Any]
    if isinstance(sys, signal.TransferFunction):
        # scipy's transfer functions have one input; num is 2-D where there are several outputs
        rows = np.atleast_2d(sys.num)
        matrices = state_space_from_rational([[row] for row in rows], [[sys.den] for _ in rows])
        export = _to_scipy_tf
    elif isinstance(sys, signal.ZerosPolesGain):
        matrices, export = series_from_zpk(sys.zeros, sys.poles, sys.gain), _to_scipy_zpk
    else:
        matrices, export = (sys.A, sys.B, sys.C, sys.D), _to_scipy_ss
    A, B, C, D, dt = validated_matrices(*matrices, dt=0 if sys.dt is None else sys.dt)
    return LinearModel(A, B, C, D, dt, export)


# The exports are functions of the module, not closures, so that results can be pickled.


def to_control(model: LinearModel) -> Any:
    """Return a control.StateSpace, or the matrices of a complex model, for which control has no type."""
    if model.is_complex:
        return model.as_tuple()
    import control

    return control.StateSpace(
        *model.as_tuple(), model.dt, remove_useless_states=False, **_signal_names(model)
    )


def _to_control_tf(model: LinearModel) -> Any:
    import control

    num, den = transfer_entries(*model.as_tuple(), discrete=model.is_discrete)
    return control.TransferFunction(num, den, model.dt, **_signal_names(model))


def _signal_names(model: LinearModel) -> dict[str, Any]:
    return {
        "inputs": list(model.input_labels or ()) or None,
        "outputs": list(model.output_labels or ()) or None,
        "name": model.name,
    }


def _to_scipy_ss(model: LinearModel) -> Any:
    import scipy.signal as signal

    return _with_timebase(signal.StateSpace, model, *model.as_tuple())


def _to_scipy_zpk(model: LinearModel) -> Any:
    import scipy.signal as signal

    zeros_and_poles = zeros_poles_gain(*model.as_tuple(), discrete=model.is_discrete)
    return _with_timebase(signal.ZerosPolesGain, model, *zeros_and_poles)


def _to_scipy_tf(model: LinearModel) -> Any:
    import scipy.signal as signal

    num, den = transfer_entries(*model.as_tuple(), discrete=model.is_discrete)
    width = max(entry[0].size for entry in num)
    padded = [np.pad(entry[0], (width - entry[0].size, 0)) for entry in num]
    with warnings.catch_warnings():
        # scipy.signal warns about leading zeros, which zero and strictly proper numerators have
        warnings.simplefilter("ignore", signal.BadCoefficients)
        return _with_timebase(
            signal.TransferFunction, model, padded if len(padded) > 1 else padded[0], den[0][0]
        )


#: Exports to types without states, and the corresponding exports to the state-space type of the package.
STATELESS: dict[Callable[[LinearModel], Any], Callable[[LinearModel], Any]] = {
    _to_control_tf: to_control,
    _to_scipy_tf: _to_scipy_ss,
    _to_scipy_zpk: _to_scipy_ss,
}


def _with_timebase(kind: Any, model: LinearModel, *arguments: Any) -> Any:
    return kind(*arguments, dt=model.dt) if model.is_discrete else kind(*arguments)


def sampling_time(dt: Timebase) -> float:
    """Return the time between the samples of a discrete-time model, 1 where it is unspecified."""
    return 1.0 if dt is True else float(dt or 0)


def timestep(dt: Timebase) -> str:
    """Return the sampling time of a discrete-time model as text."""
    return "dt unspecified" if dt is True else f"dt = {dt}"
