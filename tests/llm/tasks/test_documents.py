"""Tasks of texts: splits by document, the cut, evidence, prompts, metrics, floors, bad files, the hub."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
from helpers.data import data_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hankelred_llm.tasks import ByteTokenizer, TaskDataError, TaskError, get_task
from hankelred_llm.tasks.document_task import Document, Question, three_splits, without_shared_documents
from hankelred_llm.tasks.documents.quality import first_letter
from hankelred_llm.tasks.longbench_prompts import ANSWER_LENGTHS, PROMPTS
from hankelred_llm.tasks.metrics import answer_scores, rouge_scores, word_f1


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def meeting(i, turns=30):
    return {
        "meeting_transcripts": [{"speaker": f"S{t % 3}", "content": f"m{i} t{t} ok"} for t in range(turns)],
        "general_query_list": [{"query": "Summarize", "answer": f"meeting number {i} was held"}],
        "specific_query_list": [
            {
                "query": f"What of {i}?",
                "answer": f"thing {i} was said",
                "relevant_text_span": [["2", "4"], ["20", "20"]],
            }
        ],
    }


def tale(i, sections=6):
    return {
        "name": f"tale {i}",
        "sections": [f"section {s} of tale {i}." for s in range(1, sections + 1)],
        "questions": [{"question": f"Who {i}?", "answers": [f"fox {i}", f"the fox {i}"], "sections": [1, 6]}],
    }


def story(i):
    responses = [{"response_text": f"answer {k} on story {i}"} for k in range(4)]
    questions = [{"question_text": f"Question {q}?", "responses": responses} for q in range(5)]
    return {"metadata": {"passage_id": str(i)}, "document": f"Story {i} is long.", "questions": questions}


def exam(i, answers="ABCD"):
    options = ["\n (A) red", "\n (B) green", "\n (C) deep blue", f"\n (D) grey {i}"]
    texts = ["red", "green", "deep blue", f"grey {i}"]
    return {
        "instructions": [f"Which colour {k}?\n{''.join(options)}" for k in range(len(answers))],
        "outputs": [f"({a}) {texts['ABCD'.index(a)]}" for a in answers],
        "input": f"Story {i} about colours.",
    }


def book(i, q):
    return {
        "document": {"id": f"b{i}", "text": f"Book {i} tells a lot."},
        "question": {"text": f"What {q}?"},
        "answers": [{"text": f"answer {i} {q}"}, {"text": "another"}],
    }


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "qmsum/train.jsonl", [meeting(i) for i in range(16)])
    write_jsonl(tmp_path / "qmsum/val.jsonl", [meeting(i) for i in range(100, 104)])
    write_jsonl(tmp_path / "fairytaleqa/train.jsonl", [tale(i) for i in range(16)])
    write_jsonl(tmp_path / "fairytaleqa/val.jsonl", [tale(i) for i in range(100, 104)])
    write_jsonl(tmp_path / "squality/train.jsonl", [story(i) for i in range(16)])
    write_jsonl(tmp_path / "squality/dev.jsonl", [story(i) for i in range(100, 104)])
    write_jsonl(tmp_path / "quality/quality.jsonl", [exam(i) for i in range(6)])
    write_jsonl(tmp_path / "narrativeqa/train.jsonl", [book(i, q) for q in range(3) for i in range(8)])
    write_jsonl(
        tmp_path / "narrativeqa/validation.jsonl", [book(i, q) for q in range(3) for i in range(8, 10)]
    )
    write_jsonl(tmp_path / "narrativeqa/test.jsonl", [book(i, q) for q in range(3) for i in range(10, 13)])
    return tmp_path


NAMES = ("fairytaleqa", "narrativeqa", "qmsum", "quality", "squality")


def read(task, ids):
    return task.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_document(folder, name):
    task = get_task(name, data_dir=folder)
    splits = task.train(900), task.validation(900), task.test(900)
    documents = [{e.document for e in s} for s in splits]
    assert all(documents)
    assert not (documents[0] & documents[1] or documents[1] & documents[2] or documents[0] & documents[2])
    # every question of a document stands with it
    for split in splits:
        for document in task.documents()[split.name]:
            units = {e.unit for e in split if e.document == document.key}
            assert len(units) == len(document.questions)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_prompt_and_the_answer(folder, name):
    task = get_task(name, data_dir=folder)
    questions = {q.text: q for d in task.documents()["validation"] for q in d.questions}
    texts = {d.key: d.text for d in task.documents()["validation"]}
    before, between = task.prompt.split("{context}")
    for e in task.validation(2000):
        prompt = read(task, e.prompt_ids)
        assert e.cut == 0 and e.evidence in (None, 1.0)
        assert prompt.startswith(before + texts[e.document] + between.split("{input}")[0])
        assert e.input_ids[0] == 256 and (e.labels[: e.prompt_length] == -100).all()
        assert np.array_equal(e.labels[e.prompt_length :], e.input_ids[e.prompt_length :])
        assert e.input_ids[-1] == 257
        if name != "quality":
            question = next(q for q in questions if q in prompt.split(texts[e.document])[1])
            assert prompt.endswith("Answer:")
            assert read(task, e.input_ids[e.prompt_length :]) == " " + e.references[0]
            assert e.references[0].split()[0] == questions[question].answers[0].split()[0]


def test_order_comes_from_the_seed_and_passes_are_whole(folder):
    task = get_task("squality", data_dir=folder)
    once = task.train(500)
    n = len(once)
    assert [e.unit for e in once] == [e.unit for e in task.train(500)]
    assert [e.unit for e in once] != [e.unit for e in task.train(500, seed=1)]
    twice = task.train(500, size=2 * n + 3)
    units = [e.unit for e in twice]
    assert len(units) == 2 * n + 3
    assert sorted(units[:n]) == sorted(units[n : 2 * n]) == sorted(e.unit for e in once)
    assert units[:n] != units[n : 2 * n]
    part = task.validation(500, size=4)
    whole = [e.unit for e in task.validation(500)]
    assert len(part) == 4 and set(e.unit for e in part) <= set(whole)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(1, 240))
def test_the_middle_of_the_document_is_cut(words, available):
    from hankelred_llm.tasks.documents.squality import Squality

    document = "".join(chr(97 + i % 26) for i in range(words)) + "."

    class One(Squality):
        def documents(self):
            self._dropped = dict.fromkeys(("train", "validation", "test"), 0)
            asked = Question("Why so?", ("Because.",))
            return {name: [Document("d", document, (asked,))] for name in self._dropped}

    task = One()
    prompt_start, prompt_end = task.prompt.replace("{input}", "Why so?").split("{context}")
    length = 1 + len(prompt_start) + len(prompt_end) + available
    split = task.validation(length)
    (e,) = split
    prompt = read(task, e.prompt_ids)
    assert prompt.startswith(prompt_start) and prompt.endswith(prompt_end)
    text = prompt[len(prompt_start) : len(prompt) - len(prompt_end)]
    if len(document) <= available:
        assert text == document and e.cut == 0
    else:
        first, last = (available + 1) // 2, available // 2
        assert text == document[:first] + document[len(document) - last :]
        assert e.cut == len(document) - available
        assert e.prompt_length == length
    assert split.positions == max(len(e), e.prompt_length + 512)
    with pytest.raises(TaskError, match=r"too short for a document.*take up to"):
        task.validation(length - available)


def test_share_of_evidence_after_truncation(folder):
    """Counted anew: characters of the marked turns and sections that stand in the prompt."""
    task = get_task("qmsum", data_dir=folder)
    base = len(read(task, task.validation(2000)[0].prompt_ids))
    for length in (640, 560, 480, 420, 370):
        for e in task.validation(length):
            if e.references[0].startswith("meeting"):
                assert e.evidence is None
                continue
            (document,) = [d for d in task.documents()["validation"] if d.key == e.document]
            lines = document.text.split("\n")
            marked = [lines[i] for i in (2, 3, 4, 20)]
            gone = document.text[(len(document.text) - e.cut + 1) // 2 :][: e.cut]
            start = (len(document.text) - e.cut + 1) // 2
            assert document.text[start : start + e.cut] == gone
            alive = 0
            for line in marked:
                at = document.text.index(line)
                alive += sum(not start <= at + k < start + e.cut for k in range(len(line)))
            assert e.evidence == pytest.approx(alive / sum(map(len, marked)))
    assert base > 640
    summary = task.validation(370).describe()
    assert 0.3 < summary["evidence_share"] < 0.9 and summary["cut_share"] == 1
    tales = get_task("fairytaleqa", data_dir=folder)
    # both marked sections stand at the ends, which are kept
    ends = tales.validation(len(read(tales, tales.validation(2000)[0].prompt_ids)) - 20)
    assert ends.describe()["evidence_share"] == 1.0 and ends.describe()["cut_mean"] > 0


def test_documents_are_tokenized_once(folder):
    class Counting(ByteTokenizer):
        calls = 0

        def encode(self, text, *, add_special_tokens=False):
            Counting.calls += text.startswith("S0: m")
            return super().encode(text, add_special_tokens=add_special_tokens)

    task = get_task("qmsum", data_dir=folder, tokenizer=Counting())
    for split in (task.train(600), task.train(600, seed=1, size=100), task.train(400)):
        list(split)
    assert Counting.calls == len(task.documents()["train"])


def test_a_prompt_does_not_depend_on_its_answer(folder):
    """A tokenizer that merges across the border of prompt and answer must not show the answer's beginning."""

    class Merging(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=False):
            return super().encode(text.replace(": answer", "\x00"), add_special_tokens=add_special_tokens)

        def decode(self, ids, *, skip_special_tokens=True):
            return super().decode(ids).replace("\x00", ": answer")

    task = get_task("squality", data_dir=folder, tokenizer=Merging())
    for e in task.validation(900, size=3):
        assert read(task, e.prompt_ids).endswith("\nAnswer:")
        assert read(task, e.input_ids[e.prompt_length :]).startswith(" answer")


# --- splits


def documents(*keys):
    return [Document(k, f"text of {k}", (Question("q", ("a",)),)) for k in keys]


@given(st.integers(3, 60))
def test_parts_are_carved_by_document(n):
    keys = [f"d{i}" for i in range(n)]
    parts = three_splits({"train": documents(*keys)})
    names = [[d.key for d in parts[p]] for p in ("train", "validation", "test")]
    assert all(names) and sorted(k for part in names for k in part) == sorted(keys)
    assert len(names[2]) == n // 3
    # which ones does not depend on the order of the file
    again = three_splits({"train": documents(*reversed(keys))})
    assert {d.key for d in again["test"]} == set(names[2])
    held = three_splits({"train": documents(*keys), "validation": documents("x", "y")})
    assert [d.key for d in held["test"]] == ["x", "y"]
    assert len(held["validation"]) == max(1, n // 8)


def test_documents_of_later_splits_are_left_out_of_earlier_ones(folder):
    copy = Document("other name", "text   of\n c", (Question("q", ("a",)),))
    parts = {
        "train": [*documents("a", "b"), copy],
        "validation": documents("b", "d"),
        "test": documents("c", "d"),
    }
    remaining, dropped = without_shared_documents(parts)
    assert {name: [d.key for d in part] for name, part in remaining.items()} == {
        "train": ["a"],
        "validation": ["b"],
        "test": ["c", "d"],
    }
    assert dropped == {"test": 0, "validation": 1, "train": 2}
    write_jsonl(folder / "squality/dev.jsonl", [story(3), story(100)])
    split = get_task("squality", data_dir=folder).train(900)
    assert split.describe()["documents_dropped"] in (0, 1)
    assert "3" not in {e.document for e in split}


def test_too_few_documents(folder):
    write_jsonl(folder / "quality/quality.jsonl", [exam(0)])
    with pytest.raises(TaskDataError, match=r"no document is left for the \w+ split.*at least three"):
        get_task("quality", data_dir=folder).train(900)


# --- QuALITY


def shown_letters(task, e):
    """Return {letter: option text} as the prompt shows it."""
    lines = read(task, e.prompt_ids).split("Question:")[1].split("\n")
    return {line[1]: line[4:] for line in lines if line.startswith("(") and line[2:4] == ") "}


def test_options_are_cycled_four_times(folder):
    task = get_task("quality", data_dir=folder)
    split = task.validation(900)
    options = ["red", "green", "deep blue"]
    by_unit = {}
    for e in split:
        options_shown = shown_letters(task, e)
        assert read(task, e.prompt_ids).endswith("\nAnswer: (")
        letters = [read(task, c) for c in e.candidates]
        # candidate i stands for option i in every cycle
        assert [options_shown[a] for a in letters][:3] == options
        learned = read(task, e.input_ids[e.prompt_length :])
        assert learned == letters[e.answer] + ")"
        by_unit.setdefault(e.unit, []).append(letters)
    for cycles in by_unit.values():
        assert len(cycles) == 4
        assert all(sorted(column) == list("ABCD") for column in zip(*cycles, strict=True))


def test_likelihood_of_a_letter_decides_nothing_and_that_of_an_option_all(folder):
    task = get_task("quality", data_dir=folder)
    split = task.test(900)
    liking = {"A": -0.1, "B": -2.3, "C": -3.7, "D": -1.9}
    biased = [[liking[read(task, c)] for c in e.candidates] for e in split]
    assert task.score(split, biased).means == {"accuracy": 0.25}
    # one who knows, under a bias of the same size
    knowing = [
        [b + 0.2 * (i == e.answer) for i, b in enumerate(v)] for e, v in zip(split, biased, strict=True)
    ]
    scores = task.score(split, knowing)
    assert scores.means == {"accuracy": 1.0}
    assert len(scores.units) == len(split) // 4 == len(set(scores.units))
    second = [[float(i == 1) for i in range(4)] for _ in split]
    assert task.score(split, second).means == {"accuracy": 0.25}  # B is right once in four by construction
    with pytest.raises(TaskError, match="row 0 has 3 values, expected 4"):
        task.score(split, [v[:3] for v in biased])


def test_by_generation(folder):
    task = get_task("quality", data_dir=folder, by="generation")
    train = task.train(900)
    split = task.test(900)
    assert len(split) == 8 and split.max_new_tokens == 8
    assert len(train) == 3 * 4 * 4  # articles, questions, cycles
    assert all(read(task, e.input_ids[e.prompt_length :]) in (" (A)", " (B)", " (C)", " (D)") for e in train)
    right = [f" ({'ABCD'[e.answer]}) since" for e in split]
    assert task.score(split, right).means == {"accuracy": 1.0, "no_letter": 0.0}
    assert task.score(split, ["I do not know"] * 8).means == {"accuracy": 0.0, "no_letter": 1.0}
    for e in train:  # the target letter is that of the correct option
        letter = read(task, e.input_ids[e.prompt_length :])[2]
        assert shown_letters(task, e)[letter] == e.references[0]


@pytest.mark.parametrize(
    "text, letter",
    [
        (" (B) because of A", "B"),
        ("C", "C"),
        ("D.", "D"),
        ("The answer is A).", "A"),
        ("A man walked", None),
        ("", None),
        ("b", None),
        ("BAD (C)", "C"),
    ],
)
def test_letters_said(text, letter):
    assert first_letter(text) == letter


def test_floors_of_multiple_choice(folder):
    write_jsonl(folder / "quality/quality.jsonl", [exam(i, "CCCA") for i in range(6)])
    task = get_task("quality", data_dir=folder)
    baselines = task.baselines(task.test(900))
    assert baselines == {
        "chance": {"accuracy": 0.25},
        "constant": {"accuracy": 0.75},
        "longest": {"accuracy": 0.75},  # "deep blue" is (C)
    }


# --- metrics


def test_words_in_common_as_longbench_counts_them():
    assert word_f1("The cat, sat!", "a cat sat") == 1
    assert word_f1("cat cat dog", "cat bird") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert word_f1("", "cat") == word_f1("the", "a") == 0
    assert answer_scores("The fox", ("a dog", "fox")) == {"f1": 1.0, "exact_match": 1.0}
    assert answer_scores("red fox", ("a dog", "fox")) == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}


def lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@settings(max_examples=30, deadline=None)
@given(
    *[
        st.lists(st.sampled_from(["ox", "dog", "pig", "cow", "hen"]), min_size=1, max_size=12)
        for _ in range(2)
    ]
)
def test_rouge_by_its_definition(said, right):
    pytest.importorskip("rouge_score")
    scores = rouge_scores(" ".join(said), (" ".join(right),))
    assert next(iter(scores)) == "rougeL_f1"
    assert scores["rougeL_f1"] == pytest.approx(2 * lcs(said, right) / (len(said) + len(right)))
    shared = sum(min(said.count(w), right.count(w)) for w in set(said))
    assert scores["rouge1_f1"] == pytest.approx(2 * shared / (len(said) + len(right)))
    assert scores["rouge1_recall"] == pytest.approx(shared / len(right))
    best = rouge_scores(" ".join(said), (" ".join(right), " ".join(said)))
    assert best["rougeL_f1"] == best["rouge1_recall"] == pytest.approx(1)


def test_without_rouge(monkeypatch):
    from hankelred_llm.tasks import metrics as _metrics

    _metrics._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(TaskError, match=r"pip install 'hankelred\[evaluate\]'"):
        rouge_scores("a", ("b",))
    _metrics._rouge.cache_clear()


def test_floors_of_free_answers_are_scores_of_answers(folder):
    for name in ("fairytaleqa", "narrativeqa"):
        task = get_task(name, data_dir=folder)
        split = task.test(900)
        baselines = task.baselines(split)
        trained = [q.answers[0] for d in task.documents()["train"] for q in d.questions]
        values = [task.score(split, [a] * len(split)).means["f1"] for a in trained]
        assert any(baselines["constant"]["f1"] == pytest.approx(v) for v in values)
        assert set(baselines) == {"chance", "constant"} and baselines["constant"]["f1"] > 0
    with pytest.raises(TaskError, match="prediction of row 0 is of type int; give the text"):
        task.score(split, [1] * len(split))


# --- malformed files


@pytest.mark.parametrize(
    "name, file, change, message",
    [
        ("qmsum", "qmsum/train.jsonl", "{", "line 17: is no JSON"),
        ("qmsum", "qmsum/train.jsonl", {}, "line 17: has no 'meeting_transcripts'"),
        (
            "qmsum",
            "qmsum/val.jsonl",
            meeting(7, turns=5),
            "line 5: relevant_text_span ['20', '20'] is no range of the 5",
        ),
        (
            "qmsum",
            "qmsum/val.jsonl",
            {**meeting(7), "general_query_list": [{"query": " "}]},
            "'query' is blank",
        ),
        (
            "fairytaleqa",
            "fairytaleqa/val.jsonl",
            tale(7, sections=5),
            "line 5: sections [1, 6] are not among the 5",
        ),
        (
            "fairytaleqa",
            "fairytaleqa/val.jsonl",
            {**tale(7), "name": 3},
            "line 5: 'name' is 3, not of type str",
        ),
        ("squality", "squality/dev.jsonl", {**story(7), "document": ""}, "line 5: 'document' is blank"),
        ("squality", "squality/dev.jsonl", [1], "line 5: has no 'questions'"),
        (
            "quality",
            "quality/quality.jsonl",
            {**exam(7), "outputs": []},
            "line 7: has 4 instructions and 0 outputs",
        ),
        (
            "quality",
            "quality/quality.jsonl",
            {**exam(7), "outputs": ["x"] * 4},
            "line 7: question 1 has options",
        ),
        ("quality", "quality/quality.jsonl", 5, "line 7: has no 'input'"),
        (
            "narrativeqa",
            "narrativeqa/test.jsonl",
            {**book(1, 1), "answers": []},
            "line 10: 'answers' is empty",
        ),
    ],
)
def test_records_that_do_not_parse(folder, name, file, change, message):
    with (folder / file).open("a", encoding="utf-8") as stream:
        stream.write((change if isinstance(change, str) else json.dumps(change)) + "\n")
    with pytest.raises(TaskDataError) as caught:
        get_task(name, data_dir=folder).train(2000)
    assert message in str(caught.value)
    assert str(folder / file) in str(caught.value)
    assert "a record must" in str(caught.value)


def test_folders_without_the_files(tmp_path):
    with pytest.raises(
        TaskDataError, match=r"qmsum/train\.jsonl: is not there; data_dir must have qmsum/train"
    ):
        get_task("qmsum", data_dir=tmp_path).train(900)
    with pytest.raises(TaskError, match=r"read from files only; give a data_dir with squality/train\.jsonl"):
        get_task("squality").train(900)
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality/quality.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskDataError, match=r"quality\.jsonl: is no UTF-8"):
        get_task("quality", data_dir=tmp_path).train(900)


# --- the hub


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the library and the hub: rows by (name, data_files, split)."""
    calls = {}

    def load_dataset(name, *, split, **options):
        key = name, options.get("data_files", "").rsplit("/", 1)[-1], split
        if key not in calls:
            raise ConnectionError("no network")
        return calls[key]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_quality_from_the_hub(hub):
    def row(i, k):
        return {
            "article": f"Article {i}",
            "question": f"Q{k}?",
            "options": ["w", "xx", "y", "z"],
            "answer": k,
        }

    hub["emozilla/quality", "", "train"] = [row(i, k) for i in range(9) for k in range(3)]
    hub["emozilla/quality", "", "validation"] = [row(i, k) for i in range(9, 11) for k in range(2)]
    task = get_task("quality")
    train, test = task.train(900), task.test(900)
    assert len({e.document for e in train}) == 8 and len(test) == 2 * 2 * 4
    assert [e.answer for e in test][::4] == [0, 1, 0, 1]
    hub["emozilla/quality", "", "train"][4]["answer"] = -1
    with pytest.raises(
        TaskDataError, match="data set emozilla/quality, train, line 5: has 4 options and answer -1"
    ):
        get_task("quality").train(900)


def test_qmsum_and_narrativeqa_from_the_hub(hub):
    for k, part in enumerate(("train", "val", "test")):
        hub["json", f"{part}.jsonl", "train"] = [meeting(10 * k + i) for i in range(3)]
    task = get_task("qmsum")
    assert [
        len({e.document for e in s}) for s in (task.train(900), task.validation(900), task.test(900))
    ] == [3, 3, 3]
    for k, part in enumerate(("train", "validation", "test")):
        hub["deepmind/narrativeqa", "", part] = [book(10 * k + i, q) for i in range(2) for q in range(2)]
    task = get_task("narrativeqa")
    assert [len(s) for s in (task.train(900), task.validation(900), task.test(900))] == [4, 4, 4]


def test_without_network_or_library(hub, monkeypatch):
    with pytest.raises(
        TaskDataError, match=r"narrativeqa, train: cannot be loaded \(no network\).*give data_dir"
    ):
        get_task("narrativeqa").train(900)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"pip install 'hankelred\[evaluate\]'"):
        get_task("narrativeqa").train(900)


# --- published data


def shared(name):
    """Return the folder of the text data; skip, naming the file, where it is not."""
    return data_file(f"text/{name}").parent.parent


def test_prompts_are_those_of_longbench():
    prompts = json.loads(data_file("text/longbench_protocol/dataset2prompt.json").read_text())
    lengths = json.loads(data_file("text/longbench_protocol/dataset2maxlen.json").read_text())
    assert {name: prompts[name] for name in PROMPTS} == PROMPTS
    assert {name: lengths[name] for name in ANSWER_LENGTHS} == ANSWER_LENGTHS


def test_floors_of_quality():
    """All 93 questions at hand. Published, it is not said of which: majority .28, longest option .31."""
    task = get_task("quality", data_dir=shared("quality/quality.jsonl"))
    questions = [q for part in task.documents().values() for d in part for q in d.questions]
    assert len(questions) == 93
    assert np.bincount([q.right for q in questions]).tolist() == [27, 25, 18, 23]
    longest = [q.right == np.argmax([len(o) for o in q.options]) for q in questions]
    assert sum(longest) == 27
    tested = sum(len(d.questions) for d in task.documents()["test"])
    floor = task.baselines(task.test(8192))["longest"]["accuracy"]
    assert floor == pytest.approx(np.mean(longest[-tested:]))


@pytest.mark.xslow
def test_floors_of_qmsum():
    """On validation meetings, the test meetings not being there; published for the test: .128 and .389."""
    pytest.importorskip("rouge_score")
    task = get_task("qmsum", data_dir=shared("qmsum/val.jsonl"))
    baselines = task.baselines(task.validation(8192, size=8))
    split = task.test(8192, size=60)
    answers = sorted({q.answers[0] for d in task.documents()["train"] for q in d.questions}, key=len)
    long = task.score(split, [answers[int(0.99 * len(answers))]] * len(split)).means
    assert long["rougeL_f1"] == pytest.approx(0.127, abs=0.005)
    assert long["rouge1_recall"] == pytest.approx(0.413, abs=0.02)
    # recall is won by length; the floor that is reported is the constant with more F1
    assert 0.12 < baselines["constant"]["rougeL_f1"] < 0.17
    assert baselines["constant"]["rouge1_recall"] < long["rouge1_recall"]


def test_real_tales_lose_evidence_to_the_cut():
    task = get_task("fairytaleqa", data_dir=shared("fairytaleqa/val.jsonl"))
    cut, whole = (task.validation(n, size=150).describe() for n in (4096, 10**6))
    assert whole["evidence_share"] == 1 and whole["cut_share"] == 0
    assert 0 < cut["evidence_share"] < 1 and cut["evidence_none"] > 0.1
    for part in task.documents().values():
        for d in part:
            for q in d.questions:
                assert all(0 <= a < b <= len(d.text) for a, b in q.evidence)


def test_with_a_tokenizer_of_transformers():
    from transformers import AutoTokenizer

    folder = data_file("models/stories260K/tokenizer.json").parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = get_task("fairytaleqa", data_dir=shared("fairytaleqa/val.jsonl"), tokenizer=tokenizer)
    assert task.vocab_size is None
    split = task.validation(1024, size=40)
    for e in split:
        prompt = read(task, e.prompt_ids)
        assert prompt.startswith("You are given a story") and prompt.endswith("Answer:")
        assert e.input_ids[0] == tokenizer.bos_token_id and e.input_ids[-1] == tokenizer.eos_token_id
        assert read(task, e.input_ids[e.prompt_length :]) == e.references[0]
        assert max(e.input_ids) < len(tokenizer)
    exact = get_task("fairytaleqa", data_dir=task.data_dir).documents()["validation"]
    assert [d.key for d in exact] == [d.key for d in task.documents()["validation"]]
    choice = get_task("quality", data_dir=task.data_dir, tokenizer=tokenizer).validation(1024, size=3)
    assert all(len(c) == 1 for e in choice for c in e.candidates)  # one pass of a model compares them
