"""Rows of different lengths as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .base import Example
from .byte_tokens import IGNORED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Collator:
    """Pad examples to a batch; a data collator for transformers' Trainer.

    Parameters
    ----------
    pad_token_id : int
        Id in the padding, `Task.pad_token_id`; its attention mask is 0.
    prompts : bool
        True: prompts alone, padded on the left, for ``generate`` and for options. False: whole rows and
        labels, padded on the right, so that `Example.scored` holds in the batch.

    Examples
    --------
    >>> from hankelred_llm.tasks import Collator, get_task
    >>> task = get_task("parity")
    >>> batch = Collator(task.pad_token_id)(task.train(5)[:2])
    >>> sorted(batch), tuple(batch["input_ids"].shape)
    (['attention_mask', 'input_ids', 'labels'], (2, 6))
    """

    pad_token_id: int
    prompts: bool = False

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and, for whole rows, ``labels``, each (batch, time)."""
        import torch  # the names of tasks are looked up without it

        rows = [e.prompt_ids if self.prompts else e.input_ids for e in examples]
        shape = len(rows), max(len(row) for row in rows)
        ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
            where = slice(shape[1] - len(row), None) if self.prompts else slice(len(row))
            ids[i, where] = torch.as_tensor(row)
            mask[i, where] = 1
            if not self.prompts:
                labels[i, where] = torch.as_tensor(example.labels)
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch if self.prompts else {**batch, "labels": labels}
