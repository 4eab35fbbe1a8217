"""HRM as a method of peft: registration, and putting adapters into a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import peft
from peft import PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.peft_model import PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import GenerationConfig

from ..errors import AdapterError, ArchitectureError, ConfigError
from ..state import forward_context
from ..state.decoder_call import check_arguments
from ..state.row_adapters import row_adapters
from .adapter_file import check_numbers, check_shapes, check_sizes, errors_of_file
from .adapter_layers import add_static_layer, find_adapter, hrm_layers, remove_adapters
from .architectures import find_decoder, linear_sizes
from .checkpoints import guard_files, without_deprecations
from .checks import check_base, check_names, lora_names, readout_names, static_maps, warn_of_many_states
from .config import HRMConfig, HRMType, lora_options
from .layer import AdapterLayer, HRMLayer, cannot_merge
from .model_card import write_static_card
from .self_check import check_architecture
from .static import Readout, add_hooks, export, merge, unmerge

#: Key of the configuration in ``model.peft_config``, next to those of other methods. peft does not save
#: parameters with this key in their name with the adapters of other methods.
_CONFIG_KEY = "hrm_system"

#: Name of the base model in peft's ``adapter_names``.
_BASE_ROW = "__base__"


class HRMModel(BaseTuner):
    """The model with HRM adapters in it, as peft wraps it; users get it through :func:`attach`.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    peft_config : HRMConfig or dict of HRMConfig
    adapter_name : str
    **options
        As for every tuner of peft.
    """

    prefix = "hrm_"
    tuner_layer_cls = AdapterLayer

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **options: Any):
        if not isinstance(peft_config, dict):  # injected by transformers: one registry for all methods
            super().__init__(model, peft_config, adapter_name, **options)
            return
        _check_free(model)
        others = model.__dict__.pop("peft_config", {})
        try:
            super().__init__(model, peft_config, adapter_name, **options)
        finally:
            # peft's own entry would be mistaken for that of another adapter of the same name
            model.__dict__.pop("peft_config", None)
            if others:
                model.__dict__["peft_config"] = others
        model.__dict__["peft_config"] = {**others, _CONFIG_KEY: self.peft_config[adapter_name]}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to a model.

        Raises
        ------
        ArchitectureError
            The architecture of the model is not supported.
        AdapterFileError
            The adapter was made for another base.
        ConfigError
            A layer named in the configuration does not exist.
        """
        config = self.peft_config[adapter_name]
        decoder = find_decoder(model)
        check_arguments(decoder.backbone, decoder.model_type)
        fresh = config.base_shape is None
        check_base(config, model, decoder)
        if config.target_modules is None:
            config.target_modules = [decoder.block_name(config.site)]
        with errors_of_file():
            adapted = check_names(config, model, decoder, fresh=fresh)
            readouts = readout_names(config, model, adapted)
            read = [name for names in readouts.values() for name in names.values()]
            lora = lora_names(config, model, decoder, read)
            static = static_maps(config, model, readouts)
            check_sizes(
                config, static, {n: linear_sizes(model.get_submodule(n)) for n in lora}, decoder.width
            )
        if fresh:
            warn_of_many_states(config, adapted, decoder.width)
        check_architecture(model, decoder, config, {name.rpartition(".")[2] for name in adapted})
        self.decoder = decoder
        self.method_adapters = tuple(n for n, c in self.peft_config.items() if isinstance(c, HRMConfig))
        for layer in model.modules():
            if isinstance(layer, AdapterLayer):
                layer.method_adapters = self.method_adapters
        self._static, self._readouts, self._lora = static, readouts, lora
        with errors_of_file():
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        forward_context.install(decoder.backbone, decoder.layers)

    def _create_and_replace(
        self,
        peft_config: HRMConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        index = next((i for i, layer in enumerate(self.decoder.layers) if layer is parent), None)
        if index is None:
            raise ArchitectureError(
                f"{current_key} is no block of a decoder layer; target_modules must name blocks such as "
                f"'{self.decoder.block_name('mlp')}' or '{self.decoder.block_name('attention')}'"
            )
        child_name = f"{target_name}_adapter"
        if not hasattr(parent, child_name):
            new = HRMLayer(target, index, target_name, self.decoder.width)
            setattr(parent, child_name, new.train(target.training))
        layer = getattr(parent, child_name)
        layer.method_adapters = self.method_adapters
        layer.update_layer(
            adapter_name, peft_config, peft_config.modes_of(current_key), self._static[current_key]
        )
        for key, name in self._readouts[current_key].items():
            readout = Readout(layer, key, peft_config.static_scale)
            add_static_layer(self.model, name, self.method_adapters).add_readout(adapter_name, readout)
        # the first of all blocks: peft creates parameters, also those of the LoRA, on the meta device here
        while self._lora:
            name = self._lora.pop()
            layer = add_static_layer(self.model, name, self.method_adapters)
            layer.add_lora(adapter_name, lora_options(peft_config, name))

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: HRMConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        # peft would take the parameters of all tuner layers, those of other methods too
        return {key: state_dict[key] for key in _parameter_names(model, adapter_name) if key in state_dict}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: HRMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        model_state = model.state_dict()
        expected = _parameter_names(model, adapter_name)
        # the other parameters of the model that a file may hold are those of modules_to_save
        in_file = {k: tuple(v.shape) for k, v in mapped.items() if k in expected or k not in model_state}
        check_shapes({key: tuple(model_state[key].shape) for key in expected}, in_file, config)
        check_numbers({key: mapped[key] for key in expected})
        return mapped

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Use for each row the adapter that ``adapter_names`` of forward or generate names for it.

        Raises
        ------
        AdapterError
            The model is in training mode, a name is not that of an adapter, or modules of the base model are
            trained with an adapter.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise AdapterError("adapter_names is for inference; call model.eval() first")
        names = names if isinstance(names, str) else list(names)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise AdapterError(
                f"adapter_names={names!r} must be a list with the name of an adapter for each row"
            )
        known = [*self.method_adapters, _BASE_ROW]
        if unknown := sorted(set(names) - set(known)):
            raise AdapterError(
                f"adapter_names names {', '.join(map(repr, unknown))}; the model has "
                f"{', '.join(map(repr, known))}, the last of which is the base model"
            )
        if any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.modules()):
            raise AdapterError(
                "adapter_names cannot be used with modules_to_save, which are the same for all rows; call "
                "the model once for each adapter, after set_adapter"
            )
        # generate repeats every row for its beams and samples
        configs = [value for value in (*args, *kwargs.values()) if isinstance(value, GenerationConfig)]
        configs.append(self.model.generation_config)
        copies = [
            next((n for n in (kwargs.get(what), *(getattr(c, what, None) for c in configs)) if n), 1)
            for what in ("num_beams", "num_return_sequences")
        ]
        add_hooks(self.model)
        with row_adapters(self.decoder.backbone, names, copies=max(copies)):
            yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a weighted sum of recurrent systems is a system of all their states.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(
            "add_weighted_adapter is not offered: the sum of two state-space systems has the states of both; "
            "activate both with model.base_model.set_adapter([name, other]), or build the sum with "
            "get_systems and set_systems"
        )

    def merge_static(self) -> None:
        """Merge the static readouts and the LoRA of the active adapters into the weights of the base model.

        The state stays, with its feedthrough. The adapter is saved as before, and ``disable_adapter`` and
        ``adapter_names`` work as before: where a merged adapter is not active, what it added is subtracted
        from the outputs. ``set_adapter``, ``add_adapter`` and ``load_adapter`` unmerge first, with a warning
        of peft for every linear module. Parameters must not be changed, or trained, before
        :meth:`unmerge_static`.

        Weights in 16 bits are rounded when they are merged and when they are unmerged.

        Raises
        ------
        AdapterError
            There are no static parts, they are merged already, or a weight is quantized, sharded, offloaded
            or shared. The model is not changed then.

        Examples
        --------
        >>> import transformers, torch, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(
        ...     transformers.MistralForCausalLM(config), r=4, site="attention", static_readouts=["q_proj"])
        >>> model.merge_static()
        >>> model.unmerge_static()
        """
        merge(self.model, [name for name in self.active_adapters if name in self.method_adapters])

    def unmerge_static(self) -> None:
        """Undo :meth:`merge_static`; weights of the base are as before up to rounding.

        In 16 bits that rounding is as large as that of the weights: load the base anew where the exact
        weights are needed.

        Raises
        ------
        AdapterError
            Nothing is merged.
        """
        unmerge(self.model)

    def export_static(self, folder: str | os.PathLike[str], adapter_name: str | None = None) -> None:
        """Write the static readouts and the LoRA of an adapter as an ordinary LoRA of peft.

        Parameters
        ----------
        folder : path
        adapter_name : str, optional
            Default: the active adapter.

        Raises
        ------
        AdapterError
            There is no such adapter, it has no static parts, or the folder holds a saved adapter that is not
            a LoRA. Nothing is written then.

        Notes
        -----
        The LoRA lacks the state and its feedthrough: with it the base model computes what this model does
        without them. A model card is written with it, README.md, unless the folder has one of the user's.
        """
        name = find_adapter(self.model, adapter_name)[0]
        export(self.model, name, folder)
        write_static_card(Path(folder), self.peft_config[name])

    def unload(self) -> nn.Module:
        """Remove all HRM adapters and return the base model; adapters of other methods stay.

        Examples
        --------
        >>> import transformers, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
        >>> base = model.unload()
        >>> type(base.model.layers[0].mlp).__name__
        'MistralMLP'
        """
        remove_adapters(self.model)
        return self.model

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a recurrence cannot be merged into weights.

        Raises
        ------
        AdapterError
            Always.
        """
        raise cannot_merge()

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, as :meth:`merge_and_unload`.

        Raises
        ------
        AdapterError
            Always.
        """
        raise cannot_merge()

    def unmerge_adapter(self) -> NoReturn:
        """Refuse: nothing can have been merged.

        Raises
        ------
        AdapterError
            Always.
        """
        raise cannot_merge()

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the paged cache of continuous batching cannot hold a recurrent state.

        Raises
        ------
        AdapterError
            Always.
        """
        raise AdapterError(
            "continuous batching (generate_batch) keeps keys and values in a paged cache, which cannot "
            "hold a recurrent state; use generate, on padded batches"
        )

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch


def attach(model: nn.Module, config: HRMConfig | None = None, **config_fields: Any) -> PeftModel:
    """Add an HRM adapter to a causal language model.

    The base model is frozen. At initialization the model's outputs are bit-identical to the base model's.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model of transformers, changed in place. A LoRA from ``model.add_adapter`` stays as
        it is, trainable or not.
    config : HRMConfig, optional
    **config_fields
        Fields of :class:`HRMConfig`, instead of ``config``.

    Returns
    -------
    PeftModel
        It is trained, saved and loaded like any peft model: with transformers' Trainer, with TRL, and with
        every cache in generation.

    Raises
    ------
    ArchitectureError
        The model is not a causal language model, or has no block of this name.
    AdapterError
        The model has an HRM adapter, or is wrapped in a PeftModel.
    ConfigError
        A field has an invalid value or names a layer that does not exist, or the configuration is one of
        another method.

    Notes
    -----
    ``peft.get_peft_model(model, HRMConfig(...))`` does the same. The method is that of [1]_.

    References
    ----------
    .. [1] arXiv:2606.26290.

    Examples
    --------
    >>> import transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> model.get_nb_trainable_parameters()[0]  # 2 layers of 2 * 4 * 16, 4 for the poles and the gate
    266
    """
    if config is not None and config_fields:
        raise ConfigError(
            f"pass either config or its fields, not both ({', '.join(config_fields)} came with a config)"
        )
    if config is not None and not isinstance(config, HRMConfig):
        raise ConfigError(
            f"config is a {type(config).__name__}, and attach takes an HRMConfig, or its fields as in "
            "attach(model, r=16); for an adapter of another method call peft.get_peft_model"
        )
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"{model!r} is no model but a {type(model).__name__}; load one with "
            "transformers.AutoModelForCausalLM"
        )
    _check_free(model)
    config = HRMConfig(**config_fields) if config is None else config
    config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    with without_deprecations():
        return PeftModelForCausalLM(model, config)


def _check_free(model: nn.Module) -> None:
    """Refuse a model that is wrapped or has an adapter: a second wrapper would not know the first one."""
    find_decoder(model)
    if hrm_layers(model):
        raise AdapterError(
            "the model has an HRM adapter already; add a second one with add_adapter(name, HRMConfig(...)) "
            "or load_adapter(folder, name) on the PeftModel, or call its unload() first"
        )


def _parameter_names(model: nn.Module, adapter_name: str) -> list[str]:
    return [
        f"{name}.{kind}.{adapter_name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, AdapterLayer)
        for kind in module.adapter_layer_names
        if adapter_name in module.modules_of(kind)
        for parameter, _ in module.modules_of(kind)[adapter_name].named_parameters()
    ]


def register() -> None:
    """Register HRM in the mappings of peft, whose own register function accepts no new names.

    Raises
    ------
    ImportError
        This version of peft cannot save adapters of other packages; without the check, that error would come
        after training.
    """
    if not hasattr(BaseTuner, "_get_adapter_state_dict"):
        raise ImportError(
            f"hankelred_llm needs peft 0.21 or newer, and this is {peft.__version__}, which cannot save "
            "adapters of other packages; run: pip install --upgrade 'peft>=0.21'"
        )
    PEFT_TYPE_TO_CONFIG_MAPPING[HRMType.HRM] = HRMConfig
    PEFT_TYPE_TO_TUNER_MAPPING[HRMType.HRM] = HRMModel
    PEFT_TYPE_TO_PREFIX_MAPPING[HRMType.HRM] = HRMModel.prefix
    guard_files()
