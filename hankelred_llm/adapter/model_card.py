"""The model card that a saved adapter comes with: what it is, and how to load it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from hankelred.errors import in_one_line

from .config import HRMConfig

#: Tag of every card, by which adapters are found on the hub.
TAG = "hankelred"

#: The first heading of the card that peft writes where there is none: a form with nothing filled in.
_FORM_OF_PEFT = "# Model Card for Model ID"

_HEADING = "# HRM adapter"


def card_text(config: HRMConfig, data: str | None = None) -> str:
    """Return the text of a card.

    Parameters
    ----------
    config : HRMConfig
        Of the saved adapter.
    data : str, optional
        What it was trained on, where that is known.

    Examples
    --------
    >>> from hankelred_llm import HRMConfig
    >>> from hankelred_llm.adapter.model_card import card_text
    >>> text = card_text(HRMConfig(r=8, base_model_name_or_path="mistralai/Mistral-7B-v0.1"))
    >>> text.splitlines()[0]
    '# HRM adapter for mistralai/Mistral-7B-v0.1'
    """
    name = config.base_model_name_or_path
    base = in_one_line(name, 200) if name else None
    revision = f" (revision {in_one_line(config.revision, 100)})" if config.revision else ""
    source = repr(base) if base else "BASE"
    options = "".join(
        f", {key}={in_one_line(value, 100)!r}"
        for key, value in (("gguf_file", config.base_gguf_file), ("revision", config.revision))
        if value
    )
    exceptions = ", with the exceptions in rank_pattern" if config.rank_pattern else ""
    return f"""{_HEADING} for {base or "a base model whose name is not recorded"}

Linear systems with states, in parallel with the {config.site} blocks of the decoder layers of a frozen
language model: a Hankel reduced-order model (HRM) adapter, arXiv:2606.26290. They carry information from
token to token beside the attention. It has {config.r} real states in a layer{exceptions}.

- **Base model:** {f"{base}{revision}" if base else "not recorded"}
- **Training data:** {in_one_line(data, 500) if data else "not recorded"}

## How to load it

```sh
pip install 'hankelred[llm]'
```

```python
import hankelred_llm  # registers the method HRM in peft
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({source}{options})
model = PeftModel.from_pretrained(base, "this folder, or its name on the hub")
```

`KeyError: 'HRM'` means that `import hankelred_llm` is missing: peft does not know the method without it.

The adapter has a state, so it **cannot be merged** into the weights of the base model: `merge_and_unload`
refuses. `generate` keeps the state in the cache beside keys and values. Programs that load merged weights
cannot run it.
"""


def write_card(folder: Path, config: HRMConfig, data: str | None = None) -> None:
    """Write the card of a saved adapter, in place of peft's empty form; of other cards only the tags change.

    Parameters
    ----------
    folder : Path
        Where the adapter was saved.
    config : HRMConfig
        Its configuration.
    data : str, optional
        As in :func:`card_text`.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    card = ModelCard(text or "---\nlibrary_name: peft\n---\n")
    if not text or _FORM_OF_PEFT in text or _HEADING in text:
        card.text = card_text(config, data)
    card.data["tags"] = sorted({*(card.data.get("tags") or []), TAG})
    path.write_text(str(card), encoding="utf-8")
