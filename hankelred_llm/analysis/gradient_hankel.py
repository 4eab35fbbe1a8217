"""What the loss asks of an impulse response: the Hankel operator of its gradient, before any training.

A linear residual at a site, y_t = sum_k H_k x_{t-k}, changes the loss in first order by the inner product of
H with ``dL/dH_k = sum_t g_t x_{t-k}^T``: x the site's input, g the gradient of the loss at its output. The
block Hankel matrix of -dL/dH (blocks ``H_{i+j}``) says how many states the steepest way down asks for.

Most of that gradient is no memory: the mean of g times the mean of x, at each position of a sequence, would
be there if the tokens had nothing to do with each other. So everything is measured against g paired with x
of *other* sequences at the same positions. With x' and x'' those of two others, the operator is that of x -
(x' + x'')/2 and its null that of (x' - x'') sqrt(3)/2. Where a sequence says nothing about its own gradients
the two are alike in mean and covariance; what the operator has beyond its null is what the data ask for.

How far one null differs from the next is seen by keeping the sums over two halves of the sequences apart: the
sum and the difference of the halves of the null are two nulls, and the difference of the halves of the
operator, from which what they agree in is gone, is a third. A half is a run of sequences, of which each is a
partner of the next two: in the sum over a run the mean of g meets the x of almost every sequence once with
each sign, and what would be the largest part of the noise is gone.
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

#: How many singular values of an operator are computed: as many of these as it takes to see one below the
#: threshold. And how many of the null.
VALUES, NULL_VALUES = (32, 64, 128), 8

#: How far above the largest value of any null a value must lie to count. Three nulls are all there are, and
#: the next would differ: see docs/spectra_before_training.md for how often noise passes this.
MARGIN = 1.5

#: Where sequences come one at a time, so many in a row belong to one half.
RUN = 8

#: Slowest pole that is read off: a window of LAGS lags cannot tell slower ones apart.
SLOWEST = 0.999


class GradientOperator:
    """Collector of the gradient operator of one site and of its null.

    Parameters
    ----------
    width : int
        Channels d of the site's input and of its output.
    device : torch.device
        Where the sums are kept. In float64 they take 4 LAGS d^2 numbers up to d = RANGE, beyond it
        4 (LAGS SKETCH^2 + 2 RANGE d): 50 MB at d = 4096.

    Notes
    -----
    Pairs are taken within a document only, and lags are counted in tokens that are not masked, as the
    recurrence does. Sequences that come in threes or more need nothing outside their update, and parts of
    the data then add up to the whole exactly. Of fewer the last ones are held to pair the next update with.

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
    >>> found = operator.spectrum()
    >>> found.significant
    1
    >>> np.exp(found.realize(1)[0].real).round(1)
    array([0.8])
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        place = torch.device(device)
        #: sums over each half of the sequences
        self.own = Sums.zero(width, place), Sums.zero(width, place)
        self.null = Sums.zero(width, place), Sums.zero(width, place)
        self.tokens = 0
        self._held: list[Tensor] = []
        self._seen = 0  # sequences that came alone

    def update(self, x: Tensor, g: Tensor, keep: Tensor | None = None, reset: Tensor | None = None) -> None:
        """Add the tokens of one backward pass.

        Parameters
        ----------
        x, g : Tensor, shape (batch, time, d)
            Input of the site, and the gradient at its output of a loss that is a *sum* over tokens.
        keep : Tensor of bool, shape (batch, time), optional
            False: the token does not count, and x and g are not read there.
        reset : Tensor of bool, shape (batch, time), optional
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
        lengths, x, g = _sequences(x, g, keep, reset)
        if not (torch.isfinite(x).all() and torch.isfinite(g).all()):
            raise CalibrationError(
                "an activation or a gradient is not finite; run the model in bfloat16 or float32, and "
                "look at its loss"
            )
        pool = x
        sizes = list(lengths)
        if len(lengths) < 3:
            pool, sizes = torch.cat([x, *self._held]), sizes + [len(other) for other in self._held]
            self._held = [*torch.split(x, lengths), *self._held][:2]
        if len(sizes) < 3:
            return
        first, second, place, number = _partners(lengths, sizes)
        halves = number * 2 // len(lengths)
        if len(lengths) == 1:
            halves = halves + self._seen // RUN % 2
            self._seen += 1
        for half in (0, 1):
            # what has no partner counts nowhere, as if it were masked, but lags go on over it
            index = ((first >= 0) & (halves == half)).nonzero()[:, 0]
            if len(index):
                one, other = pool[first[index].to(x.device)], pool[second[index].to(x.device)]
                mine, theirs, where = x[index.to(x.device)], g[index.to(x.device)], place[index].to(x.device)
                self.own[half].add(mine - (one + other) / 2, theirs, where)
                self.null[half].add((one - other) * math.sqrt(0.75), theirs, where)
                self.tokens += len(index)

    def merge(self, other: GradientOperator) -> GradientOperator:
        """Return the collector of both parts of the data."""
        if other.width != self.width:
            raise CalibrationError(
                f"collectors of widths {self.width} and {other.width} do not belong to one site"
            )
        merged = GradientOperator(self.width, self.own[0].core.device)
        merged.tokens = self.tokens + other.tokens
        mine, theirs = self.state(), other.state()
        for name, total in merged.state().items():
            if name != "tokens":
                total.copy_(mine[name]).add_(theirs[name].to(total.device))
        return merged

    def state(self) -> dict[str, Tensor]:
        """Return the sums; sums of parts of the data, added tensor by tensor, are those of the whole."""
        tensors = {
            f"{kind}.{half}.{part.name}": getattr(halves[half], part.name)
            for kind, halves in (("own", self.own), ("null", self.null))
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
            collector = cls(int(state["own.0.inputs"].shape[0]), state["own.0.inputs"].device)
            for name, tensor in collector.state().items():
                if state[name].shape != tensor.shape:
                    raise CalibrationError(
                        f"{name} has shape {tuple(state[name].shape)} and should have "
                        f"{tuple(tensor.shape)}; the sums "
                        "come from another version: collect them again"
                    )
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
            There were no three sequences to pair with each other, or no gradients.
        """
        if self.tokens == 0:
            raise CalibrationError(
                "no token had a partner: the gradient operator needs at least three sequences, so "
                "that it can be told "
                "from one of unrelated sequences"
            )
        nulls = [
            _realized(sums.markov()[0] / self.tokens, NULL_VALUES).hankel_singular_values[:NULL_VALUES]
            for sums in (self.null[0] + self.null[1], self.null[0] - self.null[1], self.own[0] - self.own[1])
        ]
        largest = max(nulls, key=lambda values: float(values[0]))
        markov, outputs, inputs = (self.own[0] + self.own[1]).markov()
        for count in VALUES:
            full = _realized(markov / self.tokens, count)
            found = GradientSpectrum(
                full.hankel_singular_values[:count], largest, self.tokens, full, outputs, inputs
            )
            if found.significant < count:
                break
        return found


@dataclass(frozen=True, eq=False)
class GradientSpectrum:
    """Singular values of a gradient operator beside those of its null.

    Attributes
    ----------
    values : ndarray, descending
        In units of loss per token and unit of gain.
    null : ndarray, descending
        Of the largest of the nulls.
    tokens : int
    full : hankelred.Reduction
        Of -dL/dH_k per token, between the subspaces.
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
        """Level above which a value counts."""
        return MARGIN * float(self.null[0])

    @property
    def significant(self) -> int:
        """How many values are above the threshold."""
        return int(np.count_nonzero(self.values > self.threshold))

    def realize(self, order: int) -> tuple[Array, Array, Array]:
        """Return the leading states of the balanced realisation of -dL/dH, in modal form.

        Parameters
        ----------
        order : int
            Number of states.

        Returns
        -------
        log_poles, B, C : ndarray, shape (order,), (order, d) and (d, order)
            ``-dL/dH_k`` is about ``C exp(k log_poles) B``, k from 0 on. Stable: no pole is slower than
            SLOWEST.

        Raises
        ------
        ModelError
            That order has no modal form; take one state more or less.
        """
        with warnings.catch_warnings():
            # a pole outside the circle is moved onto SLOWEST with all that are too slow to be told apart
            warnings.simplefilter("ignore", ReductionWarning)
            modal = hankelred.modal_form(self.full.at(order).system)
        logs = np.minimum(modal.log_poles.real, math.log(SLOWEST)) + 1j * modal.log_poles.imag
        if self.inputs is None or self.outputs is None:
            return logs, modal.B, modal.C
        return logs, modal.B @ self.inputs.T, self.outputs @ modal.C


def _sequences(
    x: Tensor, g: Tensor, keep: Tensor | None, reset: Tensor | None
) -> tuple[list[int], Tensor, Tensor]:
    """Return the lengths of the documents and their tokens, (N, d), one after the other, longest first."""
    batch, time = x.shape[:2]
    dtype = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    keep = torch.ones(batch, time, dtype=torch.bool) if keep is None else keep.detach().cpu().bool()
    document = torch.zeros(batch, time, dtype=torch.long)
    if reset is not None:
        document = reset.detach().cpu().long().cumsum(1)
    document = document + torch.arange(batch)[:, None] * (time + 1)
    index = keep.reshape(-1).nonzero()[:, 0]
    _, member, lengths = torch.unique_consecutive(
        document.reshape(-1)[index], return_inverse=True, return_counts=True
    )
    falling = torch.argsort(lengths, descending=True, stable=True)
    rank = torch.empty_like(falling).scatter_(0, falling, torch.arange(len(falling)))
    index = index[torch.argsort(rank[member], stable=True)].to(x.device)
    x, g = (s.detach().reshape(-1, s.shape[2])[index].to(dtype) for s in (x, g))
    return lengths[falling].tolist(), x, g


def _partners(lengths: list[int], pool: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each token, return those of two other sequences at its position, its place, and its sequence.

    A sequence takes those next to it in length, which are longer where there are any. -1: at least one of
    them is too short. Places keep sequences LAGS apart.
    """
    starts = np.concatenate([[0], np.cumsum(pool)])
    by_length = np.argsort(-np.array(pool), kind="stable")
    rows, at = [], 0
    for i, length in enumerate(lengths):
        where = int(np.flatnonzero(by_length == i)[0])
        around = [int(by_length[j]) for j in (where - 1, where - 2) if j >= 0]
        around += [int(by_length[j]) for j in (where + 1, where + 2) if j < len(pool)]
        near, far = around[:2]
        offset = np.arange(length)
        missing = offset >= min(pool[near], pool[far])
        partners = [np.where(missing, -1, starts[k] + offset) for k in (near, far)]
        rows.append(np.stack([*partners, at + offset, np.full(length, i)]))
        at += length + LAGS
    first, second, place, number = torch.from_numpy(np.concatenate(rows, axis=1))
    return first, second, place, number


def _realized(markov: Array, order: int) -> hankelred.Reduction:
    direct = np.zeros((1, *markov.shape[1:]))
    with warnings.catch_warnings():
        # the order only says how many values are wanted; that there are fewer of them is no news
        warnings.simplefilter("ignore", ReductionWarning)
        return hankelred.realize(np.concatenate([direct, markov]), order, stabilize=True)
