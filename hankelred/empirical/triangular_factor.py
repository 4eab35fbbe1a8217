"""The triangular factor of a sum of outer products of rows, updated by QR without forming the products."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._util.arrays import Array


class TriangularFactor:
    """R with R^H R = sum of r^H r over all rows r pushed so far, without ever forming a product.

    Rows are collected in a buffer until there are several times as many as columns: a QR of an
    (n + 1, n) matrix costs nearly as much as one of (2n, n).
    """

    def __init__(self, n_columns: int) -> None:
        self.n_columns = n_columns
        self._triangle: Array = np.zeros((0, n_columns))
        self._pending: list[Array] = []
        self._pending_rows = 0

    @property
    def _block(self) -> int:
        return 4 * self.n_columns + 64

    def push(self, rows: Array) -> None:
        """Add rows (k, n)."""
        while rows.shape[0] >= 2 * self._block:
            # the triangles of many blocks in one call, and then those of the triangles
            blocks = rows.shape[0] // self._block
            whole = rows[: blocks * self._block].reshape(blocks, self._block, self.n_columns)
            triangles: Any = np.linalg.qr(whole, mode="r")
            rows = np.concatenate([triangles.reshape(-1, self.n_columns), rows[blocks * self._block :]])
        for start in range(0, rows.shape[0], self._block):
            part = rows[start : start + self._block]
            self._pending.append(np.array(part))
            self._pending_rows += part.shape[0]
            if self._pending_rows >= self._block:
                self._compress()

    def scale(self, factor: float) -> None:
        """Multiply all rows so far."""
        self._triangle = self._triangle * factor
        self._pending = [rows * factor for rows in self._pending]

    def _compress(self) -> None:
        if self._pending:
            stacked = np.concatenate([self._triangle, *self._pending])
            triangle: Any = np.linalg.qr(stacked, mode="r")  # numpy's stubs know only mode="reduced"
            self._triangle = triangle
            self._pending = []
            self._pending_rows = 0

    @property
    def triangle(self) -> Array:
        """R, (k, n) with k <= n, upper triangular once enough rows have been pushed."""
        self._compress()
        return self._triangle
