"""Statistics of an adapter on data: its states, and the gradient of the loss at its output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import hankelred
from hankelred.errors import count, in_one_line, short_repr
from hankelred.report.notebook import facts_table

from ..adapter.adapter_layers import AdapterLayers, find_adapter_layers
from ..errors import CalibrationError
from .calibration_file import NUMBERS, Content, read, write
from .capture import inputs_of
from .fingerprints import adapter_fingerprint, check_fingerprint, model_fingerprint
from .gradient_hankel import GradientOperator

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over the valid positions, in the layer's real channels: real parts, imaginary parts, real modes.

    Attributes
    ----------
    pairs : int
        Number of conjugate pairs among the channels.
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

    def mode_transform(self) -> Array:
        """Return T (r, r) from real channels to the modes in the order of :func:`get_systems`."""
        r, p = self.states.shape[0], self.pairs
        T = np.zeros((r, r), complex)
        k = np.arange(p)
        T[2 * k, k], T[2 * k, p + k] = 1, 1j
        T[2 * k + 1, k], T[2 * k + 1, p + k] = 1, -1j
        T[range(2 * p, r), range(2 * p, r)] = 1
        return T


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Statistics of an adapter on data; made by :func:`calibrate`.

    It holds 2 r^2 numbers per layer, whatever the amount of data, and the tokens of a few validation rows,
    which are left out of the statistics and used to compare candidates of a reduction. For an untrained
    adapter and batches with labels it also holds the gradient operator: 8 MB per layer for a width of 64, 50
    MB at d = 4096.

    Attributes
    ----------
    model, adapter : dict
        Name and fingerprint of the weights that it was made with.
    data : tuple of dict
        For each part that was merged: digest and numbers of batches, rows and tokens.
    layers : dict of LayerSums
        By layer index.
    gradients : dict of GradientOperator
        For layers with an untrained adapter (C = 0), from batches with labels: the gradient of the loss with
        respect to their impulse response.
    tokens : int
        Number of valid positions in the statistics.
    labelled_tokens : int
        Number of those in batches with labels, which the sums of the outputs are over.
    loss_sum : float
        Sum of the losses of all labels; ``labels`` is their number.
    labels : int
    held_out : tuple of dict
        Validation rows, as batches of one row.
    held_out_limit, stride : int
        Largest number of their tokens, and the resulting stride: one row in so many is a validation row.
    rows : int
        Number of all rows, validation rows included.

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

    def __repr__(self) -> str:
        facts = dict(self._facts())
        layers = count(len(self.layers), "layer")
        return f"<Calibration of {layers}: {facts['tokens']} tokens, loss {facts['loss']}>"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return facts_table([("calibration of", count(len(self.layers), "layer")), *self._facts()])

    def _facts(self) -> list[tuple[str, str]]:
        loss = "unknown (no labels)" if self.loss is None else f"{self.loss:.4f}"
        return [
            ("rows", f"{self.rows}, {len(self.held_out)} of them held out"),
            ("tokens", str(self.tokens)),
            ("labels", str(self.labels)),
            ("loss", loss),
            ("gradient operator", f"of {count(len(self.gradients), 'layer')}"),
        ]

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
            They differ.

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
        adapter_layers = find_adapter_layers(model, adapter_name)
        check_fingerprint(self.model, model_fingerprint(model), "model")
        check_fingerprint(self.adapter, adapter_fingerprint(adapter_layers), "adapter")
        self._check_sizes(adapter_layers)
        _check_tokens(self.held_out, model)

    def _check_sizes(self, adapter_layers: AdapterLayers) -> None:
        """Refuse sums of other sizes than the adapter has: a file may have its fingerprint and other sums."""
        expected = {i: (len(sums.states), sums.pairs) for i, sums in self.layers.items()}
        actual = {i: (system.modes.order, system.modes.pairs) for i, system in adapter_layers.systems.items()}
        for i in sorted({*expected, *actual}):
            if expected.get(i) != actual.get(i):
                raise CalibrationError(
                    f"layer {i}: the calibration has (states, conjugate pairs) {expected.get(i)}, and "
                    f"adapter '{adapter_layers.adapter}' has {actual.get(i)}; calibrate again"
                )
        for i, operator in self.gradients.items():
            if operator.width != adapter_layers.systems[i].width:
                raise CalibrationError(
                    f"layer {i}: the calibration has gradients of width {operator.width}, and the model has "
                    f"width {adapter_layers.systems[i].width}; calibrate again"
                )

    def merge(self, other: Calibration) -> Calibration:
        """Return the calibration of both parts of the data; neither of the two is changed.

        Sums are added, so the order matters only for which validation rows are kept.

        Parameters
        ----------
        other : Calibration
            Of the same model and adapter.

        Raises
        ------
        CalibrationError
            The other one is of another model or adapter.

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
        check_fingerprint(self.model, other.model, "model")
        check_fingerprint(self.adapter, other.adapter, "adapter")
        merged = replace(
            self,
            data=tuple(sorted(self.data + other.data, key=lambda part: str(part["digest"]))),
            layers={index: sums + other.layers[index] for index, sums in self.layers.items()},
            gradients={i: operator.merge(other.gradients[i]) for i, operator in self.gradients.items()},
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
        """Write a safetensors file with JSON metadata, atomically: a reader sees the old or the new file.

        Parameters
        ----------
        path : path
            Written under exactly this name. The file holds the tokens of the validation rows.

        Raises
        ------
        OSError
            The file cannot be written; no partial file is left.
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
        except (SafetensorError, CalibrationError, ValueError, OSError, RecursionError) as error:
            raise CalibrationError(
                f"{os.fspath(path)} is no complete calibration ({in_one_line(error, 300)}); write it with "
                "Calibration.save"
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
            L with L L^H = E[s s^H], s the states on the data.
        observability : ndarray, shape (r, k), or None without labels
            Of the outputs weighted by the gradient of the loss: with Q = E[(C^H g)(C^H g)^H], the
            solution of ``A^H W A - W + Q = 0``, W_ij = Q_ij / (1 - conj(a_i) a_j).
        """
        sums = self.layers[index]
        T = sums.mode_transform()
        states = T @ hankelred.gramian_factor(sums.states / self.tokens)
        if not self.labelled_tokens or not np.any(sums.outputs):
            return states, None
        output_weights = hankelred.gramian_factor(sums.outputs / self.labelled_tokens)
        weighted = hankelred.ModalSystem(system.log_poles, system.B, output_weights.T @ np.linalg.inv(T))
        return states, hankelred.gramian(weighted, "observability", factor=True)


def _check_tokens(rows: Sequence[Mapping[str, Tensor]], model: nn.Module) -> None:
    """Refuse validation rows with tokens that the model does not have: a file may hold any."""
    for what, layer in (("input_ids", "get_input_embeddings"), ("labels", "get_output_embeddings")):
        embeddings = getattr(model, layer)() if hasattr(model, layer) else None
        if not isinstance(weight := getattr(embeddings, "weight", None), Tensor):
            continue
        for k, row in enumerate(rows):
            if what in row and int(row[what].max()) >= len(weight):
                raise CalibrationError(
                    f"validation row {k} of the calibration has token {int(row[what].max())} in {what}, and "
                    f"the model has {len(weight)} tokens; calibrate again with this model"
                )


def check_calibration(calibration: object) -> None:
    """Refuse anything but a Calibration, such as the name of its file.

    Raises
    ------
    CalibrationError
    """
    if not isinstance(calibration, Calibration):
        is_path = isinstance(calibration, str | os.PathLike)
        # batches given in its place are not printed: they are long
        value = f"={short_repr(calibration)}" if is_path else ""
        raise CalibrationError(
            f"calibration{value} is a {type(calibration).__name__}, not a Calibration; get one from "
            f"hankelred_llm.{'Calibration.load' if is_path else 'calibrate'}"
        )


def thinned(calibration: Calibration) -> Calibration:
    """Drop every second validation row while there are more tokens of them than allowed."""
    rows, stride = calibration.held_out, calibration.stride
    while len(rows) > 1 and sum(map(_tokens_in, rows)) > calibration.held_out_limit:
        rows, stride = rows[::2], 2 * stride
    return replace(calibration, held_out=rows, stride=stride)


def _tokens_in(row: Mapping[str, Tensor]) -> int:
    return int(inputs_of(row).shape[1])
