"""Sparse models with a singular E: algebraic states (index 1) and saddle points (index 2), bordered solves.

With the states that have a derivative first, the model is

    [ E11  0 ] x' = [ A11  A12 ] x + [ B1 ] u
    [  0   0 ]      [ A21  A22 ]     [ B2 ].

If A22 is regular (circuits, power grids), x_1 has the pencil (A11 - A12 A22^-1 A21, E11); if it is zero and
A21 E11^-1 A12 is regular (incompressible flow), that of (A11, E11) between the null spaces of A21 and A12^T.
Neither is formed: systems with a shifted pencil are solved with all states, as

    [ A11 + s E11  A12 ] [ x_1 ]   [ b ]
    [     A21      A22 ] [ x_2 ] = [ 0 ].

Sources: Freitas, Rommes and Martins, IEEE Trans. Power Syst. 23 (2008); Heinkenschloss, Sorensen and Sun,
SIAM J. Sci. Comput. 30 (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from .descriptor_form import SWEEPS
from .pencil import Factorize, Product, Solver, SparseFamily, least_singular_value

#: Steps of inverse iteration for the least singular value.
STEPS = 4

REMEDY = (
    "solver='dense' takes models of any index, if their matrices fit into memory; otherwise eliminate the "
    "algebraic states first"
)


@dataclass(frozen=True, eq=False)
class BorderedParts:
    """The blocks of a sparse model with a singular E, and its index, 1 or 2."""

    A: Any
    E: Any
    dynamic_rows: Array
    dynamic: Array
    algebraic_rows: Array
    algebraic: Array
    index: int

    @property
    def finite_order(self) -> int:
        """Number of finite poles."""
        constraints = self.algebraic.size if self.index == 2 else 0
        return int(self.dynamic.size - constraints)


def _block(M: Any, rows: Array, columns: Array) -> Any:
    return M[rows][:, columns].tocsc()


def bordered_parts(A: Any, E: Any, *, discrete: bool) -> BorderedParts | None:
    """Return the blocks of a model whose E has rows and columns of zeros; None if it has none.

    Raises
    ------
    ModelError
        A singular pencil, or a structure that the low-rank solver has no solves for.
    """
    size = abs(E)
    zero_rows, zero_columns = (np.asarray(size.sum(axis=axis)).ravel() == 0 for axis in (1, 0))
    if not np.any(zero_rows) and not np.any(zero_columns):
        return None
    if discrete:
        raise ModelError(
            f"E is singular, and the low-rank solver takes that in continuous time only: {REMEDY}"
        )
    rows, other_rows = np.flatnonzero(zero_rows), np.flatnonzero(~zero_rows)
    columns, other_columns = np.flatnonzero(zero_columns), np.flatnonzero(~zero_columns)
    if rows.size != columns.size:
        raise ModelError(
            f"E is singular with {rows.size} rows and {columns.size} columns of zeros, so that the index is "
            f"at least 2, and only index 1 and saddle points are solved sparsely: {REMEDY}"
        )
    parts = BorderedParts(A, E, other_rows, other_columns, rows, columns, 1)
    dynamic = _block(E, other_rows, other_columns)
    if is_singular(dynamic):
        raise ModelError(
            f"E is singular beyond its {rows.size} rows and columns of zeros, as with capacitors between "
            f"nodes that have none to ground; only rows and columns of zeros are solved sparsely: {REMEDY}"
        )
    A22 = _block(A, rows, columns)
    if A22.nnz and np.any(A22.data):
        if is_singular(A22):
            raise ModelError(
                f"the equations of the {rows.size} algebraic states do not determine them, so that the index "
                "is 2 or more, as with a voltage source across a capacitor; of such models only saddle "
                "points, in which these equations have no algebraic state at all, are solved sparsely: "
                f"{REMEDY}"
            )
        return parts
    saddle = BorderedParts(A, E, other_rows, other_columns, rows, columns, 2)
    if rows.size > other_rows.size or is_singular(_bordered(saddle, dynamic)):
        raise ModelError(
            f"the {rows.size} constraints of the model depend on each other, or on states without a "
            f"derivative only, so that the pencil is singular or its index is 3 or more (as of positions "
            f"that are constrained): {REMEDY}"
        )
    return saddle


def _bordered(parts: BorderedParts, corner: Any) -> Any:
    """Return [corner, A12; A21, 0]."""
    import scipy.sparse as sp

    A12 = _block(parts.A, parts.dynamic_rows, parts.algebraic)
    A21 = _block(parts.A, parts.algebraic_rows, parts.dynamic)
    return sp.block_array([[corner, A12], [A21, None]], format="csc")


def is_singular(M: Any) -> bool:
    """Tell whether a sparse matrix, with rows and columns scaled, is singular to working precision."""
    M = _equilibrated(M)
    n = M.shape[0]
    if n == 0:
        return False
    try:
        least = least_singular_value(SparseFamily([M]).combined(1.0), n, STEPS)
    except (ModelError, ConvergenceError):
        return True
    return not least > n * EPS


def _equilibrated(M: Any) -> Any:
    """Scale rows and columns of a sparse matrix to largest entries of about one."""
    M = M.tocoo()
    data, rows, columns = np.abs(M.data), M.row, M.col
    for _ in range(SWEEPS):
        before = data
        for index, length in ((rows, M.shape[0]), (columns, M.shape[1])):
            largest = np.zeros(length)
            np.maximum.at(largest, index, data)
            data = data / np.sqrt(np.where(largest > 0, largest, 1.0))[index]
        if np.all(np.abs(data - before) <= 0.1 * before):
            break
    out = M.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        out.data = np.where(np.abs(M.data) > 0, M.data * (data / np.abs(M.data)), 0.0)
    return out.tocsc()


class BorderedPencil:
    """The pencil of the states with a derivative; of saddle points between the constraints' null spaces."""

    def __init__(self, parts: BorderedParts, factorize: Factorize | None = None):
        rows = np.concatenate([parts.dynamic_rows, parts.algebraic_rows])
        columns = np.concatenate([parts.dynamic, parts.algebraic])
        self.parts, self.n, self.total = parts, int(parts.dynamic.size), int(rows.size)
        A, E = _block(parts.A, rows, columns), _block(parts.E, rows, columns)
        self._family = SparseFamily([A, E], factorize)
        inner = slice(0, self.n), slice(self.n, None)
        self._A11, self._A12 = A[inner[0], inner[0]].tocsc(), A[inner[0], inner[1]].tocsc()
        self._A21 = A[inner[1], inner[0]].tocsc()
        self._E11 = E[inner[0], inner[0]].tocsc()
        self._times_A11, self._times_E11 = Product(self._A11), Product(self._E11)
        corner = self._E11 if parts.index == 1 else _bordered(parts, self._E11)
        self._mass_family = SparseFamily([corner], factorize)
        self._algebraic = (
            _solver(SparseFamily([A[inner[1], inner[1]].tocsc()], factorize)) if parts.index == 1 else None
        )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("the factors of a sparse descriptor model cannot be pickled")

    @property
    def is_complex(self) -> bool:
        """Whether A or E is complex."""
        return self._family.is_complex

    @property
    def factorizations(self) -> int:
        """Factorizations made so far."""
        return self._family.factorizations + self._mass_family.factorizations

    def A(self, x: Array, *, transposed: bool = False) -> Array:
        """Return A x, or A^T x, without what constraints take out of it."""
        image = self._times_A11(x, transposed)
        if self._algebraic is None:
            return image
        onto, into = (self._A12.T, self._A21.T) if transposed else (self._A21, self._A12)
        return np.asarray(image - into @ self._algebraic(onto @ x, transposed=transposed))

    def E(self, x: Array, *, transposed: bool = False) -> Array:
        """Return E x, or E^T x."""
        return self._times_E11(x, transposed)

    def into(self, x: Array) -> Array:
        """Return states as they are."""
        return x

    def back(self, x: Array) -> Array:
        """Return states as they are."""
        return x

    def sizes(self, left: Array, right: Array) -> Array:
        """Return left^T |A| right for each pair of columns, whose entries must not be negative."""
        total = np.sum(left * (abs(self._A11) @ right), axis=0)
        if self._algebraic is not None:
            algebraic = np.abs(self._algebraic(abs(self._A21) @ right, transposed=False))
            total = total + np.sum(left * (abs(self._A12) @ algebraic), axis=0)
        return np.asarray(total)

    def shifted(self, shift: complex) -> Solver:
        """Return the solver of A + shift E."""
        solve = self._family.shifted_by(shift)
        into, back = self._family.into, self._family.back
        return self._on_dynamic_states(
            lambda b, *, transposed=False: back(solve(into(b), transposed=transposed))
        )

    def solve_both(self, shift: complex, right: Array, left: Array) -> tuple[Array, Array]:
        """Return (A + shift E)^-1 right and (A + shift E)^-T left, with one factorization."""
        return self._family.solve_with_both(self.shifted(shift), right, left)

    def mass(self) -> Solver:
        """Return the solver of E."""
        return self._mass if self.parts.index == 1 else self._on_dynamic_states(self._mass)

    @cached_property
    def _mass(self) -> Solver:
        """The solver of E11, of saddle points with the constraints."""
        return _solver(self._mass_family)

    def _on_dynamic_states(self, solve: Solver) -> Solver:
        def solved(b: Array, *, transposed: bool = False) -> Array:
            return solve(self._with_zeros(b), transposed=transposed)[: self.n]

        return solved

    def ports(self, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array]:
        """Return B, C and D of the states with a derivative.

        Raises
        ------
        ModelError
            Inputs in the constraints of a saddle point.
        """
        parts = self.parts
        B1, B2 = B[parts.dynamic_rows], B[parts.algebraic_rows]
        C1, C2 = C[:, parts.dynamic], C[:, parts.algebraic]
        if self._algebraic is not None:
            solved = self._algebraic(B2) if B2.size else B2
            output_rows = self._algebraic(np.ascontiguousarray(C2.T), transposed=True).T if C2.size else C2
            return B1 - self._A12 @ solved, C1 - (self._A21.T @ output_rows.T).T, D - C2 @ solved
        if np.any(B2):
            raise ModelError(
                "inputs act on the constraints of the model, whose index is 2, so that its outputs may be "
                f"derivatives of them; that is not solved sparsely: {REMEDY}"
            )
        mass = self.mass()
        direct = D
        if np.any(C2):
            # x_2 = -(A21 E11^-1 A12)^-1 A21 E11^-1 (A11 x_1 + B1 u)
            direct = D - C2 @ self._mass(self._with_zeros(B1))[self.n :]
            padded = np.concatenate([np.zeros((self.n, C2.shape[0]), C2.dtype), C2.T])
            C1 = C1 - self._times_A11(self._mass(padded, transposed=True)[: self.n], True).T
        B1 = self.E(mass(B1))
        C1 = self.E(mass(np.ascontiguousarray(C1.T), transposed=True), transposed=True).T
        return B1, C1, direct

    def expand(self, x: Array, *, transposed: bool = False) -> Array:
        """Return all states of the model from those with a derivative, without inputs; or left vectors."""
        parts = self.parts
        if self._algebraic is not None:
            onto = self._A12.T if transposed else self._A21
            rest = -self._algebraic(onto @ x, transposed=transposed)
        else:
            image = self._times_A11(x, transposed)
            rest = -self._mass(self._with_zeros(image), transposed=transposed)[self.n :]
        out = np.zeros((self.total, x.shape[1]), np.result_type(x, rest))
        out[parts.dynamic_rows if transposed else parts.dynamic] = x
        out[parts.algebraic_rows if transposed else parts.algebraic] = rest
        return out

    def _with_zeros(self, b: Array) -> Array:
        return np.concatenate([b, np.zeros((self.total - self.n, b.shape[1]), b.dtype)])


def _solver(family: SparseFamily) -> Solver:
    """Return the solver of the one matrix of a family, for states in the order of the model."""
    solve = family.combined(1.0)

    def solved(b: Array, *, transposed: bool = False) -> Array:
        if np.iscomplexobj(b) and not family.is_complex:
            both = solved(np.concatenate([b.real, b.imag], axis=1), transposed=transposed)
            k = b.shape[1]
            return np.asarray(both[:, :k] + 1j * both[:, k:])
        return family.back(solve(family.into(b), transposed=transposed))

    return solved
