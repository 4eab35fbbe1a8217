"""What an adapter meets on real data: sums of its states and of the loss's gradient at its output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import hankelred

from ..adapter.adapter_layers import Sites, find_sites
from ..errors import CalibrationError
from .calibration_file import NUMBERS, Content, read, write
from .capture import inputs_of
from .fingerprints import adapter_tag, compare, model_tag
from .gradient_hankel import GradientOperator

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over the kept positions, in the layer's columns: real parts, imaginary parts, real modes.

    Attributes
    ----------
    pairs : int
        Number of conjugate pairs among the columns.
    states : ndarray, shape (r, r)
        Sum of s s^T.
    outputs : ndarray, shape (r, r)
        Sum of (C^T g)(C^T g)^T, g the gradient of the summed loss at the adapter's output; zero without
        labels.
    """

    pairs: int
    states: Array
    outputs: Array

    def __add__(self, other: LayerSums) -> LayerSums:
        return LayerSums(self.pairs, self.states + other.states, self.outputs + other.outputs)

    def to_modes(self) -> Array:
        """Return T (r, r) from real columns to the modes as :func:`get_systems` lists them."""
        r, p = self.states.shape[0], self.pairs
        T = np.zeros((r, r), complex)
        k = np.arange(p)
        T[2 * k, k], T[2 * k, p + k] = 1, 1j
        T[2 * k + 1, k], T[2 * k + 1, p + k] = 1, -1j
        T[range(2 * p, r), range(2 * p, r)] = 1
        return T


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of an adapter on data; made by :func:`calibrate`.

    It holds 2 r^2 numbers a layer, whatever the amount of data, and the tokens of a few rows that were held
    out of the statistics, to compare candidates of a reduction on them. Of a fresh adapter, and batches with
    labels, also the gradient operator: 8 MB a layer for a width of 64, 50 MB at d = 4096.

    Attributes
    ----------
    model, adapter : dict
        What it was made with: a name and a fingerprint of the weights each.
    data : tuple of dict
        What it was made from: digest and numbers of batches, rows and tokens, for each part that was merged.
    layers : dict of LayerSums
        By layer index.
    gradients : dict of GradientOperator
        Of layers whose adapter is fresh (C = 0), from batches with labels: what the loss asks of them.
    tokens : int
        Kept positions that were counted.
    labelled_tokens : int
        Those of them in batches with labels: the outputs' sums are over these.
    loss_sum : float
        Of the labels' losses; ``labels`` is their number.
    labels : int
    held_out : tuple of dict
        Rows that were held out, as batches of one row.
    held_out_limit, stride : int
        How many tokens of them are kept, and one row in how many that has become.
    rows : int
        Rows seen, held out or not.

    Notes
    -----
    A sum of squares in float64 resolves directions down to 1e-8 of the largest; states in float32 are not
    better.
    """

    model: dict[str, str]
    adapter: dict[str, str]
    data: tuple[dict[str, Any], ...]
    layers: dict[int, LayerSums] = field(repr=False)
    gradients: dict[int, GradientOperator] = field(repr=False)
    tokens: int
    labelled_tokens: int
    loss_sum: float
    labels: int
    held_out: tuple[dict[str, Tensor], ...] = field(repr=False)
    held_out_limit: int
    stride: int
    rows: int

    @property
    def loss(self) -> float | None:
        """Mean loss over all labels; None without labels."""
        return self.loss_sum / self.labels if self.labels else None

    def check(self, model: nn.Module, adapter_name: str | None = None) -> None:
        """Refuse another model, another adapter, or one whose parameters have changed.

        Parameters
        ----------
        model : PeftModel
        adapter_name : str, optional
            Default: the active adapter.

        Raises
        ------
        CalibrationError
            Naming both.

        Examples
        --------
        >>> import transformers, torch, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
        >>> calibration = hankelred_llm.calibrate(model, [{"input_ids": torch.arange(64).view(4, 16) % 32}])
        >>> calibration.check(model)
        """
        sites = find_sites(model, adapter_name)
        compare(self.model, model_tag(model), "model")
        compare(self.adapter, adapter_tag(sites), "adapter")
        self._check_sizes(sites)

    def _check_sizes(self, sites: Sites) -> None:
        """Refuse sums of other sizes than the adapter has: a file may name it and still hold others."""
        mine = {i: (len(sums.states), sums.pairs) for i, sums in self.layers.items()}
        theirs = {i: (system.modes.order, system.modes.pairs) for i, system in sites.systems.items()}
        for i in sorted({*mine, *theirs}):
            if mine.get(i) != theirs.get(i):
                raise CalibrationError(
                    f"layer {i}: the calibration has (states, conjugate pairs) {mine.get(i)}, and adapter "
                    f"'{sites.adapter}' has {theirs.get(i)}; calibrate again"
                )
        for i, operator in self.gradients.items():
            if operator.width != sites.systems[i].width:
                raise CalibrationError(
                    f"layer {i}: the calibration has gradients of width {operator.width}, and the model has "
                    f"width {sites.systems[i].width}; calibrate again"
                )

    def merge(self, other: Calibration) -> Calibration:
        """Return the calibration of both parts of the data; neither of the two is changed.

        Sums are added, so the order does not matter, but for which rows stay held out.

        Parameters
        ----------
        other : Calibration
            Of the same model and adapter.

        Raises
        ------
        CalibrationError
            Of another model or adapter.

        Examples
        --------
        >>> import transformers, torch, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
        >>> parts = [
        ...     hankelred_llm.calibrate(model, [{"input_ids": torch.randint(32, (4, 16))}]) for _ in range(2)]
        >>> parts[0].merge(parts[1]).tokens
        96
        """
        check_calibration(other)
        compare(self.model, other.model, "model")
        compare(self.adapter, other.adapter, "adapter")
        merged = replace(
            self,
            data=tuple(sorted(self.data + other.data, key=lambda part: str(part["digest"]))),
            layers={index: sums + other.layers[index] for index, sums in self.layers.items()},
            gradients={i: own.merge(other.gradients[i]) for i, own in self.gradients.items()},
            tokens=self.tokens + other.tokens,
            labelled_tokens=self.labelled_tokens + other.labelled_tokens,
            loss_sum=self.loss_sum + other.loss_sum,
            labels=self.labels + other.labels,
            held_out=self.held_out + other.held_out,
            held_out_limit=max(self.held_out_limit, other.held_out_limit),
            stride=max(self.stride, other.stride),
            rows=self.rows + other.rows,
        )
        return thinned(merged)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with JSON metadata, in one step: a reader sees the old or the new one.

        Parameters
        ----------
        path : path
            Written under exactly this name. The file holds the tokens of the rows that were held out.

        Raises
        ------
        OSError
            The file cannot be written; then there is no partial file.
        """
        write(
            path,
            Content(
                numbers={name: getattr(self, name) for name in NUMBERS},
                pairs={index: sums.pairs for index, sums in self.layers.items()},
                sums={
                    index: {name: torch.from_numpy(getattr(sums, name)) for name in ("states", "outputs")}
                    for index, sums in self.layers.items()
                },
                gradients=self.gradients,
                held_out=self.held_out,
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file written by :meth:`save`.

        Parameters
        ----------
        path : path

        Raises
        ------
        CalibrationError
            Not such a file, a damaged one, or one with parts that are unknown or do not fit each other.
        FileNotFoundError
            No file there.
        """
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"no calibration at {os.fspath(path)}; write one with calibrate(model, batches).save(path)"
            )
        try:
            content = read(path)
        except (SafetensorError, CalibrationError, ValueError, OSError) as error:
            raise CalibrationError(
                f"{os.fspath(path)} is no complete calibration ({error}); write it with Calibration.save"
            ) from error
        layers = {
            i: LayerSums(pairs, content.sums[i]["states"].numpy(), content.sums[i]["outputs"].numpy())
            for i, pairs in content.pairs.items()
        }
        return cls(layers=layers, gradients=content.gradients, held_out=content.held_out, **content.numbers)

    def factors(self, index: int, system: hankelred.ModalSystem) -> tuple[Array, Array | None]:
        """Return factors of the empirical Gramians of a layer, in the modes of its system.

        Parameters
        ----------
        index : int
            Of the layer.
        system : hankelred.ModalSystem
            That layer's, as :func:`get_systems` gives it.

        Returns
        -------
        controllability : ndarray, shape (r, k)
            L with L L^H = E[s s^H]: of the states that the data excite.
        observability : ndarray, shape (r, k), or None without labels
            Of the outputs weighted by how much the loss feels them: with Q = E[(C^H g)(C^H g)^H], the
            solution of ``A^H W A - W + Q = 0``, W_ij = Q_ij / (1 - conj(a_i) a_j).
        """
        sums = self.layers[index]
        T = sums.to_modes()
        states = T @ hankelred.gramian_factor(sums.states / self.tokens)
        if not self.labelled_tokens or not np.any(sums.outputs):
            return states, None
        seen = hankelred.gramian_factor(sums.outputs / self.labelled_tokens)
        weighted = hankelred.ModalSystem(system.log_poles, system.B, seen.T @ np.linalg.inv(T))
        return states, hankelred.gramian(weighted, "observability", factor=True)


def check_calibration(calibration: object) -> None:
    """Refuse what is none, such as the name of its file.

    Raises
    ------
    CalibrationError
    """
    if not isinstance(calibration, Calibration):
        remedy = "Calibration.load" if isinstance(calibration, str | os.PathLike) else "calibrate"
        raise CalibrationError(
            f"calibration={calibration!r} is a {type(calibration).__name__}, not a Calibration; get one from "
            f"hankelred_llm.{remedy}"
        )


def thinned(calibration: Calibration) -> Calibration:
    """Drop every second row that is held out while there are more tokens of them than allowed."""
    held, stride = calibration.held_out, calibration.stride
    while len(held) > 1 and sum(map(_tokens_in, held)) > calibration.held_out_limit:
        held, stride = held[::2], 2 * stride
    return replace(calibration, held_out=held, stride=stride)


def _tokens_in(row: Mapping[str, Tensor]) -> int:
    return int(inputs_of(row).shape[1])
