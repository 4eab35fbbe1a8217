"""The Hankel operator of the gradient of the loss with respect to an impulse response, before any training.

A linear residual branch at a block, y_t = sum_k H_k x_{t-k}, changes the loss to first order by the inner
product of H with ``dL/dH_k = sum_t g_t x_{t-k}^T``, where x is the input of the block and g the gradient of
the loss with respect to its output. The rank of the block Hankel matrix of -dL/dH (blocks ``H_{i+j}``) is the
number of states that steepest descent requires.

Most of that gradient is no memory: the mean of g times the mean of x, at each position of a sequence, would
be the same for unrelated tokens. So the gradient is compared with a permutation null, g paired with x of
*other* sequences at the same positions. With x' and x'' from two other sequences, the operator is that of x -
(x' + x'')/2 and its null that of (x' - x'') sqrt(3)/2. Where the inputs of a sequence are unrelated to its
gradients, the two have the same mean and covariance; what the operator has beyond its null is due to the
data.

The variation between nulls is estimated by separate sums over two halves of the sequences: the sum and the
difference of the halves of the null are two nulls, and the difference of the halves of the operator, in which
their common part cancels, is a third. A half is made of runs of sequences, each of which is a partner of the
next two: in the sum over a run the mean of g is multiplied by the x of almost every sequence once with each
sign, so that the largest part of the noise cancels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import hankelred
from hankelred import ReductionWarning

from ..errors import CalibrationError
from .lagged_sums import LAGS, Sums

Array: TypeAlias = npt.NDArray[Any]

#: Numbers of singular values of an operator that are computed, the next one as long as all are above the
#: threshold; and number of singular values of the null.
VALUE_COUNTS, NULL_VALUES = (32, 64, 128), 8

#: Factor by which a value must exceed the largest value of any null to be significant. There are only three
#: nulls: see docs/spectra_before_training.md for how often noise exceeds this.
MARGIN = 1.5

#: Where sequences are passed one at a time, so many consecutive ones belong to one half.
SEQUENCES_PER_HALF = 8

#: Largest modulus of a pole: a window of LAGS lags does not distinguish slower poles.
SLOWEST_MODULUS = 0.999


class GradientOperator:
    """Collector of the gradient operator of one block and of its null.

    Parameters
    ----------
    width : int
        Width d of the block's input and output.
    device : torch.device
        Device of the sums. In float64 they take 4 LAGS d^2 numbers up to d = RANGE, beyond it
        4 (LAGS SKETCH^2 + 2 RANGE d): 50 MB at d = 4096.

    Notes
    -----
    Pairs are taken within a document only, and lags are counted in valid tokens, as in the recurrence. With
    at least three sequences per update no other update is needed, and parts of the data then add up to the
    whole exactly. With fewer, the last sequences are kept as partners for the next update.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from hankelred_llm.analysis.gradient_hankel import GradientOperator
    >>> rng = torch.Generator().manual_seed(0)
    >>> x = torch.randn(64, 100, 2, generator=rng)
    >>> y = torch.zeros(64, 100, 2)                                # one state with pole 0.8 is missing
    >>> for t in range(100):
    ...     y[:, t, 0] = 0.8 * y[:, t - 1, 0] + x[:, t, 1]
    >>> operator = GradientOperator(2)
    >>> operator.update(x, -y)
    >>> result = operator.spectrum()
    >>> result.significant
    1
    >>> np.exp(result.realize(1)[0].real).round(1)
    array([0.8])
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        device = torch.device(device)
        #: sums over each half of the sequences
        self.centered = Sums.zero(width, device), Sums.zero(width, device)
        self.null = Sums.zero(width, device), Sums.zero(width, device)
        self.tokens = 0
        self._waiting: list[Tensor] = []
        self._single_sequences = 0  # number of updates with one sequence

    def update(
        self, x: Tensor, g: Tensor, valid: Tensor | None = None, segment_start: Tensor | None = None
    ) -> None:
        """Add the tokens of one backward pass.

        Parameters
        ----------
        x, g : Tensor, shape (batch, time, d)
            Input of the block, and the gradient with respect to its output of a loss *summed* over tokens.
        valid : Tensor of bool, shape (batch, time), optional
            False: the token does not count, and x and g are not read there.
        segment_start : Tensor of bool, shape (batch, time), optional
            True: a document starts here.

        Raises
        ------
        CalibrationError
            Shapes that do not fit, or a number that is not finite.
        """
        if x.shape != g.shape or x.ndim != 3 or x.shape[2] != self.width:
            raise CalibrationError(
                f"inputs and gradients must both be (batch, time, {self.width}), got {tuple(x.shape)} and "
                f"{tuple(g.shape)}"
            )
        lengths, x, g = _sequences(x, g, valid, segment_start)
        if not (torch.isfinite(x).all() and torch.isfinite(g).all()):
            raise CalibrationError(
                "an activation or a gradient is not finite; run the model in bfloat16 or float32, and "
                "look at its loss"
            )
        pool = x
        sizes = list(lengths)
        if len(lengths) < 3:
            pool, sizes = torch.cat([x, *self._waiting]), sizes + [len(other) for other in self._waiting]
            self._waiting = [*torch.split(x, lengths), *self._waiting][:2]
        if len(sizes) < 3:
            return
        first, second, time_index, number = _partners(lengths, sizes)
        halves = number * 2 // len(lengths)
        if len(lengths) == 1:
            halves = halves + self._single_sequences // SEQUENCES_PER_HALF % 2
            self._single_sequences += 1
        for half in (0, 1):
            # tokens without partners do not count, as if masked, but lags are counted across them
            index = ((first >= 0) & (halves == half)).nonzero()[:, 0]
            if len(index):
                partner, other = pool[first[index].to(x.device)], pool[second[index].to(x.device)]
                inputs, gradients, times = (
                    x[index.to(x.device)],
                    g[index.to(x.device)],
                    time_index[index].to(x.device),
                )
                self.centered[half].add(inputs - (partner + other) / 2, gradients, times)
                self.null[half].add((partner - other) * math.sqrt(0.75), gradients, times)
                self.tokens += len(index)

    def merge(self, other: GradientOperator) -> GradientOperator:
        """Return the collector of both parts of the data."""
        if other.width != self.width:
            raise CalibrationError(
                f"collectors of widths {self.width} and {other.width} do not belong to one block"
            )
        merged = GradientOperator(self.width, self.centered[0].core.device)
        merged.tokens = self.tokens + other.tokens
        first, second = self.state(), other.state()
        for name, total in merged.state().items():
            if name != "tokens":
                total.copy_(first[name]).add_(second[name].to(total.device))
        return merged

    def state(self) -> dict[str, Tensor]:
        """Return the sums; sums of parts of the data, added tensor by tensor, are those of the whole."""
        tensors = {
            f"{kind}.{half}.{part.name}": getattr(halves[half], part.name)
            for kind, halves in (("own", self.centered), ("null", self.null))
            for half in (0, 1)
            for part in fields(Sums)
        }
        return {**tensors, "tokens": torch.tensor(self.tokens, dtype=torch.float64)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> GradientOperator:
        """Return a collector from its sums.

        Raises
        ------
        CalibrationError
            A tensor is missing or has another shape.
        """
        try:
            first = state["own.0.inputs"]
            if first.ndim != 2:
                raise CalibrationError(
                    f"own.0.inputs has shape {tuple(first.shape)} and should have two axes; the sums come "
                    "from another version: collect them again"
                )
            # compared without memory: a file of a few bytes can hold an empty tensor of any length
            for name, tensor in cls(len(first), "meta").state().items():
                if state[name].shape != tensor.shape:
                    raise CalibrationError(
                        f"{name} has shape {tuple(state[name].shape)} and should have "
                        f"{tuple(tensor.shape)}; the sums "
                        "come from another version: collect them again"
                    )
            collector = cls(len(first), first.device)
            for name, tensor in collector.state().items():
                tensor.copy_(state[name])
            collector.tokens = int(state["tokens"])
        except KeyError as missing:
            raise CalibrationError(f"there is no {missing} among the sums of a gradient operator") from None
        return collector

    def spectrum(self) -> GradientSpectrum:
        """Return the singular values of the operator and of its null.

        Raises
        ------
        CalibrationError
            There were fewer than three sequences to pair with each other, or no gradients; or all sequences
            are the same, so that nothing can be compared.
        """
        if self.tokens == 0:
            raise CalibrationError(
                "no token had a partner: the gradient operator needs at least three sequences, "
                "to compare it with one of unrelated sequences"
            )
        nulls = [
            _realized(sums.markov()[0] / self.tokens, NULL_VALUES).hankel_singular_values[:NULL_VALUES]
            for sums in (
                self.null[0] + self.null[1],
                self.null[0] - self.null[1],
                self.centered[0] - self.centered[1],
            )
        ]
        largest = max(nulls, key=lambda values: float(values[0]))
        if not largest[0]:
            raise CalibrationError(
                "the null operator is zero, so that the level of noise is unknown: all sequences have the "
                "same inputs, or all gradients are zero; collect from batches of different texts, with labels"
            )
        markov, outputs, inputs = (self.centered[0] + self.centered[1]).markov()
        for count in VALUE_COUNTS:
            full = _realized(markov / self.tokens, count)
            result = GradientSpectrum(
                full.hankel_singular_values[:count], largest, self.tokens, full, outputs, inputs
            )
            if result.significant < count:
                break
        return result


@dataclass(frozen=True, eq=False)
class GradientSpectrum:
    """Singular values of a gradient operator and of its null.

    Attributes
    ----------
    values : ndarray, descending
        In units of loss per token and unit of gain.
    null : ndarray, descending
        Those of the null with the largest value.
    tokens : int
    full : hankelred.Reduction
        Realization of -dL/dH_k per token, between the subspaces.
    outputs, inputs : ndarray, shape (d, p) and (d, m), or None
        Orthonormal bases of the subspaces; None is the identity.
    """

    values: Array
    null: Array
    tokens: int
    full: hankelred.Reduction
    outputs: Array | None
    inputs: Array | None

    @property
    def threshold(self) -> float:
        """Level above which a value is significant."""
        return MARGIN * float(self.null[0])

    @property
    def significant(self) -> int:
        """Number of values above the threshold."""
        return int(np.count_nonzero(self.values > self.threshold))

    def realize(self, order: int) -> tuple[Array, Array, Array]:
        """Return the leading states of the balanced realization of -dL/dH, in modal form.

        Parameters
        ----------
        order : int
            Number of states.

        Returns
        -------
        log_poles, B, C : ndarray, shape (order,), (order, d) and (d, order)
            ``-dL/dH_k`` is approximately ``C exp(k log_poles) B``, k >= 0. Stable: no modulus of a pole
            exceeds SLOWEST_MODULUS.

        Raises
        ------
        ModelError
            That order has no modal form; choose one state more or less.
        """
        with warnings.catch_warnings():
            # poles outside the unit circle are set to SLOWEST_MODULUS, as all others that are too slow
            warnings.simplefilter("ignore", ReductionWarning)
            modal = hankelred.modal_form(self.full.at(order).system)
        logs = np.minimum(modal.log_poles.real, math.log(SLOWEST_MODULUS)) + 1j * modal.log_poles.imag
        if self.inputs is None or self.outputs is None:
            return logs, modal.B, modal.C
        return logs, modal.B @ self.inputs.T, self.outputs @ modal.C


def _sequences(
    x: Tensor, g: Tensor, valid: Tensor | None, segment_start: Tensor | None
) -> tuple[list[int], Tensor, Tensor]:
    """Return the lengths of the documents and their concatenated tokens, (N, d), longest document first."""
    batch, time = x.shape[:2]
    dtype = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    valid = torch.ones(batch, time, dtype=torch.bool) if valid is None else valid.detach().cpu().bool()
    document = torch.zeros(batch, time, dtype=torch.long)
    if segment_start is not None:
        document = segment_start.detach().cpu().long().cumsum(1)
    document = document + torch.arange(batch)[:, None] * (time + 1)
    index = valid.reshape(-1).nonzero()[:, 0]
    _, member, lengths = torch.unique_consecutive(
        document.reshape(-1)[index], return_inverse=True, return_counts=True
    )
    falling = torch.argsort(lengths, descending=True, stable=True)
    rank = torch.empty_like(falling).scatter_(0, falling, torch.arange(len(falling)))
    index = index[torch.argsort(rank[member], stable=True)].to(x.device)
    x, g = (s.detach().reshape(-1, s.shape[2])[index].to(dtype) for s in (x, g))
    return lengths[falling].tolist(), x, g


def _partners(lengths: list[int], pool: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, for each token, those of two other sequences at its position, its time index and its sequence.

    Partners of a sequence are its neighbors in length, longer ones where there are any. -1: at least one of
    them is too short. Time indices leave LAGS steps between sequences.
    """
    starts = np.concatenate([[0], np.cumsum(pool)])
    by_length = np.argsort(-np.array(pool), kind="stable")
    rows, at = [], 0
    for i, length in enumerate(lengths):
        rank = int(np.flatnonzero(by_length == i)[0])
        around = [int(by_length[j]) for j in (rank - 1, rank - 2) if j >= 0]
        around += [int(by_length[j]) for j in (rank + 1, rank + 2) if j < len(pool)]
        near, far = around[:2]
        offset = np.arange(length)
        missing = offset >= min(pool[near], pool[far])
        partners = [np.where(missing, -1, starts[k] + offset) for k in (near, far)]
        rows.append(np.stack([*partners, at + offset, np.full(length, i)]))
        at += length + LAGS
    first, second, time_index, number = torch.from_numpy(np.concatenate(rows, axis=1))
    return first, second, time_index, number


def _realized(markov: Array, order: int) -> hankelred.Reduction:
    direct = np.zeros((1, *markov.shape[1:]))
    with warnings.catch_warnings():
        # the order is only the number of values requested; fewer of them are expected here
        warnings.simplefilter("ignore", ReductionWarning)
        return hankelred.realize(np.concatenate([direct, markov]), order, stabilize=True)
