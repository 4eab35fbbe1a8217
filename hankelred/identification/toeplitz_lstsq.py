"""Least squares for the Markov parameters of a record, by conjugate gradients with FFT products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft as sfft
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError, HankelredError

#: Up to this many unknowns per output the preconditioner is the exact Cholesky factor.
_EXACT_UNKNOWNS = 2500
_MAX_ITERATIONS = 2000


class ConvolutionMatrix:
    """The matrix of ``y[t] = sum_k h[k] u[t - k]`` for the records, as an operator on h.

    The unknowns are (n m, columns), one column per output.

    With ``known_past`` u is zero before the record. Otherwise the first n - 1 samples of each record, which
    depend on the unknown past, are not used as equations.
    """

    def __init__(self, us: Sequence[Array], n: int, known_past: bool) -> None:
        self.n, self.m = n, us[0].shape[0]
        self.first = 0 if known_past else n - 1
        self.us = us
        self.dtype = np.result_type(*us)
        self._real = self.dtype.kind == "f"
        self._lengths = [sfft.next_fast_len(u.shape[1] + n - 1, real=self._real) for u in us]
        self._spectra = [self._fft(u, length) for u, length in zip(us, self._lengths, strict=True)]

    def _fft(self, x: Array, length: int) -> Array:
        return np.asarray((sfft.rfft if self._real else sfft.fft)(x, length, axis=-1))

    def _ifft(self, x: Array, length: int) -> Array:
        return np.asarray((sfft.irfft if self._real else sfft.ifft)(x, length, axis=-1))

    def dot(self, h: Array) -> list[Array]:
        """Return the outputs (k, equations) of each record for h (n m, k)."""
        kernel = h.reshape(self.n, self.m, -1).transpose(2, 1, 0)
        out = []
        for u, spectrum, length in zip(self.us, self._spectra, self._lengths, strict=True):
            y = self._ifft(np.einsum("kmf,mf->kf", self._fft(kernel, length), spectrum), length)
            out.append(y[:, self.first : u.shape[1]])
        return out

    def adjoint_dot(self, ys: Sequence[Array]) -> Array:
        """Apply the adjoint to outputs (k, equations) of each record; returns (n m, k)."""
        total = np.zeros((self.n * self.m, ys[0].shape[0]), dtype=np.result_type(self.dtype, *ys))
        for y, spectrum, length in zip(ys, self._spectra, self._lengths, strict=True):
            padded = np.zeros((y.shape[0], y.shape[1] + self.first), dtype=y.dtype)
            padded[:, self.first :] = y
            product = self._fft(padded, length)[:, None] * spectrum.conj()
            lags = self._ifft(product, length)[..., : self.n]
            total += lags.transpose(2, 1, 0).reshape(self.n * self.m, -1)
        return total

    def edges(self) -> tuple[Array, Array]:
        """Return the columns S (n m, q) and signs (q,) by which the normal matrix fails to be block Toeplitz.

        With G the normal matrix, ``G[1:, 1:] = G[:-1, :-1] + S diag(signs) S^H`` in blocks: one sample
        is dropped at the end of each record and, where the past is unknown, one is added at its beginning.
        """
        lags = np.arange(self.n - 1)
        columns, signs = [], []
        for u in self.us:
            columns.append(u[:, u.shape[1] - 1 - lags].T.conj().reshape(-1))
            signs.append(-1.0)
            if self.first:
                columns.append(u[:, self.first - 1 - lags].T.conj().reshape(-1))
                signs.append(1.0)
        return np.stack(columns, axis=1), np.array(signs)

    def lag_blocks(self) -> Array:
        """Return the first block row of the normal matrix, (n, m, m).

        ``[l, a, b] = sum_t conj(u_a[t]) u_b[t - l]``
        """
        out = np.empty((self.n, self.m, self.m), dtype=self.dtype)
        for a in range(self.m):
            row = self.adjoint_dot([u[a : a + 1, self.first :] for u in self.us])
            out[:, a] = row.reshape(self.n, self.m).conj()
        return out

    def gram(self) -> Array:
        """Return the normal matrix (n m, n m), by recursion along its diagonals from the first block row."""
        n, m = self.n, self.m
        S, signs = self.edges()
        S = S.reshape(n - 1, m, signs.size)
        G = np.zeros((n, m, n, m), dtype=self.dtype)
        G[0] = self.lag_blocks().transpose(1, 0, 2)
        for i in range(1, n):
            G[i, :, i:] = G[i - 1, :, i - 1 : n - 1] + np.einsum(
                "aq,q,jbq->ajb", S[i - 1], signs, S[i - 1 :].conj()
            )
        flat = G.reshape(n * m, n * m)
        return np.asarray(np.triu(flat) + np.triu(flat, 1).conj().T)


def solve_least_squares(
    matrix: ConvolutionMatrix, ys: Sequence[Array], ridge: float
) -> tuple[Array, Array, list[Array]]:
    """Solve ``min |y - matrix h|^2 + weight |h|^2`` for every output.

    Conjugate gradients on the normal equations. Their products are FFTs and exact at the records' edges; the
    preconditioner is the exact Cholesky factor where that is affordable, else the block circulant nearest to
    the normal matrix (T. Chan, SIAM J. Sci. Stat. Comput. 9, 1988).

    Parameters
    ----------
    ridge : float
        The weight as a share of the mean diagonal entry of the normal matrix.

    Returns
    -------
    h : ndarray (n m, p)
    variance_factors : ndarray (n m,)
        Diagonal of the inverse of the (regularized) normal matrix.
    residuals : list of ndarray (p, equations)
    """
    n, m = matrix.n, matrix.m
    blocks = matrix.lag_blocks()
    weight = ridge * float(np.trace(blocks[0]).real) / m
    exact = n * m <= _EXACT_UNKNOWNS
    precondition: Callable[[Array], Array]
    if exact:
        factor = _cholesky(matrix.gram() + weight * np.eye(n * m), n)

        def apply_factor(x: Array) -> Array:
            return np.asarray(sla.cho_solve(factor, x, check_finite=False))

        precondition = apply_factor

    else:
        precondition = _circulant(blocks, weight)

    def normal(x: Array) -> Array:
        return matrix.adjoint_dot(matrix.dot(x)) + weight * x

    rhs = matrix.adjoint_dot(ys)
    h = _conjugate_gradients(normal, precondition, rhs)
    errors = [y - fit for y, fit in zip(ys, matrix.dot(h), strict=True)]
    # One step of iterative refinement recovers digits that the normal equations lost.
    h = h + precondition(matrix.adjoint_dot(errors) - weight * h) if exact else h
    errors = [y - fit for y, fit in zip(ys, matrix.dot(h), strict=True)]
    if exact:
        inverse = sla.lapack.get_lapack_funcs("potri", (factor[0],))(factor[0], lower=factor[1])[0]
        variance_factors = np.diag(inverse).real.copy()
    else:
        variance_factors = _inverse_diagonal(matrix, lambda x: _conjugate_gradients(normal, precondition, x))
    return h, variance_factors, errors


def _cholesky(G: Array, n: int) -> tuple[Array, bool]:
    try:
        factor = sla.cho_factor(G, lower=True, check_finite=False)
        pocon = sla.lapack.get_lapack_funcs("pocon", (factor[0],))
        rcond = float(pocon(factor[0], np.linalg.norm(G, 1), uplo="L")[0])
    except sla.LinAlgError:
        rcond = 0.0
    if rcond < 1e-15:
        raise HankelredError(
            f"the input does not excite {n} lags: the normal matrix has reciprocal condition number "
            f"{rcond:.1e}; use fewer parameters, a record with more excitation, or regularize with "
            "ridge=1e-8 or more"
        )
    return factor


def _circulant(blocks: Array, weight: float) -> Callable[[Array], Array]:
    n, m = blocks.shape[:2]
    k = np.arange(n)[:, None, None]
    # the block of lag -l is the adjoint of that of lag l; the average weighs each by how often it occurs
    wrapped = blocks[::-1].conj().transpose(0, 2, 1)
    wrapped = np.concatenate([np.zeros_like(blocks[:1]), wrapped[:-1]])
    mean = ((n - k) * blocks + k * wrapped) / n
    symbol = np.fft.fft(mean.conj().transpose(0, 2, 1), axis=0)
    symbol = (symbol + symbol.conj().transpose(0, 2, 1)) / 2
    values, vectors = np.linalg.eigh(symbol)
    # The preconditioner must not amplify frequencies that the record does not excite.
    values = np.maximum(values, values.max() * 1e-12) + weight
    inverse = (vectors / values[:, None]) @ vectors.conj().transpose(0, 2, 1)
    real = not np.iscomplexobj(blocks)

    def apply(x: Array) -> Array:
        out = np.fft.ifft(inverse @ np.fft.fft(x.reshape(n, m, -1), axis=0), axis=0)
        return (out.real if real and not np.iscomplexobj(x) else out).reshape(n * m, -1)

    return apply


def _conjugate_gradients(
    normal: Callable[[Array], Array], precondition: Callable[[Array], Array], rhs: Array
) -> Array:
    """Solve for several right-hand sides at once, each with its own step lengths."""
    x = np.zeros_like(rhs)
    r = rhs.copy()
    target = np.linalg.norm(rhs, axis=0) * 1e-14
    z = precondition(r)
    d = z.copy()
    rz = np.einsum("ik,ik->k", r.conj(), z).real
    best, best_x, stalled = np.full(rhs.shape[1], np.inf), x.copy(), 0
    for _ in range(_MAX_ITERATIONS):
        norms = np.linalg.norm(r, axis=0)
        better = norms < best
        best_x[:, better], best[better] = x[:, better], norms[better]
        # The recursive residual stagnates at rounding; the iteration ends after some steps without progress.
        stalled = 0 if np.any(better) else stalled + 1
        if np.all(norms <= target) or stalled > 20:
            break
        q = normal(d)
        dq = np.einsum("ik,ik->k", d.conj(), q).real
        alpha = np.divide(rz, dq, out=np.zeros_like(rz), where=dq > 0)
        x = x + alpha * d
        r = r - alpha * q
        z = precondition(r)
        previous, rz = rz, np.einsum("ik,ik->k", r.conj(), z).real
        d = z + np.divide(rz, previous, out=np.zeros_like(rz), where=previous > 0) * d
    if np.any(best > 1e6 * target):
        relative_residual = float((best / target).max()) * 1e-14
        raise ConvergenceError(
            f"the least-squares iteration stopped at a relative residual of {relative_residual:.1e}; the "
            "input hardly excites some frequencies: use fewer parameters, or regularize with "
            "ridge=1e-8 or more"
        )
    return best_x


def _inverse_diagonal(matrix: ConvolutionMatrix, solve: Callable[[Array], Array]) -> Array:
    """Return the diagonal of the inverse of the normal matrix, from a few solves.

    The normal matrix has low displacement rank, so its inverse has too: its entries one block further down
    the diagonal differ by a product of thin matrices (Kailath and Sayed, SIAM Review 37, 1995). Adding up
    those differences gives the whole diagonal.
    """
    n, m = matrix.n, matrix.m
    S, signs = matrix.edges()
    q = S.shape[1]
    rhs = np.zeros((n * m, 2 * m + q), dtype=matrix.dtype)
    rhs[:m, :m] = np.eye(m)
    rhs[-m:, m : 2 * m] = np.eye(m)
    rhs[:-m, 2 * m :] = S
    solved = solve(rhs)
    Q, F = solved[:m, :m], solved[m:, :m]
    X, Y = solved[:-m, m : 2 * m], solved[-m:, m : 2 * m]
    P = solved[:-m, 2 * m :] - X @ np.linalg.solve(Y, X.conj().T @ S)
    core = np.linalg.inv(np.diag(signs) + S.conj().T @ P)

    def diagonal(left: Array, middle: Array) -> Array:
        return np.einsum("ia,ab,ib->i", left, middle, left.conj()).real

    step = diagonal(F, np.linalg.inv(Q)) - diagonal(X, np.linalg.inv(Y)) - diagonal(P, core)
    steps = np.concatenate([np.diag(Q).real[None], step.reshape(n - 1, m)])
    return np.asarray(np.cumsum(steps, axis=0).reshape(-1))
