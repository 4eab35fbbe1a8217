"""The interface of tasks: listing, splits and their lock, labels, batches, scores; and the byte tasks."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import data_file
from helpers.models import one_layer_llama
from hypothesis import given, settings
from hypothesis import strategies as st

import hankelred
from hankelred_llm import tasks
from hankelred_llm.tasks import ByteTokenizer, Collator, SplitReadError, TaskDataError, TaskError, get_task
from hankelred_llm.tasks.byte_task import ranges

SYNTHETIC = (
    "associative_recall",
    "flip_flop",
    "key_retrieval",
    "lag_copy",
    "majority",
    "modular_sum",
    "parity",
    "prefix_dfa",
    "s3_words",
)
NATURAL = ("counting", "last_written", "multikey_needle", "variable_tracking", "where_is", "who_has")
OTHERS = ("byte_lm", "chorales", "fairytaleqa", "narrativeqa", "qmsum", "quality", "squality", "text_lm")


def test_what_there_is():
    listed = tasks.list_tasks()
    assert list(listed) == sorted(SYNTHETIC + NATURAL + OTHERS)
    for name in listed:
        task = tasks._task_class(name)
        assert task.name == name
        for value in (task.summary, task.source, task.license, task.metric):
            assert value
        assert listed[name] == task.summary


def test_nothing_heavy_is_imported():
    code = """
import sys, hankelred_llm
print([m for m in ("hankelred_llm.tasks", "datasets", "rouge_score") if m in sys.modules])
import hankelred_llm.tasks as t
t.list_tasks(), t.get_task("parity").train(8)[0]
print([m for m in ("datasets", "rouge_score", "nltk", "pandas") if m in sys.modules])
"""
    root = Path(tasks.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("parrity", {}, "did you mean 'parity'"),
        ("_task", {}, "there is no task"),
        ("parity", {"sed": 1}, "no option 'sed'; it has: seed"),
        ("byte_lm", {}, "needs the option 'path'"),
        ("parity", {"seed": -1}, "seed is -1"),
        ("modular_sum", {"modulus": 11}, "at most 10"),
        ("quality", {"by": "guess"}, "by is 'guess'"),
        ("text_lm", {}, "needs the option 'text'"),
        ("byte_lm", {"path": "x", "document_break": "("}, "no regular expression"),
    ],
)
def test_requests_that_make_no_sense(name, options, message):
    with pytest.raises(TaskError, match=message) as caught:
        get_task(name, **options)
    assert isinstance(caught.value, hankelred.HankelredError)


@pytest.mark.parametrize("length, size", [(0, None), (8, 0), (2.5, None), (True, None), (8, "all")])
def test_lengths_and_sizes_are_whole_numbers(length, size):
    with pytest.raises(TaskError, match="give a whole number"):
        get_task("parity").train(length, size=size)


def test_the_test_split_is_read_once_and_closes_the_others():
    task = get_task("parity")
    train = task.train(16)
    validation = task.validation(16)
    short, long = task.test(16), task.test(64)
    assert task.test_reads == (16, 64)
    with pytest.raises(SplitReadError, match="read at length 16 before"):
        task.test(16)
    with pytest.raises(SplitReadError, match="train split"):
        task.train(16)
    with pytest.raises(SplitReadError, match="validation split"):
        task.validation(32)
    # what was made before stays, and so do floors
    assert len(train[0]) == len(validation[0]) == len(short[0]) == 17
    assert len(long[0]) == 65
    assert task.baselines(short)["chance"] == {"accuracy": 0.5}
    assert get_task("parity").test_reads == ()


def test_a_refused_test_split_does_not_count_as_read():
    task = get_task("lag_copy")
    with pytest.raises(TaskError):
        task.test(4)
    assert task.test_reads == ()
    task.train(16)


def test_a_task_is_one_class_with_one_method():
    from hankelred_llm.tasks.synthetic_task import SyntheticTask, after_each, codes

    class Echo(SyntheticTask):
        """The symbol itself."""

        name = "echo"
        summary = "the symbol itself"
        answers = "ab"

        def draw(self, rng, size, length):
            letters = codes("ab")[rng.integers(0, 2, (size, length))]
            return after_each(letters, letters)

    task = Echo()
    split = task.test(32)
    assert task.baselines(split)["last_symbol"] == {"accuracy": 1.0}
    assert task.score(split, [e.targets for e in split]).means == {"accuracy": 1.0}


@pytest.fixture(scope="module")
def model():
    return one_layer_llama(ByteTokenizer.vocab_size)


def test_labels_are_what_transformers_shifts(model):
    """A model's own loss on a padded batch is the mean over `asked` and `targets` of single rows."""
    task = get_task("majority")  # ties are not asked, so that rows differ in what is scored
    rows = task.train(9)[:3] + task.validation(14)[:2]
    batch = Collator(task.pad_token_id)(rows)
    losses = []
    with torch.no_grad():
        for e in rows:
            logits = model(torch.as_tensor(e.input_ids)[None]).logits[0]
            losses.append(torch.log_softmax(logits, -1)[e.scored, e.targets])
        loss = model(**batch).loss
    assert torch.allclose(loss, -torch.cat(losses).mean(), atol=1e-5)
    assert batch["attention_mask"].sum(1).tolist() == [10] * 3 + [15] * 2
    assert (batch["labels"][:3, 10:] == -100).all()
    assert (batch["input_ids"][:3, 10:] == 258).all()


def test_prompts_are_padded_on_the_left(tmp_path):
    write_text(tmp_path / "t.txt", [b"one\n", b"two\n", b"three\n"])
    (long,) = get_task("byte_lm", path=tmp_path / "t.txt").test(100)
    (short,) = get_task("byte_lm", path=tmp_path / "t.txt").test(3, size=1)
    batch = Collator(258, prompts=True)([long, short])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][1].tolist() == [258] * (len(long) - 4) + [256, *b"\nth"]
    assert batch["attention_mask"][1].tolist() == [0] * (len(long) - 4) + [1] * 4


def test_rows_weigh_by_what_they_are_asked():
    task = get_task("majority")
    split = task.validation(9, size=20)
    right = [np.where(np.arange(e.targets.size) == 0, 0, e.targets) for e in split]  # the first one wrong
    scores = task.score(split, right)
    counts = np.array([e.targets.size for e in split])
    assert np.unique(counts).size > 1
    assert scores.means["accuracy"] == pytest.approx(1 - 20 / counts.sum())
    assert scores.per_unit["accuracy"] == pytest.approx(1 - 1 / counts)
    assert scores.units == tuple(e.unit for e in split)
    assert len(scores.documents) == 20


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[:-1], "3 predictions for 4 rows"),
        (lambda p: [p[0][:-1], *p[1:]], "row 0 has 7 values, expected 8"),
        (lambda p: [*p[:3], p[3] * np.nan], "row 3 is not finite"),
        (lambda p: [*p[:3], ["a"] * 8], "row 3 is no array of numbers"),
    ],
)
def test_predictions_that_do_not_fit(change, message):
    task = get_task("parity")
    split = task.validation(8, size=4)
    with pytest.raises(TaskError, match=message):
        task.score(split, change([e.targets.astype(float) for e in split]))


def test_a_split_says_what_it_is():
    split = get_task("parity").validation(12, size=5)
    assert split.describe() == {
        "split": "validation",
        "examples": 5,
        "documents": 5,
        "documents_dropped": 0,
        "length": 12,
        "context_mean": 13.0,
        "context_max": 13,
        "cut_mean": 0.0,
        "cut_share": 0.0,
        "evidence_share": None,
        "evidence_none": None,
    }
    assert split.positions == 13
    assert len(split[1:4]) == 3
    assert np.array_equal(split[-1].input_ids, list(split)[4].input_ids)
    with pytest.raises(IndexError):
        split[5]
    copy = pickle.loads(pickle.dumps(split))  # for the workers of a data loader
    assert np.array_equal(copy[2].labels, split[2].labels)


def test_errors_survive_a_process_border():
    error = pickle.loads(pickle.dumps(TaskDataError("f.jsonl", 3, "is bad", "mend it")))
    assert str(error) == "f.jsonl, line 3: is bad; mend it"
    assert (error.file, error.line) == ("f.jsonl", 3)


@given(st.text())
def test_bytes_there_and_back(text):
    text = text.encode("utf-8", "ignore").decode("utf-8")
    tokens = ByteTokenizer()
    ids = tokens.encode(text, add_special_tokens=True)
    assert ids[0] == 256 and max([0, *ids[1:]]) < 256
    assert tokens.decode([*ids, 257, 258]) == text


# --- byte tasks


def write_text(path, pieces):
    path.write_bytes(b"\n".join(pieces))


@pytest.fixture
def text_file(tmp_path):
    rng = np.random.default_rng(1)
    pieces = [bytes(rng.integers(97, 123, rng.integers(5, 60)).astype(np.uint8)) + b"\n" for _ in range(200)]
    write_text(tmp_path / "text.txt", pieces)
    return tmp_path / "text.txt", pieces


def test_ranges_of_a_file_share_nothing(text_file):
    path, pieces = text_file
    streams = get_task("byte_lm", path=path).streams()
    parts = [streams[name][0][1] for name in ("train", "validation", "test")]
    assert b"".join(parts) == path.read_bytes()
    inside = [{p for p in pieces if p in part} for part in parts]
    assert sum(map(len, inside)) == len(set(pieces))  # every document is whole, and in one part only
    assert not (inside[0] & inside[1] or inside[1] & inside[2] or inside[0] & inside[2])
    size = len(path.read_bytes())
    assert len(parts[0]) / size == pytest.approx(0.9, abs=0.02)
    assert len(parts[2]) / size == pytest.approx(0.05, abs=0.02)


@given(st.lists(st.integers(1, 50), min_size=3, max_size=40), st.floats(0.01, 0.3))
def test_no_range_is_empty(lengths, held_out):
    pieces = [bytes([i]) * n for i, n in enumerate(lengths)]
    parts = ranges(pieces, held_out)
    assert all(parts) and b"".join(parts) == b"".join(pieces)


def test_every_held_out_byte_is_scored_once(text_file):
    task = get_task("byte_lm", path=text_file[0])
    stream = task.streams()["validation"][0][1]
    split = task.validation(37)
    assert b"".join(bytes(e.targets.tolist()) for e in split) == stream
    for e in split:
        assert e.input_ids[0] == 256 and len(e.scored) == len(e) - 1
        assert np.array_equal(e.input_ids[1:], e.targets)
    assert split.positions == 38


def test_training_windows_lie_anywhere_in_the_training_range(text_file):
    task = get_task("byte_lm", path=text_file[0])
    stream = task.streams()["train"][0][1]
    split = task.train(32, size=3000)
    starts = [stream.index(bytes(e.targets.tolist())) for e in split]
    assert min(starts) < 40 and max(starts) > len(stream) - 72
    assert np.mean(starts) == pytest.approx(len(stream) / 2, rel=0.05)
    again, other = task.train(32, size=3000), task.train(32, size=3000, seed=1)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(split, again, strict=True))
    assert sum(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(split, other, strict=True)) < 100


def test_bits_per_byte(text_file):
    task = get_task("byte_lm", path=text_file[0])
    split = task.test(50)
    # a model that gives every byte 2^-8 has 8 bits, whatever the length of the last window
    uniform = task.score(split, [np.log(256) * e.targets.size for e in split])
    assert uniform.means["bits_per_byte"] == pytest.approx(8)
    # bits of the whole are the sum over windows, not the mean of window means
    nats = np.arange(1.0, len(split) + 1)
    total = nats.sum() / np.log(2) / sum(e.targets.size for e in split)
    assert task.score(split, nats).means["bits_per_byte"] == pytest.approx(total)
    assert not task.higher_is_better


def test_byte_floors_are_the_entropies_of_counts(text_file):
    task = get_task("byte_lm", path=text_file[0])
    train, test = task.streams()["train"][0][1], task.streams()["test"][0][1]
    baselines = task.baselines(task.test(10**6))
    pairs, firsts = Counter(pairwise(train)), Counter(train[:-1])
    after = [np.log2((firsts[a] + 256) / (pairs[a, b] + 1)) for a, b in pairwise(test)]
    seconds = Counter(train[1:])
    alone = [np.log2((len(train) - 1 + 256**2) / (seconds[b] + 256)) for b in test]
    assert baselines["chance"] == {"bits_per_byte": 8.0}
    assert baselines["constant"]["bits_per_byte"] == pytest.approx(np.mean(alone))
    assert baselines["previous_byte"]["bits_per_byte"] == pytest.approx((alone[0] + sum(after)) / len(test))


def test_files_that_hold_no_three_documents(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("no blank line")
    with pytest.raises(TaskDataError, match=r"one\.txt: has 1 documents.*document_break"):
        get_task("byte_lm", path=path).train(4)
    with pytest.raises(TaskDataError, match=r"none\.txt: cannot be read"):
        get_task("byte_lm", path=tmp_path / "none.txt").train(4)


def chorale_file(path, **parts):
    path.write_text(json.dumps(parts))
    return path


def piece(base, steps=8):
    return [[base + t, base - 1, base - 2, base - 3] for t in range(steps)]


def test_chorales_are_split_by_piece(tmp_path):
    path = chorale_file(
        tmp_path / "c.json",
        train=[piece(30 + i) for i in range(16)],
        valid=[piece(60), [[60.0, 50], [], [60]]],
    )
    task = get_task("chorales", path=path)
    streams = task.streams()
    assert [key for key, _ in streams["validation"]] == ["train 7", "train 15"]
    assert len(streams["train"]) == 14
    assert streams["test"][1] == ("valid 1", bytes([60, 50, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0]))
    split = task.test(20)
    assert [len(e) - 1 for e in split] == [20, 12, 12]  # a window ends with its piece
    assert {e.document for e in split} == {"valid 0", "valid 1"}
    assert task.baselines(split)["chance"] == {"bits_per_byte": 8.0}
    for e in get_task("chorales", path=path).train(20, size=50):
        text = bytes(e.targets.tolist())
        assert any(text in data for _, data in streams["train"])


def test_a_test_part_is_used_where_there_is_one(tmp_path):
    path = chorale_file(tmp_path / "c.json", train=[piece(40)] * 2, valid=[piece(50)], test=[piece(60)])
    streams = get_task("chorales", path=path).streams()
    assert {name: len(s) for name, s in streams.items()} == {"train": 2, "validation": 1, "test": 1}
    assert streams["test"][0][1][0] == 60


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "line 1: no JSON"),
        ("[]", "has no list 'train'"),
        ('{"train": [[[60]]]}', "has no list 'valid'"),
        ('{"train": [[[60, 300]]], "valid": [[[60]]]}', r"train\[0\]\[0\] is \[60, 300\]"),
        ('{"train": [[[60], [1, 2, 3, 4, 5]]], "valid": [[[60]]]}', r"train\[0\]\[1\]"),
        ('{"train": [[[60], ["x"]]], "valid": [[[60]]]}', r"train\[0\]\[1\]"),
        ('{"train": [[[NaN]]], "valid": [[[60]]]}', r"train\[0\]\[0\] is \[nan\]"),
    ],
)
def test_chorales_that_do_not_parse(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(TaskDataError, match=message) as caught:
        get_task("chorales", path=tmp_path / "c.json").train(4)
    assert "c.json" in str(caught.value) and "; give" in str(caught.value)


@pytest.mark.parametrize(
    "name, file, options, previous",
    [
        ("byte_lm", "tinyshakespeare.txt", {}, 3.61),
        ("byte_lm", "wikitext2_valid.txt", {"document_break": r"(?m)^ = [^=]"}, 3.39),
        ("chorales", "jsb_chorales_16th.json", {}, 3.58),
    ],
)
def test_floors_of_real_data(name, file, options, previous):
    task = get_task(name, path=data_file(f"text/{file}"), **options)
    split = task.test(1024)
    baselines = {k: v["bits_per_byte"] for k, v in task.baselines(split).items()}
    assert baselines["previous_byte"] == pytest.approx(previous, abs=0.02)
    assert baselines["previous_byte"] < baselines["constant"] < baselines["chance"]


@settings(max_examples=20)
@given(st.integers(1, 400), st.integers(1, 60))
def test_parts_of_held_out_windows_are_spread(length, size):
    """Taking fewer windows takes them from the whole range, each once."""
    from hankelred_llm.tasks.language_modeling.byte_lm import ByteLM

    class Held(ByteLM):
        def streams(self):
            return {name: [(name, bytes(range(256)) * 8)] for name in ("train", "validation", "test")}

    split = Held(path="unused").validation(length, size=size)
    units = [int(e.unit.split()[-1]) for e in split]
    assert len(split) == min(size, -(-2048 // length))
    assert units == sorted(set(units))
    assert units[-1] + (2048 // size + 1) + length >= 2048
