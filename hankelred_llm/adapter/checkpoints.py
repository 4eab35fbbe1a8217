"""Checks on the files that peft and transformers read and write for an adapter.

Neither calls the adapter method before it loads or saves weights, so six of their functions are wrapped
here. For adapters of other methods they work as before.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.peft import PeftAdapterMixin

from ..errors import AdapterFileError
from .adapter_file import check_config_file, check_numbers, loading, weights_mismatch
from .adapter_layers import hrm_layers, other_adapter_layers, remove_adapters
from .config import HRMConfig
from .model_card import write_card
from .static import PARAMETER_GROUPS
from .weights_file import check_safetensors, weights_path

#: Options that choose the place on the hub that an adapter is loaded from.
_HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only")

#: Parts of the names of all parameters that an adapter has in its file.
_SAVED = (*PARAMETER_GROUPS, "modules_to_save")


def guard_files() -> None:
    """Wrap the functions that read and write adapters; a second call does nothing."""
    for owner, name, wrap in (
        (PeftConfigMixin, "from_json_file", _read_config),
        (PeftModel, "from_pretrained", _open_by_peft),
        (PeftModel, "load_adapter", _load_by_peft),
        (PeftModel, "save_pretrained", _save),
        (PeftAdapterMixin, "load_adapter", _load_by_transformers),
        (PreTrainedModel, "save_pretrained", _save_base),
    ):
        attribute = inspect.getattr_static(owner, name)
        function = getattr(attribute, "__func__", attribute)  # of a class method
        if not hasattr(function, "_hrm_wrapped"):
            wrapped: Any = functools.wraps(function)(wrap(function))
            wrapped._hrm_wrapped = True
            setattr(owner, name, classmethod(wrapped) if isinstance(attribute, classmethod) else wrapped)


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Suppress a deprecation warning that concerns how peft calls transformers, not the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _read_config(from_json_file: Callable[..., Any]) -> Callable[..., Any]:
    def read_config(cls: Any, path_json_file: str, **kwargs: Any) -> Any:
        check_config_file(path_json_file)
        return from_json_file(cls, path_json_file, **kwargs)

    return read_config


def _open_by_peft(from_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    def open_adapter(cls: Any, model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        free = isinstance(model, PreTrainedModel) and not hrm_layers(model)
        trained = [p for p in model.parameters() if p.requires_grad] if free else []
        try:
            with without_deprecations(), loading((str(model_id), _hub_options(kwargs))):
                return from_pretrained(cls, model, model_id, *args, **kwargs)
        except Exception:
            # no one holds a reference to the wrapper that was only half built
            if free and hrm_layers(model):
                remove_adapters(model)
                for parameter in trained:
                    parameter.requires_grad_(True)
            raise

    return open_adapter


def _load_by_peft(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        # a configuration that was passed as an object has not checked any file
        if isinstance(self.peft_config.get(adapter_name), HRMConfig):
            check_safetensors(str(model_id), kwargs.get("subfolder"), kwargs)
        with loading((str(model_id), _hub_options(kwargs))):
            return load(self, model_id, adapter_name, *args, **kwargs)

    return load_adapter


def _load_by_transformers(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_adapter(
        self: Any,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        arguments = (peft_model_id, adapter_name, peft_config, adapter_state_dict)
        load_config = kwargs.get("load_config")
        source = peft_model_id or getattr(load_config, "pretrained_model_name_or_path", None)
        hub = {
            **(getattr(load_config, "download_kwargs", None) or {}),
            **kwargs,
            **(kwargs.get("adapter_kwargs") or {}),
        }
        hub = _hub_options(hub)
        config = peft_config if peft_config is not None else _config(source, hub)
        if not isinstance(config, HRMConfig):
            return load(self, *arguments, *args, **kwargs)
        if adapter_state_dict is None:
            check_numbers(load_file(weights_path(str(source), hub)))
        else:
            check_numbers(adapter_state_dict)
        trained = [p for p in self.parameters() if p.requires_grad]
        # modules_to_save of other sizes are reported below; load changes load_config
        options = {**kwargs, "ignore_mismatched_sizes": True}
        if load_config is not None:
            options["load_config"] = copy.copy(load_config)
        with loading((str(source), hub) if adapter_state_dict is None else adapter_state_dict):
            info = load(self, *arguments, *args, **options)
        # transformers lists every parameter that is not in the file and has the adapter's name, or "hrm",
        # anywhere in its own name
        key_parts = [f".{kind}.{adapter_name or 'default'}." for kind in _SAVED]
        problems = {
            "are missing": sorted(k for k in info.missing_keys if any(part in k for part in key_parts)),
            "are unknown": sorted(info.unexpected_keys),
            "have another shape": sorted(key for key, *_ in info.mismatched_keys),
        }
        if any(problems.values()):
            self.delete_adapter(adapter_name or "default")
            if not any(layer.hrm_system for layer in hrm_layers(self)):
                remove_adapters(self)
            for parameter in trained:  # training an adapter froze the base
                parameter.requires_grad_(True)
            raise weights_mismatch(problems, config)
        return info

    return load_adapter


def _config(source: str | os.PathLike[str] | None, hub: Mapping[str, Any]) -> PeftConfig | None:
    """Return the configuration in a folder or repository, None where loading it will raise the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are repeated when it is loaded
            return PeftConfig.from_pretrained(str(source), **hub)
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _HUB_OPTIONS if options.get(key)}


def _save_base(save: Callable[..., Any]) -> Callable[..., Any]:
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        # with adapters added by transformers (LoRA next to an HRM) it saves those adapters only
        if not getattr(self, "_hf_peft_config_loaded", False) and hrm_layers(self):
            warnings.warn(
                "the base model is saved with an HRM adapter in it, which from_pretrained will not read; "
                "save (and give to a Trainer) the PeftModel that attach returned, or call its unload() first",
                stacklevel=2,
            )
        return save(self, *args, **kwargs)

    return save_pretrained


def _save(save: Callable[..., Any]) -> Callable[..., Any]:
    def save_pretrained(
        self: Any,
        save_directory: Any,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        names = self.peft_config if selected_adapters is None else selected_adapters
        if not safe_serialization and any(isinstance(self.peft_config.get(n), HRMConfig) for n in names):
            raise AdapterFileError(
                "safe_serialization=False writes a pickle, and adapters are never unpickled: it could not be "
                "loaded; leave it out to get a safetensors file"
            )
        if sys._getframe(1).f_globals.get("__name__") == "transformers.trainer":
            _warn_of_trained_beside(self)
        with warnings.catch_warnings():
            if any(getattr(self.peft_config.get(n), "base_gguf_file", None) for n in names):
                # peft looks for the vocabulary in a config.json, which a base in a GGUF file has not, and
                # takes its folder for a name on the hub
                for message in ("Could not find a config file in", "Unable to fetch remote file"):
                    warnings.filterwarnings("ignore", message)
            result = save(self, save_directory, safe_serialization, selected_adapters, *args, **kwargs)
        writes = args[1] if len(args) > 1 else kwargs.get("is_main_process", True)
        configs = {n: c for n in names if isinstance(c := self.peft_config[n], HRMConfig)}
        if writes and configs:
            # peft writes one card for all, into the folder above those of named adapters
            write_card(Path(save_directory), configs.get("default") or next(iter(configs.values())))
            for name, config in configs.items():
                if name != "default":
                    write_card(Path(save_directory) / name, config)
        return result

    return save_pretrained


def _warn_of_trained_beside(model: PeftModel) -> None:
    """Warn that a checkpoint of a Trainer lacks adapters of other methods that are trained beside an HRM."""
    if not any(isinstance(config, HRMConfig) for config in model.peft_config.values()):
        return
    beside = [
        name
        for name, module in other_adapter_layers(model).items()
        if any(p.requires_grad for p in module.parameters())
    ]
    if beside:
        warnings.warn(
            f"the Trainer's checkpoints hold the HRM adapter only: {len(beside)} modules with a LoRA or "
            f"another adapter beside it ({beside[0]}, ...) are trained and not saved, so that "
            "resume_from_checkpoint and load_best_model_at_end would start them anew; save them in a "
            "callback, or train with hankelred-llm train, whose checkpoints hold both",
            stacklevel=3,
        )
