"""Language modeling of long texts: windows, splits, scores, and losses by position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.models import one_layer_llama

from hankelred_llm.experiments.evaluate import position_losses, predict
from hankelred_llm.tasks import ByteTokenizer, TaskDataError, TaskError, get_task


@pytest.fixture
def folder(tmp_path):
    """Documents of 300 to 700 different letters, and one that is shorter than the rows below."""
    rng = np.random.default_rng(5)
    for k in range(12):
        letters = rng.integers(97, 123, rng.integers(300, 700)).astype(np.uint8)
        (tmp_path / f"{k}.txt").write_bytes(bytes(letters))
    (tmp_path / "short.txt").write_text("a few words")
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return one_layer_llama(ByteTokenizer.vocab_size)


def texts_of(folder, split):
    return {(folder / e.document).read_bytes() for e in split}


def test_rows_are_whole_windows_of_one_document_and_splits_share_none(folder):
    task = get_task("text_lm", text=folder)
    splits = task.train(100, size=400), task.validation(100), task.test(100)
    for split in splits:
        for e in split:
            assert len(e) == 100 and e.labels[0] == -100
            assert np.array_equal(e.labels[1:], e.input_ids[1:])
            assert bytes(e.input_ids.tolist()) in (folder / e.document).read_bytes()
    train, validation, test = (texts_of(folder, split) for split in splits)
    assert not (train & validation or validation & test or train & test)
    assert len(train) + len(validation) + len(test) == 12
    # held out windows follow each other; training ones lie anywhere
    for text in test:
        rows = [bytes(e.input_ids.tolist()) for e in splits[2] if (folder / e.document).read_bytes() == text]
        assert rows == [text[k : k + 100] for k in range(0, len(text) - 99, 100)]
    assert len({e.unit for e in splits[0]}) > 200


def test_a_file_is_cut_into_three_ranges(tmp_path):
    paragraphs = [f"{k} " + 20 * "word " + "\n\n" for k in range(200)]
    (tmp_path / "one.txt").write_text("".join(paragraphs))
    task = get_task("text_lm", text=tmp_path / "one.txt")
    parts = [
        {number for e in split for number in bytes(e.input_ids.tolist()).decode().split() if number.isdigit()}
        for split in (task.validation(150), task.test(150))
    ]
    assert all(parts) and min(map(int, parts[1])) > min(map(int, parts[0])) > 150


def test_another_tokenizer(folder):
    class Letters(ByteTokenizer):
        """Pairs of letters."""

        def encode(self, text, *, add_special_tokens=False):
            return [26 * (ord(a) - 97) + ord(b) - 97 for a, b in zip(text[::2], text[1::2], strict=False)]

    (folder / "short.txt").unlink()
    test = get_task("text_lm", text=folder, tokenizer=Letters()).test(60)
    text = (folder / test[0].document).read_text()
    assert test[0].input_ids.tolist() == Letters().encode(text)[:60]


def test_bits_a_token_and_the_frequencies_of_training(folder):
    task = get_task("text_lm", text=folder)
    test = task.test(100, size=3)
    assert len(test) == 3
    even = task.score(test, [99 * np.log(26)] * 3)
    assert even.means == {"bits_per_token": pytest.approx(np.log2(26))}
    assert not task.higher_is_better
    rest = {p.read_bytes() for p in folder.glob("*.txt")} - texts_of(
        folder, get_task("text_lm", text=folder).test(100)
    )
    held_out = get_task("text_lm", text=folder).validation(100)
    counts = Counter(b"".join(rest - texts_of(folder, held_out)))
    targets = [int(i) for e in test for i in e.targets]
    counts.update(set(targets))
    total = sum(counts.values())
    # the short document is in training or not: it has no row, but its letters count where it is
    by_hand = np.mean([-np.log2(counts[i] / total) for i in targets])
    assert task.baselines(test)["constant"]["bits_per_token"] == pytest.approx(by_hand, abs=0.02)


def test_losses_by_position_are_those_of_transformers(model, folder):
    task = get_task("text_lm", text=folder)
    split = task.test(64, size=5)
    losses = position_losses(model, task, split, batch_size=2)
    assert losses.shape == (5, 64) and np.isnan(losses[:, 0]).all()
    for e, of_row, whole in zip(split, losses, predict(model, task, split), strict=True):
        ids = torch.as_tensor(e.input_ids)[None]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
            assert np.nanmean(of_row) == pytest.approx(float(loss), rel=1e-5)
            # the last token alone, from a model that is given nothing after it
            last = torch.log_softmax(model(input_ids=ids[:, :-1]).logits[0, -1], -1)[e.input_ids[-1]]
        assert of_row[-1] == pytest.approx(-float(last), rel=1e-4)
        assert np.nansum(of_row) == pytest.approx(whole, rel=1e-5)


def test_a_loss_that_is_not_finite_is_named(folder):
    broken = one_layer_llama(ByteTokenizer.vocab_size)
    with torch.no_grad():
        broken.lm_head.weight[ord("q")] = torch.nan
    task = get_task("text_lm", text=folder)
    training = broken.training
    with pytest.raises(TaskError, match="a loss of row 0 is not finite"):
        position_losses(broken, task, task.test(64, size=2))
    assert broken.training == training


def test_requests_that_make_no_sense(folder, model):
    task = get_task("text_lm", text=folder)
    with pytest.raises(TaskError, match="length 1 is too short"):
        task.train(1)
    with pytest.raises(TaskDataError, match="no document of 701 tokens in the train split; the longest has"):
        task.train(701)
    with pytest.raises(TaskDataError, match=r"is not there|cannot be read"):
        get_task("text_lm", text=folder / "none").train(8)
    few = folder / "few"
    few.mkdir()
    (few / "a.txt").write_text(300 * "a ")
    with pytest.raises(TaskDataError, match=r"has 1 \.txt files"):
        get_task("text_lm", text=few).train(8)
    (folder / "latin.txt").write_bytes(b"caf\xe9\n\n" * 20)
    with pytest.raises(TaskDataError, match="UTF-8"):
        get_task("text_lm", text=folder / "latin.txt").train(8)
    words = get_task("byte_lm", path=folder / "0.txt", document_break="a")
    with pytest.raises(TaskError, match="give rows of one length"):
        position_losses(model, words, words.train(10, size=2)[:1] + words.train(12, size=2)[:1])
