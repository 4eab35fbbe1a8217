"""Hankel spectra of adapters, and ranks chosen from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

import hankelred
from hankelred import OrderError
from hankelred.errors import count
from hankelred.report.notebook import headed_table, side_by_side, small_picture

from .._util.progress import progress_bar
from .._util.tables import table
from ..adapter.adapter_layers import find_adapter_layers, hrm_layers
from ..adapter.architectures import find_decoder
from ..errors import CalibrationError
from .balancing import balanced, modal_systems, whole_number, with_compressed_io
from .calibration import Calibration, check_calibration
from .fingerprints import check_fingerprint, model_fingerprint
from .gradient_hankel import MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class HankelSpectra(Mapping[int, Array]):
    """Hankel singular values by layer: how much memory a layer uses, or would use according to the gradient.

    A mapping from layer index to values in descending order (float64): those of the trained adapters where
    there are any, otherwise those of the gradient. Printing it gives a table.

    Attributes
    ----------
    exact : dict of ndarray
        Of the systems (A, B, gate C), from closed-form Gramians; a layer of r states has r values. Empty for
        a model without adapters.
    noise_floors : dict of float
        Level at or below which exact values are rounding errors.
    empirical : dict of ndarray or None
        From the Gramians of a :class:`Calibration`: of the states on the data, and of the outputs weighted by
        the gradient of the loss (without labels: unweighted). They are in the units of the data, so they
        compare layers with each other, not with the exact values. No bound follows from them.
    gradient, null : dict of ndarray or None
        Before training: of the Hankel operator of the gradient of the loss, in loss per token and unit of
        gain, and of its permutation null, with inputs and gradients of different sequences. A value is
        significant above 1.5 times the largest of the null.
    names : dict of str
        Module names of the layers.
    """

    exact: dict[int, Array]
    noise_floors: dict[int, float] = field(default_factory=dict)
    empirical: dict[int, Array] | None = None
    gradient: dict[int, Array] | None = None
    null: dict[int, Array] | None = None
    names: dict[int, str] = field(default_factory=dict)

    @property
    def _values(self) -> dict[int, Array]:
        return self.exact or self.gradient or {}

    def __getitem__(self, layer: int) -> Array:
        return self._values[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def significant(self, layer: int) -> int:
        """Return the number of values of a layer above rounding or, before training, above the null.

        Parameters
        ----------
        layer : int

        Examples
        --------
        >>> import numpy as np
        >>> from hankelred_llm import HankelSpectra
        >>> HankelSpectra({0: np.array([1.0, 1e-20])}, noise_floors={0: 1e-16}).significant(0)
        1
        """
        return int(np.count_nonzero(self[layer] > self.threshold(layer)))

    def threshold(self, layer: int) -> float:
        """Return the level above which a value of a layer is significant.

        Parameters
        ----------
        layer : int

        Examples
        --------
        >>> import numpy as np
        >>> from hankelred_llm import HankelSpectra
        >>> before = HankelSpectra({}, gradient={0: np.array([1.0, 0.2])}, null={0: np.array([0.2])})
        >>> round(before.threshold(0), 3), before.significant(0)
        (0.3, 1)
        """
        if self.exact:
            return self.noise_floors.get(layer, 0.0)
        # there are only three null operators, and others would exceed them: hence a margin
        return MARGIN * float(self.null[layer].max(initial=0.0)) if self.null else 0.0

    def plot(
        self, ax: Axes | None = None, *, kind: str = "curves", ranks: Mapping[int, int] | None = None
    ) -> Axes:
        """Draw the spectra.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; default: a new figure.
        kind : {"curves", "heatmap"}
            "curves": one per layer, darker for later layers, with their median and quartiles and the level of
            significance; empirical values are dashed, those of the null gray. "heatmap": layers by index.
        ranks : dict of int, optional
            Orders to mark, by layer, such as from :meth:`suggest_ranks`.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ConfigError
            An unknown kind, or there are no layers.

        Examples
        --------
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import numpy as np
        >>> from hankelred_llm import HankelSpectra
        >>> spectra = HankelSpectra({0: np.array([3.0, 0.2, 0.1]), 1: np.array([1.0, 0.5, 0.01])})
        >>> ax = spectra.plot(ranks=spectra.suggest_ranks(budget=4))
        >>> ax.get_yscale()
        'log'
        """
        from .plots import Spectra, draw

        spectra = Spectra(
            values=self._values,
            thresholds={layer: self.threshold(layer) for layer in self},
            trained=bool(self.exact),
            empirical=self.empirical,
            null=None if self.exact else self.null,
        )
        return draw(spectra, ax, kind=kind, ranks=ranks)

    def suggest_ranks(self, *, tol: float | None = None, budget: int | None = None) -> dict[int, int]:
        """Return an order for each layer; :func:`reduce` with the same rule takes the same.

        Parameters
        ----------
        tol : float, optional
            Absolute, for each layer: the smallest order of at least 1 whose error bound, twice the sum of the
            distinct values left out, is at most this.
        budget : int, optional
            Number of states over all layers, 2 d parameters each. Each layer gets one state, and the others
            go to the largest values of all layers; of equal values the lower layer comes first. Values that
            are not significant get none, so the sum may be smaller.

        Returns
        -------
        dict of int

        Raises
        ------
        OrderError
            Not exactly one rule, or an invalid value.

        Notes
        -----
        The ranks follow the exact values where there are any: these bound the error for every input.

        Examples
        --------
        >>> import numpy as np
        >>> from hankelred_llm import HankelSpectra
        >>> spectra = HankelSpectra({0: np.array([3.0, 0.2, 0.1]), 1: np.array([1.0, 0.5, 0.01])})
        >>> spectra.suggest_ranks(budget=4)
        {0: 2, 1: 2}
        >>> spectra.suggest_ranks(tol=0.25)
        {0: 2, 1: 2}
        """
        if (tol is None) == (budget is None):
            raise OrderError("give exactly one of tol= and budget=")
        significant = {i: max(1, self.significant(i)) for i in self}
        if tol is not None:
            return {i: min(max(1, hankelred.select_order(self[i], tol=tol)), significant[i]) for i in self}
        total = whole_number(budget, "budget")
        if total < len(self):
            raise OrderError(
                f"budget={total} is less than one state for each of the {len(self)} layers; the least is "
                f"{len(self)}"
            )
        further = sorted((-float(self[i][k]), i, k) for i in self for k in range(1, significant[i]))
        ranks = dict.fromkeys(self, 1)
        for _, i, _ in further[: total - len(self)]:
            ranks[i] += 1
        return ranks

    def to_json(self) -> str:
        """Return all values as JSON, layers by index.

        Examples
        --------
        >>> import numpy as np
        >>> from hankelred_llm import HankelSpectra
        >>> HankelSpectra({0: np.array([3.0, 0.2])}, names={0: "layers.0.mlp"}).to_json()
        '{"layers": {"0": {"name": "layers.0.mlp", "exact": [3.0, 0.2]}}}'
        """
        layers = {}
        for i in self:
            kinds = {
                kind: values[i].tolist()
                for kind in ("exact", "empirical", "gradient", "null")
                if (values := getattr(self, kind)) and i in values
            }
            floor = {"noise_floor": self.noise_floors[i]} if i in self.noise_floors else {}
            layers[str(i)] = {"name": self.names.get(i, ""), **kinds, **floor}
        return json.dumps({"layers": layers})

    def __repr__(self) -> str:
        return f"<HankelSpectra of {count(len(self), 'layer')}: {', '.join(self._kinds()) or 'no values'}>"

    def __str__(self) -> str:
        return table(self._rows())

    def _repr_html_(self) -> str:
        """Return the table and the picture that a notebook shows."""
        cells = headed_table(self._rows())
        return side_by_side(cells, small_picture(lambda ax: self.plot(ax=ax))) if len(self) else cells

    def _kinds(self) -> list[str]:
        return [kind for kind in ("exact", "empirical", "gradient") if getattr(self, kind)]

    def _rows(self) -> list[list[str]]:
        kinds = self._kinds()
        heads = [f"{kind}: first, at 1/4, 1/2, 3/4, last" for kind in kinds]
        rows = [["layer", "values", "counted", *heads]]
        for i in self:
            cells = []
            for kind in kinds:
                values = getattr(self, kind)[i]
                at = np.unique(np.linspace(0, values.size - 1, 5).round().astype(int))
                cells.append("  ".join(f"{values[k]:.2e}" for k in at))
            rows.append([self.names.get(i, str(i)), str(self[i].size), str(self.significant(i)), *cells])
        return rows


def hankel_spectra(
    model: nn.Module, calibration: Calibration | None = None, *, adapter_name: str | None = None
) -> HankelSpectra:
    """Return the Hankel singular values of a model's adapters, or before training those of the gradient.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        With an HRM adapter; or, with a calibration that had labels, without one.
    calibration : Calibration, optional
        Of this model and adapter: adds the empirical values. Where the output of the adapter is zero, or
        there is no adapter, the values are those of the gradient of the loss and of its null.
    adapter_name : str, optional
        Default: the active adapter.

    Returns
    -------
    HankelSpectra

    Raises
    ------
    AdapterError
        There is no such adapter, or its parameters are not finite.
    CalibrationError
        The calibration is of another model or adapter, or of other parameters. Before training: it had no
        labels, fewer than three sequences, or sequences that are all the same.

    Examples
    --------
    >>> import transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> spectra = hankelred_llm.hankel_spectra(model)
    >>> spectra[1].shape
    (4,)
    """
    if calibration is not None:
        check_calibration(calibration)
    if calibration is not None and calibration.gradients and not hrm_layers(model):
        check_fingerprint(calibration.model, model_fingerprint(model), "model")
        if not calibration.labels:
            raise CalibrationError(
                "the calibration had no labels, and the spectra before training are those of the gradient of "
                "the loss; calibrate on batches with labels, as in {'input_ids': ids, 'labels': ids}"
            )
        decoder = find_decoder(model)
        where = f"{decoder.name.rpartition('.')[2]}.{{}}.{decoder.block_name('mlp')}"
        return _before_training(calibration, {i: where.format(i) for i in calibration.gradients})
    adapter_layers = find_adapter_layers(model, adapter_name)
    if calibration is not None:
        calibration.check(model, adapter_layers.adapter)
        if len(calibration.gradients) == len(adapter_layers.systems) and calibration.labels:
            return _before_training(calibration, dict(adapter_layers.names))
    exact, floors, empirical = {}, {}, {}
    for i, system in modal_systems(model, adapter_layers).items():
        compressed = with_compressed_io(system)
        balancing = balanced(compressed)
        exact[i], floors[i] = balancing.hankel_singular_values, balancing.noise_floor
        if calibration is not None:
            empirical[i] = balanced(compressed, *calibration.factors(i, compressed)).hankel_singular_values
    return HankelSpectra(
        exact, floors, empirical if calibration is not None else None, names=dict(adapter_layers.names)
    )


def _before_training(calibration: Calibration, names: dict[int, str]) -> HankelSpectra:
    operators = progress_bar(calibration.gradients.items(), "spectra", None)
    spectra = {i: operator.spectrum() for i, operator in operators}
    return HankelSpectra(
        {},
        gradient={i: spectrum.values for i, spectrum in spectra.items()},
        null={i: spectrum.null for i, spectrum in spectra.items()},
        names=names,
    )
