"""Large sparse models, which are not converted to dense ones: ``E x' = A x + B u, y = C x + D u``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from .._util.arrays import Array
from .._util.checks import first_index, require_option
from ..errors import ConvergenceError, ModelError
from .descriptor_sparse import REMEDY, BorderedPencil, bordered_parts
from .linear_model import (
    DENSE_LIMIT,
    Dimensions,
    LinearModel,
    Timebase,
    as_model,
    check_range,
    checked_sparse,
    is_discrete,
    numeric_matrix,
    shaped_ports,
    validated_timebase,
)
from .other_packages import matrices_of
from .pencil import Factorize, Pencil, SparsePencil

Result = TypeVar("Result")

SINGULAR_E = "E is singular to working precision ({}), and not by rows and columns of zeros: " + REMEDY

SOLVERS = ("auto", "dense", "low_rank")


@dataclass(frozen=True, eq=False)
class SparseModel(Dimensions):
    """A model of a pencil, B, C and D.

    ``E x[k+1] = A x[k] + B u[k]`` in discrete time.
    """

    #: creates the pencil of A and E, or of their bilinear transform, with a sparse factorization
    make_pencil: Callable[[Factorize | None], Pencil] = field(repr=False)
    B: Array
    C: Array
    D: Array
    dt: Timebase
    #: converts the model to dense matrices, for any number of states
    dense: Callable[[], LinearModel] = field(repr=False)
    #: whether the dense solver is used if the Gramians do not have low rank
    falls_back: bool = False
    #: number of finite poles, if E is singular; B and C are those of the states with a derivative then
    finite_order: int | None = None

    def __hankelred_model__(self) -> LinearModel:
        """Raise an error: the matrices are made dense on request only."""
        raise ModelError(
            f"the model has {self.n_states} states, and this works densely up to n = {DENSE_LIMIT}; "
            "hankel_singular_values, reduce, norm, simulate, impulse_response and gramian(factor=True) take "
            "larger ones"
        )


def any_model(sys: Any, dt: Timebase = 0, solver: str = "auto") -> SparseModel | LinearModel:
    """Return the model in sparse form if the low-rank solver is to be used, and in dense form otherwise.

    With ``solver="auto"`` it is used for sparse tuples of more than :data:`DENSE_LIMIT` states, and for
    models whose method ``__hankelred_sparse_model__`` returns a sparse form.

    Raises
    ------
    ModelError
        An unknown solver; matrices that do not make a model.
    """
    require_option(solver, SOLVERS, "solver", ModelError)
    if solver == "dense":
        return dense_model(sys, dt, solver)
    if isinstance(sys, SparseModel):
        return sys
    to_sparse = getattr(sys, "__hankelred_sparse_model__", None)
    if to_sparse is not None:
        large: SparseModel | None = to_sparse(solver)
        return as_model(sys, dt) if large is None else large
    sys, dt = _matrices_if_sparse(sys, dt)
    if is_sparse_tuple(sys):
        n = max(getattr(sys[0], "shape", (0,)))
        if solver == "low_rank" or n > DENSE_LIMIT:
            return _from_tuple(sys, dt)
    model = as_model(sys, dt)
    return _from_dense(model) if solver == "low_rank" else model


def by_size(
    sys: Any,
    dt: Timebase,
    solver: str,
    of_large: Callable[[SparseModel], Result],
    of_dense: Callable[[LinearModel], Result],
) -> Result:
    """Return the result of one of two functions: for the sparse form of a large model, or for the dense form.

    The dense one is used too if the low-rank solver does not converge and the model can fall back to it.
    """
    model = any_model(sys, dt, solver)
    if isinstance(model, SparseModel):
        try:
            return of_large(model)
        except ConvergenceError:
            if not model.falls_back:
                raise
        model = model.dense()
    return of_dense(model)


def dense_model(sys: Any, dt: Timebase = 0, solver: str = "auto") -> LinearModel:
    """Return the model in dense form; with ``solver="dense"`` sparse matrices of any size are made dense."""
    if isinstance(sys, SparseModel):
        return sys.dense()
    sys, dt = _matrices_if_sparse(sys, dt)
    if solver == "dense" and is_sparse_tuple(sys):
        sys = tuple(_dense(M, name) for name, M in named(sys))
    return as_model(sys, dt)


def _matrices_if_sparse(sys: Any, dt: Timebase) -> tuple[Any, Timebase]:
    """Return the matrices of a sparse model of another package, and its timebase; all else unchanged."""
    if type(sys) in (tuple, list):
        return sys, dt
    has_sparse = any(is_sparse(getattr(sys, name, None)) for name in "Aa")
    if isinstance(sys, Mapping) or hasattr(sys, "to_abcde_matrices") or has_sparse:
        return matrices_of(sys, dt) or (sys, dt)
    return sys, dt


def is_sparse_tuple(sys: Any) -> bool:
    """Tell whether a model is a tuple of matrices with a sparse A or E."""
    return isinstance(sys, tuple | list) and len(sys) in (4, 5) and (is_sparse(sys[0]) or is_sparse(sys[-1]))


def named(sys: Any) -> list[tuple[str, Any]]:
    """Return the matrices of a tuple with their names."""
    return list(zip("ABCDE", sys, strict=False))


def is_sparse(M: Any) -> bool:
    """Tell whether a matrix is one of scipy.sparse."""
    return hasattr(M, "toarray")


def _from_tuple(sys: Any, dt: Timebase) -> SparseModel:
    matrices = dict(named(sys))
    A = square_sparse(matrices["A"], "A")
    n = A.shape[0]
    E = None if matrices.get("E") is None else square_sparse(matrices["E"], "E", n)
    B, C, D = checked_ports(matrices["B"], matrices["C"], matrices["D"], n)
    dt = validated_timebase(dt)
    dense = partial(dense_model, sys, dt, "dense")
    parts = None if E is None else bordered_parts(A, E, discrete=is_discrete(dt))
    if parts is not None:
        B, C, D = BorderedPencil(parts).ports(B, C, D)
        return SparseModel(partial(BorderedPencil, parts), B, C, D, dt, dense, False, parts.finite_order)
    return SparseModel(_PencilOfMatrices(A, E, discrete=is_discrete(dt)), B, C, D, dt, dense)


def _from_dense(model: LinearModel) -> SparseModel:
    import scipy.sparse as sp

    A = sp.csc_array(model.A)
    pencil = _PencilOfMatrices(A, None, discrete=model.is_discrete)
    return SparseModel(pencil, model.B, model.C, model.D, model.dt, partial(dense_model, model))


@dataclass(frozen=True)
class _PencilOfMatrices:
    """Makes the pencil whose continuous Gramians are those of the model."""

    A: Any
    E: Any
    discrete: bool

    def __call__(self, factorize: Factorize | None) -> SparsePencil:
        import scipy.sparse as sp

        E = sp.eye_array(self.A.shape[0], format="csc") if self.E is None else self.E
        if self.discrete:
            # A X A^T - E X E^T = -B B^T is (A - E) X (A + E)^T + (A + E) X (A - E)^T = -2 B B^T
            return SparsePencil(self.A - E, self.A + E, factorize)
        return SparsePencil(self.A, E, factorize)


def square_sparse(M: Any, name: str, n: int | None = None) -> Any:
    """Return a matrix as a checked sparse one (CSC) with n rows and columns."""
    import scipy.sparse as sp

    M = sp.csc_array(checked_sparse(M, name)) if is_sparse(M) else sp.csc_array(numeric_matrix(M, name))
    if M.dtype.kind not in "biufc":
        raise ModelError(f"{name} is not a numeric matrix: its entries are of type {M.dtype}")
    if np.iscomplexobj(M.data) and not np.any(M.data.imag):
        M = M.real
    M = M.astype(complex if np.iscomplexobj(M.data) else float, copy=True)
    M.sum_duplicates()
    M.sort_indices()
    if M.shape[0] != M.shape[1]:
        raise ModelError(f"{name} must be square, got shape {M.shape}")
    if n is not None and M.shape[0] != n:
        raise ModelError(f"{name} must have shape {(n, n)}, got {M.shape}")
    at = first_index(~np.isfinite(M.data))
    if at is not None:
        column = int(np.searchsorted(M.indptr, at[0], side="right")) - 1
        raise ModelError(f"{name}[{M.indices[at]}, {column}] is {M.data[at]}; every entry must be finite")
    check_range([name], M.data)
    return M


def checked_ports(
    B: Any, C: Any, D: Any, n: int, names: Sequence[str] = "ABCD"
) -> tuple[Array, Array, Array]:
    """Return B, C and D, sparse ones too, as dense matrices that fit n states; `names` as in shaped_ports."""
    B, C, D = (_dense(M, name) for name, M in zip(names[1:], (B, C, D), strict=True))
    ports = shaped_ports(B, C, D, n, names)
    check_range(names[1:], *ports)
    return ports


def _dense(M: Any, name: str) -> Any:
    return checked_sparse(M, name).toarray() if is_sparse(M) else M
