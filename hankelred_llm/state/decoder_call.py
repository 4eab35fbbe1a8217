"""The arguments of a call of a decoder of transformers: the one module that knows their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

from ..errors import AdapterError, ArchitectureError, StateError
from .cache import find_cache

#: Arguments without which padding cannot be read. The cache is found by its type instead.
_READ = ("input_ids", "inputs_embeds", "attention_mask")

#: Arguments that are not positions. A decoder with only these needs no position_ids, for example because its
#: attention computes distances itself; a decoder with other arguments may have renamed position_ids.
_NO_POSITIONS = {
    *_READ,
    "cache",
    "past_key_values",
    "use_cache",
    "cache_position",
    "token_type_ids",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "head_mask",
    "cross_attn_head_mask",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "kwargs",
}


@dataclass(frozen=True)
class DecoderCall:
    """The part of a call of a decoder that adapters need.

    Parameters
    ----------
    batch, time : int
        Numbers of rows, and of tokens in each, without those in the cache.
    cache : Cache or None
        Keys and values of earlier tokens.
    use_cache : bool
        Whether a cache was requested in the call itself.
    mask, positions, cumulative_lengths, document_ids
        Attention mask, positions, cumulative lengths of the documents of one row, document of each token.
    """

    batch: int
    time: int
    cache: Cache | None
    use_cache: bool
    mask: Any
    positions: Tensor | None
    cumulative_lengths: Tensor | None
    document_ids: Tensor | None

    @classmethod
    def read(
        cls, config: Any, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DecoderCall | None:
        """Read a call; None where it has no tokens.

        Parameters
        ----------
        config : PreTrainedConfig
            Of the decoder.
        names : tuple of str
            Of its positional arguments.
        args, kwargs
            What it is called with.

        Raises
        ------
        AdapterError
            The call names an adapter for each row, which only the PeftModel can handle.
        StateError
            The cache is of a kind that cannot hold a recurrent state.
        """
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        paged = "paged" in str(getattr(config, "_attn_implementation", ""))
        if paged or arguments.get("write_index") is not None:
            raise StateError(
                "continuous batching (generate_batch) keeps keys and values in a paged cache, which cannot "
                "hold a recurrent state; use generate"
            )
        if arguments.get("adapter_names") is not None:
            raise AdapterError(
                "adapter_names reached the base model, which ignores it; pass it to the PeftModel, whose "
                "forward and generate choose an adapter for each row"
            )
        inputs = arguments.get("inputs_embeds")
        inputs = arguments.get("input_ids") if inputs is None else inputs
        if inputs is None:
            return None
        batch, time = inputs.shape[:2]
        return cls(
            batch=batch,
            time=time,
            cache=find_cache(arguments.values()),
            use_cache=arguments.get("use_cache") is True,
            mask=arguments.get("attention_mask"),
            positions=arguments.get("position_ids"),
            cumulative_lengths=arguments.get("cu_seq_lens_q"),
            document_ids=arguments.get("seq_idx"),
        )


def argument_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of the arguments of a decoder, in order."""
    return tuple(inspect.signature(type(backbone).forward).parameters)[1:]


def check_arguments(backbone: nn.Module, model_type: str) -> None:
    """Refuse a decoder whose arguments for padding and document starts have unknown names.

    Raises
    ------
    ArchitectureError
        The decoder does not take an argument from which they are read.
    """
    names = argument_names(backbone)
    missing = [name for name in _READ if name not in names]
    if "position_ids" not in names and not _NO_POSITIONS.issuperset(names):
        missing.append("position_ids")
    if "cu_seq_lens_q" not in FlashAttentionKwargs.__annotations__:
        missing.append("cu_seq_lens_q")
    if missing:
        raise ArchitectureError(
            f"{type(backbone).__name__} (model_type '{model_type}') of transformers "
            f"{transformers.__version__} takes {', '.join(names)}, and not {', '.join(missing)}, from which "
            "an adapter reads padding and document starts; use a version of transformers in the range that "
            "hankelred_llm declares"
        )


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return the name of the argument of a forward function that is annotated as a cache.

    Raises
    ------
    StateError
        There is none, or more than one.
    """
    names = [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if re.search(r"\bCache\b", str(parameter.annotation))
    ]
    if len(names) != 1:
        parameters = ", ".join(inspect.signature(forward).parameters)
        raise StateError(
            f"transformers {transformers.__version__}: {len(names)} of the arguments of "
            f"{forward.__qualname__} ({parameters}) are annotated as a Cache, where one is expected; use a "
            "version of transformers that this version of hankelred_llm knows"
        )
    return names[0]
