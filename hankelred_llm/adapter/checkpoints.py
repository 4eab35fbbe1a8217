"""What peft and transformers may read and write for an adapter.

Neither asks a method before it loads or saves weights, so five of their functions are wrapped here. For
adapters of other methods they do what they did.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.peft import PeftAdapterMixin

from ..errors import AdapterFileError
from .adapter_layers import hrm_layers, take_out
from .config import HRMConfig, check_weights

#: What says where on the hub an adapter is looked for, and whether there at all.
_HUB_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only")


def check_numbers(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no finite floating-point numbers.

    Raises
    ------
    AdapterFileError
        With the name of the parameter.
    """
    for key, value in weights.items():
        if not value.is_floating_point():
            raise AdapterFileError(
                f"{key} has type {value.dtype} in the file; parameters of an adapter are floating-point "
                "numbers: save it again from the trained model"
            )
        if not value.is_meta and not bool(torch.isfinite(value).all()):
            raise AdapterFileError(
                f"{key} has entries that are not finite in the file; its training diverged: take an earlier "
                "checkpoint, or train with a lower learning rate"
            )


def guard_files() -> None:
    """Wrap what reads and writes adapters; a second time does nothing."""
    for owner, name, wrap in (
        (PeftModel, "from_pretrained", _open_by_peft),
        (PeftModel, "load_adapter", _load_by_peft),
        (PeftModel, "save_pretrained", _save),
        (PeftAdapterMixin, "load_adapter", _load_by_transformers),
        (PreTrainedModel, "save_pretrained", _save_base),
    ):
        found = inspect.getattr_static(owner, name)
        function = getattr(found, "__func__", found)  # of a class method
        if not hasattr(function, "_hrm_wrapped"):
            wrapped: Any = functools.wraps(function)(wrap(function))
            wrapped._hrm_wrapped = True
            setattr(owner, name, classmethod(wrapped) if isinstance(found, classmethod) else wrapped)


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Leave out what transformers says to peft alone: the user has no part in how one calls the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _open_by_peft(from_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    def open_adapter(cls: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        free = isinstance(model, PreTrainedModel) and not hrm_layers(model)
        trained = [p for p in model.parameters() if p.requires_grad] if free else []
        try:
            with without_deprecations():
                return from_pretrained(cls, model, *args, **kwargs)
        except Exception:
            # nobody has a hold of the wrapper that was half made
            if free and hrm_layers(model):
                take_out(model)
                for parameter in trained:
                    parameter.requires_grad_(True)
            raise

    return open_adapter


def _load_by_peft(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_adapter(self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        # a configuration that was handed in has not looked at any file
        if isinstance(self.peft_config.get(adapter_name), HRMConfig):
            check_weights(str(model_id), kwargs.get("subfolder"), kwargs)
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
        given = (peft_model_id, adapter_name, peft_config, adapter_state_dict)
        settings = kwargs.get("load_config")
        where = peft_model_id or getattr(settings, "pretrained_model_name_or_path", None)
        hub = {
            **(getattr(settings, "download_kwargs", None) or {}),
            **kwargs,
            **(kwargs.get("adapter_kwargs") or {}),
        }
        hub = {key: hub[key] for key in _HUB_OPTIONS if hub.get(key)}
        if not isinstance(peft_config if peft_config is not None else _config(where, hub), HRMConfig):
            return load(self, *given, *args, **kwargs)
        if adapter_state_dict is None:
            check_weights(str(where), hub.get("subfolder"), hub)
            check_numbers(_weights(str(where), hub))
        else:
            check_numbers(adapter_state_dict)
        trained = [p for p in self.parameters() if p.requires_grad]
        # other sizes are reported below, as everything that does not fit; load writes it into load_config
        options = {**kwargs, "ignore_mismatched_sizes": True}
        if settings is not None:
            options["load_config"] = copy.copy(settings)
        info = load(self, *given, *args, **options)
        # transformers names all that is not in the file and has the adapter's name, or "hrm", somewhere in
        # its own
        places = [f".{kind}.{adapter_name or 'default'}." for kind in ("hrm_system", "modules_to_save")]
        wrong = {
            "are missing": sorted(k for k in info.missing_keys if any(place in k for place in places)),
            "are unknown": sorted(info.unexpected_keys),
            "have another shape": sorted(key for key, *_ in info.mismatched_keys),
        }
        if any(wrong.values()):
            self.delete_adapter(adapter_name or "default")
            if not any(layer.hrm_system for layer in hrm_layers(self)):
                take_out(self)
            for parameter in trained:  # training an adapter froze the base
                parameter.requires_grad_(True)
            raise does_not_fit(wrong)
        return info

    return load_adapter


def does_not_fit(wrong: Mapping[str, list[str]]) -> AdapterFileError:
    """Return the refusal of weights of another adapter, by what is wrong with which of them."""
    found = ", ".join(f"{len(keys)} {what} ({', '.join(keys[:2])})" for what, keys in wrong.items())
    return AdapterFileError(
        f"the adapter's weights do not fit: {found}; were r, site or layers changed in its "
        "adapter_config.json, or is it an adapter of another model?"
    )


def _config(where: str | os.PathLike[str] | None, hub: Mapping[str, Any]) -> PeftConfig | None:
    """Return the configuration in a folder or repository, None where whoever loads will say what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is loaded
            return PeftConfig.from_pretrained(str(where), **hub)
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _weights(where: str, hub: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights that :func:`check_weights` has found; peft would ask the hub for them again."""
    path = os.path.join(where, hub.get("subfolder") or "", SAFETENSORS_WEIGHTS_NAME)
    return load_file(
        path if os.path.isfile(path) else hf_hub_download(where, SAFETENSORS_WEIGHTS_NAME, **hub)
    )


def _save_base(save: Callable[..., Any]) -> Callable[..., Any]:
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        # with adapters of its own it saves those alone, as LoRA beside an HRM
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
        return save(self, save_directory, safe_serialization, selected_adapters, *args, **kwargs)

    return save_pretrained
