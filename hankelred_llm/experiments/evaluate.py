"""Predictions of a model on a split, scored by its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..tasks import Choice, Collator, Example, Scores, Split, Task, TaskError
from ..tasks.byte_tokens import Tokenizer
from .processes import this_process

FloatArray: TypeAlias = npt.NDArray[np.float64]

__all__ = ["evaluate", "position_losses", "predict", "text_losses"]

#: Rows of a text, at equal distances in it, on which forgetting is measured, and the most tokens of each.
TEXT_ROWS, TEXT_LENGTH = 8, 1024


def evaluate(model: nn.Module, task: Task, split: Split, *, batch_size: int = 32) -> Scores:
    """Return the scores of a model on a split.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        On its device. Its mode is left as it was.
    task : Task
        That of the split.
    split : Split
    batch_size : int
        Rows at a time.

    Returns
    -------
    Scores
        With one value for each question or row.

    Raises
    ------
    TaskError
        The model gave what is not finite.

    Examples
    --------
    >>> import transformers
    >>> from hankelred_llm.experiments.evaluate import evaluate
    >>> from hankelred_llm.tasks import get_task
    >>> model = transformers.MistralForCausalLM(transformers.MistralConfig(
    ...     vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1, pad_token_id=258))
    >>> task = get_task("parity")
    >>> 0.0 <= evaluate(model, task, task.validation(16, size=8)).means["accuracy"] <= 1.0
    True
    """
    return task.score(split, predict(model, task, split, batch_size=batch_size))


def predict(model: nn.Module, task: Task, split: Split, *, batch_size: int = 32) -> list[Any]:
    """Return the predictions that `Task.score` takes, one per row; rows are distributed over processes.

    Parameters
    ----------
    model, task, split, batch_size
        As in :func:`evaluate`.

    Returns
    -------
    list

    Examples
    --------
    >>> import transformers
    >>> from hankelred_llm.experiments.evaluate import predict
    >>> from hankelred_llm.tasks import get_task
    >>> model = transformers.MistralForCausalLM(transformers.MistralConfig(
    ...     vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1, pad_token_id=258))
    >>> task = get_task("key_retrieval")
    >>> [ids.shape for ids in predict(model, task, task.validation(8, size=2))]
    [(1,), (1,)]
    """
    predict_rows = {
        "tokens": _tokens,
        "bits": _bits,
        "options": _options,
        "choices": _choices,
        "text": _text,
    }[task.prediction_kind]
    process = this_process()
    # consecutive rows have similar lengths, so interleaving gives processes similar work
    own_rows = range(process.process_index, len(split), process.num_processes)
    training = model.training
    model.eval()
    predictions: list[tuple[int, Any]] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(own_rows), batch_size):
                rows = [split[i] for i in own_rows[start : start + batch_size]]
                predictions += zip(
                    own_rows[start : start + batch_size], predict_rows(model, task, split, rows), strict=True
                )
    finally:
        model.train(training)
    if process.num_processes > 1:
        predictions = gather_object(predictions)
    return [prediction for _, prediction in sorted(predictions, key=lambda pair: pair[0])]


def text_losses(
    model: nn.Module, text: str, tokenizer: Tokenizer, *, length: int = TEXT_LENGTH
) -> FloatArray:
    """Return the mean loss of the next token on rows of a text, in nats; its increase measures forgetting.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        On its device. Its mode is left as it was.
    text : str
    tokenizer : Tokenizer
        Of the model.
    length : int
        Tokens of a row.

    Returns
    -------
    ndarray, shape (rows,)
        Of eight rows at equal distances, which overlap where the text is short.

    Raises
    ------
    TaskError
        The text is shorter than a row, or a loss is not finite.

    Examples
    --------
    >>> import transformers
    >>> from hankelred_llm.experiments.evaluate import text_losses
    >>> from hankelred_llm.tasks import ByteTokenizer
    >>> model = transformers.MistralForCausalLM(transformers.MistralConfig(
    ...     vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1, pad_token_id=258))
    >>> text_losses(model, 100 * "a sentence. ", ByteTokenizer(), length=64).shape
    (8,)
    """
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.long, device=_device(model))
    if len(ids) < length:
        raise TaskError(
            f"the text has {len(ids)} tokens, and forgetting is measured on rows of {length}; give a longer "
            "one"
        )
    losses, training = [], model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in np.linspace(0, len(ids) - length, TEXT_ROWS).astype(int):
                row = ids[None, start : start + length]
                logits = model(input_ids=row, use_cache=False).logits[0, :-1]
                losses.append(_likelihood(logits, row[0, 1:]) / (1 - length))
    finally:
        model.train(training)
    invalid = [loss for loss in losses if not np.isfinite(loss)]
    if invalid:
        raise TaskError(f"the loss on the text is {invalid[0]:g}, which is not finite; the training diverged")
    return np.array(losses)


def position_losses(model: nn.Module, task: Task, split: Split, *, batch_size: int = 4) -> FloatArray:
    r"""Return the loss of every scored token by its position in the row, in nats.

    Parameters
    ----------
    model, task, split
        As in :func:`evaluate`, with rows of one length, as those of the task ``text_lm`` are.
    batch_size : int
        Rows at a time.

    Returns
    -------
    ndarray, shape (rows, length)
        Entry t is the loss of token t given those before it; nan where it is not scored, as at t = 0.

    Raises
    ------
    TaskError
        Rows differ in length, or a loss is not finite.

    Examples
    --------
    >>> import numpy as np, tempfile, transformers
    >>> from pathlib import Path
    >>> from hankelred_llm.experiments.evaluate import position_losses
    >>> from hankelred_llm.tasks import get_task
    >>> model = transformers.MistralForCausalLM(transformers.MistralConfig(
    ...     vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1, pad_token_id=258))
    >>> file = Path(tempfile.mkdtemp()) / "story.txt"
    >>> _ = file.write_text("Once upon a time there was a model.\n\n" * 30)
    >>> task = get_task("text_lm", text=file)
    >>> losses = position_losses(model, task, task.test(32, size=2))
    >>> losses.shape, int(np.isnan(losses).sum())
    ((1, 32), 1)
    """
    lengths = sorted({len(e) for e in split})
    if len(lengths) > 1:
        raise TaskError(f"rows have {lengths[0]} to {lengths[-1]} tokens; give rows of one length")
    losses = np.full((len(split), lengths[0]), np.nan)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(split), batch_size):
                rows = split[start : start + batch_size]
                logits = _logits(model, Collator(task.pad_token_id)(rows))
                for k, (row, values) in enumerate(zip(rows, logits, strict=True), start):
                    scored = torch.as_tensor(row.scored, device=values.device)
                    of_row = _losses(values[scored], row.targets).cpu().numpy()
                    if not np.isfinite(of_row).all():
                        raise TaskError(f"a loss of row {k} is not finite; the training diverged")
                    losses[k, row.scored + 1] = of_row
    finally:
        model.train(training)
    return losses


def _tokens(model: nn.Module, task: Task, split: Split, rows: Sequence[Example]) -> Iterator[Any]:
    logits = _logits(model, Collator(task.pad_token_id)(rows))
    for row, values in zip(rows, logits, strict=True):
        scored_logits = values[torch.as_tensor(row.scored, device=values.device)]
        # logits that are not finite are no prediction, and must not be correct by chance
        yield np.where(
            torch.isfinite(scored_logits).all(-1).cpu().numpy(),
            scored_logits.argmax(-1).cpu().numpy().astype(float),
            np.nan,
        )


def _bits(model: nn.Module, task: Task, split: Split, rows: Sequence[Example]) -> Iterator[Any]:
    logits = _logits(model, Collator(task.pad_token_id)(rows))
    for row, values in zip(rows, logits, strict=True):
        scored_logits = values[torch.as_tensor(row.scored, device=values.device)]
        yield -_likelihood(scored_logits, row.targets)


def _options(model: nn.Module, task: Task, split: Split, rows: Sequence[Example]) -> Iterator[Any]:
    """Return the likelihood of every candidate after the prompt."""
    yield from _candidates(
        model, task, rows, [(Choice(row.prompt_length, row.candidates, row.answer),) for row in rows]
    )


def _choices(model: nn.Module, task: Task, split: Split, rows: Sequence[Example]) -> Iterator[Any]:
    """Return the likelihood of every candidate of every question of a row."""
    yield from _candidates(model, task, rows, [row.choices for row in rows])


def _candidates(
    model: nn.Module, task: Task, rows: Sequence[Example], choices: Sequence[Sequence[Choice]]
) -> Iterator[Any]:
    """Yield, for each row, the likelihoods of the candidates of its questions, one after the other.

    The row as it is takes one forward pass for all its questions, and candidates of single tokens need no
    more. The beginnings of longer candidates take a pass each, shared by the candidates that begin alike.
    """
    inputs: dict[tuple[int, int, bytes], Example] = {}
    needed = []
    for i, (row, questions) in enumerate(zip(rows, choices, strict=True)):
        whole = row.input_ids[: questions[-1].position]
        for question in questions:
            position = question.position
            for candidate in question.candidates:
                begun = candidate[:-1]
                if np.array_equal(whole[position : position + len(begun)], begun):
                    key, ids = (i, 0, b""), whole
                else:
                    key, ids = (i, position, begun.tobytes()), np.concatenate([whole[:position], begun])
                inputs.setdefault(key, Example(ids, ids, len(ids), row.unit, row.document))
                needed.append((key, position, candidate))
    keys = list(inputs)
    logits_by_input: dict[tuple[int, int, bytes], Tensor] = {}
    for start in range(0, len(keys), len(rows)):
        batch_keys = keys[start : start + len(rows)]
        logits = _logits(model, Collator(task.pad_token_id)([inputs[k] for k in batch_keys]))
        logits_by_input.update(zip(batch_keys, logits, strict=True))
    values: list[list[float]] = [[] for _ in rows]
    for key, position, candidate in needed:
        logits = logits_by_input[key][position - 1 : position - 1 + len(candidate)]
        values[key[0]].append(_likelihood(logits, candidate))
    yield from map(np.array, values)


def _text(model: nn.Module, task: Task, split: Split, rows: Sequence[Example]) -> Iterator[Any]:
    batch = Collator(task.pad_token_id, prompts=True)(rows)
    batch = {name: value.to(_device(model)) for name, value in batch.items()}
    tokenizer = task.tokenizer  # type: ignore[attr-defined]
    written = model.generate(  # type: ignore[operator]
        **batch,
        max_new_tokens=split.max_new_tokens,
        do_sample=False,
        pad_token_id=task.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for ids in written[:, batch["input_ids"].shape[1] :]:
        yield tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    device = _device(model)
    logits: Tensor = model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=batch["attention_mask"].to(device),
        use_cache=False,
    ).logits
    return logits


def _likelihood(logits: Tensor, targets: Any) -> float:
    """Return the log-likelihood of tokens, in nats."""
    return -float(_losses(logits, targets).sum())


def _losses(logits: Tensor, targets: Any) -> Tensor:
    ids = torch.as_tensor(targets, device=logits.device)
    return nn.functional.cross_entropy(logits.float(), ids, reduction="none")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
