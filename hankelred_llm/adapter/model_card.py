"""The model card that a saved adapter comes with: what it is, and how to load it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from hankelred.errors import in_one_line

from .config import HRMConfig

#: Tag of every card, by which adapters are found on the hub.
TAG = "hankelred"

#: Starts of the lines that peft adds to its form of a card, which it writes where there is no card.
_FROM_PEFT = "### Framework versions", "- PEFT "

_HEADING = "# HRM adapter for "
_STATIC_HEADING = "# LoRA exported from an HRM adapter for "
_UNNAMED = "a base model whose name is not recorded"


def card_text(config: HRMConfig) -> str:
    """Return the text of a card.

    Parameters
    ----------
    config : HRMConfig
        Of the saved adapter.

    Examples
    --------
    >>> from hankelred_llm import HRMConfig
    >>> from hankelred_llm.adapter.model_card import card_text
    >>> text = card_text(HRMConfig(r=8, base_model_name_or_path="mistralai/Mistral-7B-v0.1"))
    >>> text.splitlines()[0]
    '# HRM adapter for mistralai/Mistral-7B-v0.1'
    """
    base, data = _base_name(config), config.training_data
    exceptions = ", with the exceptions in rank_pattern" if config.rank_pattern else ""
    return f"""{_HEADING}{base or _UNNAMED}

Linear systems with states, in parallel with the {config.site} blocks of the decoder layers of a frozen
language model: a Hankel reduced-order model (HRM) adapter, arXiv:2606.26290. They carry information from
token to token beside the attention. It has {config.r} real states in a layer{exceptions}.

- **Base model:** {_base_line(config)}
- **Training data:** {in_one_line(data, 500) if data else "not recorded"}

## How to load it

```sh
pip install 'hankelred[llm]'
```

```python
import hankelred_llm  # registers the method HRM in peft
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = {_base_call(config)}
model = PeftModel.from_pretrained(base, "this folder, or its name on the hub")
```

`KeyError: 'HRM'` means that `import hankelred_llm` is missing: peft does not know the method without it.

The adapter has a state, so it **cannot be merged** into the weights of the base model: `merge_and_unload`
refuses. `generate` keeps the state in the cache beside keys and values. Programs that load merged weights
cannot run it.
"""


def static_card_text(config: HRMConfig) -> str:
    """Return the text of the card of an exported LoRA.

    Parameters
    ----------
    config : HRMConfig
        Of the adapter that it was exported from.

    Examples
    --------
    >>> from hankelred_llm import HRMConfig
    >>> from hankelred_llm.adapter.model_card import static_card_text
    >>> static_card_text(HRMConfig(base_model_name_or_path="mistralai/Mistral-7B-v0.1")).splitlines()[0]
    '# LoRA exported from an HRM adapter for mistralai/Mistral-7B-v0.1'
    """
    return f"""{_STATIC_HEADING}{_base_name(config) or _UNNAMED}

The parts without a state of a Hankel reduced-order model (HRM) adapter, arXiv:2606.26290, as an ordinary LoRA
of peft. **It lacks the recurrent state** of that adapter, with its feedthrough, and computes what the adapter
does without them.

- **Base model:** {_base_line(config)}

## How to load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = {_base_call(config)}
model = PeftModel.from_pretrained(base, "this folder, or its name on the hub")
```
"""


def _base_name(config: HRMConfig) -> str | None:
    name = config.base_model_name_or_path
    return in_one_line(name, 200) if name else None


def _base_line(config: HRMConfig) -> str:
    base = _base_name(config)
    revision = f" (revision {in_one_line(config.revision, 100)})" if config.revision else ""
    return f"{base}{revision}" if base else "not recorded"


def _base_call(config: HRMConfig) -> str:
    """Return the call that loads the base model."""
    base = _base_name(config)
    options = "".join(
        f", {key}={in_one_line(value, 100)!r}"
        for key, value in (("gguf_file", config.base_gguf_file), ("revision", config.revision))
        if value
    )
    return f"AutoModelForCausalLM.from_pretrained({repr(base) if base else 'BASE'}{options})"


def write_card(folder: Path, config: HRMConfig) -> None:
    """Write the card of a saved adapter, in place of peft's empty form or of a card written before.

    Any other card is the user's: only its tags change.

    Parameters
    ----------
    folder : Path
        Where the adapter was saved.
    config : HRMConfig
        Its configuration.
    """
    _write(folder, card_text(config))


def write_static_card(folder: Path, config: HRMConfig) -> None:
    """Write the card of an exported LoRA, as :func:`write_card`.

    Parameters
    ----------
    folder : Path
        Where the LoRA was written.
    config : HRMConfig
        Of the adapter that it was exported from.
    """
    _write(folder, static_card_text(config))


def _write(folder: Path, content: str) -> None:
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    card = ModelCard(text or "---\nlibrary_name: peft\n---\n")
    # only at the start: a card of the user may have such a heading, or an example of one, further down
    if not text or card.text.lstrip().startswith((_HEADING, _STATIC_HEADING)) or _is_empty_form(card.text):
        card.text = content
    card.data["tags"] = sorted({*(card.data.get("tags") or []), TAG})
    path.write_text(str(card), encoding="utf-8")


def _is_empty_form(text: str) -> bool:
    """Return whether a text is the form that peft starts a card from, with nothing filled in by a user."""
    form = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    return all(line in form or line.startswith(_FROM_PEFT) for line in text.splitlines())
