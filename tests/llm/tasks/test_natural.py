"""Tasks in plain sentences against oracles that read the text of a row and do not know how it was made."""

from __future__ import annotations

import copy
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import one_layer_llama
from helpers.sweeps import sweep

from hankelred_llm.experiments.evaluate import evaluate, predict
from hankelred_llm.tasks import ByteTokenizer, TaskDataError, TaskError, get_task, natural
from hankelred_llm.tasks.natural_task import NOISE, usable_sentences


def test_every_task_has_an_oracle():
    folder = Path(natural.__file__).parent
    assert set(ORACLES) == {path.stem for path in folder.glob("[a-z]*.py")}


def oracle_where_is(text):
    place = {}
    for who, where in re.findall(r"\b([A-Z][a-z]+) (?:went|walked|ran|moved) to the (\w+)\.", text):
        place[who] = where
    return [(place[who], answer) for who, answer in re.findall(r"Where is (\w+)\? In the (\w+)", text)]


def oracle_counting(text):
    coins = Counter(re.findall(r"\b([A-Z][a-z]+) found a coin\.", text))
    questions = re.findall(r"How many coins did (\w+) find\? (\w+) found (\w+)", text)
    numbers = ["none", "one", "two", "three", "four", "five"]
    assert all(who == again for who, again, _ in questions)
    return [(numbers[coins[who]], answer) for who, _, answer in questions]


def oracle_variable_tracking(text):
    stated = dict(re.findall(r"The value of (\w+) is ([^.]+)\.", text))

    def value(name):
        return value(stated[name].split()[-1]) if stated[name].startswith("that of ") else stated[name]

    return [
        (value(name), answer)
        for name, answer in re.findall(r"What is the value of (\w+)\? It is (\w+)", text)
    ]


def oracle_who_has(text):
    """Boxes and owners as two tables that are overwritten in the order of the text."""
    box, owner = {}, {}
    put = r"The (?P<thing>\w+) was put into the (?P<into>\w+) box\."
    gave = r"The (?P<box>\w+) box was (?:given|handed|sent) to (?P<who>\w+)\."
    for event in re.finditer(f"{put}|{gave}", text):
        if event["thing"]:
            box[event["thing"]] = event["into"]
        else:
            owner[event["box"]] = event["who"]
    questions = re.findall(r"Who has the (\w+)\? It is with (\w+)", text)
    return [(owner[box[thing]], answer) for thing, answer in questions]


def oracle_multikey_needle(text):
    facts = re.findall(r"The code word of the (\w+) is (\w+)\.", text)
    assert len(dict(facts)) == len(facts)
    questions = re.findall(r"What is the code word of the (\w+)\? It is (\w+)", text)
    return [(dict(facts)[key], answer) for key, answer in questions]


def oracle_last_written(text):
    board = {}
    for who, word, color in re.findall(r"(Somebody|Nobody) wrote (\w+) on the (\w+) board\.", text):
        if who == "Somebody":
            board[color] = word
    questions = re.findall(r"Which word is on the (\w+) board\? It is (\w+)", text)
    return [(board[color], answer) for color, answer in questions]


ORACLES = {
    "where_is": oracle_where_is,
    "counting": oracle_counting,
    "variable_tracking": oracle_variable_tracking,
    "who_has": oracle_who_has,
    "multikey_needle": oracle_multikey_needle,
    "last_written": oracle_last_written,
}
#: Bytes in which the facts and questions of every task fit, with some noise.
LENGTH = 1400


class Words:
    """A tokenizer of words and marks with the blank before them: every answer is one token."""

    bos_token_id = eos_token_id = None
    pad_token_id = 0

    def __init__(self):
        self.known = {"<pad>": 0}

    def encode(self, text, *, add_special_tokens=False):
        return [self.known.setdefault(w, len(self.known)) for w in re.findall(r" ?\w+| ?[^\w\s]|\s", text)]

    def decode(self, ids, *, skip_special_tokens=True):
        words = list(self.known)
        return "".join(words[i] for i in ids)


def text_of(task, example):
    return task.tokenizer.decode(example.input_ids.tolist())


@pytest.mark.parametrize("tokenizer", sweep([None, Words()], first=1), ids=["bytes", "words"])
@pytest.mark.parametrize("name", ORACLES)
def test_answers_are_those_of_the_oracle(name, tokenizer):
    task = get_task(name, tokenizer=tokenizer, seed=3)
    length = LENGTH if tokenizer is None else 256
    for split in (
        task.train(length, size=800),
        task.validation(length, size=200),
        task.test(length, size=200),
    ):
        for e in split:
            assert len(e) <= length
            assert e.labels[0] == -100 and e.prompt_length == e.choices[0].position
            text = text_of(task, e)
            answers = ORACLES[name](text)
            assert len(answers) == len(e.choices) == task.questions
            scored = np.zeros(len(e), dtype=bool)
            for (right, answer), choice in zip(answers, e.choices, strict=True):
                assert right == answer == task.candidates[choice.answer]
                ids = choice.candidates[choice.answer]
                here = slice(choice.position, choice.position + len(ids))
                assert np.array_equal(e.input_ids[here], ids)
                assert np.array_equal(e.labels[here], ids)
                scored[here] = True
                for word, candidate in zip(task.candidates, choice.candidates, strict=True):
                    assert task.tokenizer.decode(candidate.tolist()) == f" {word}"
            assert (e.labels[~scored] == -100).all()


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("questions", [1, 2, "most"])
def test_any_number_of_questions(name, questions):
    most = type(get_task(name)).most_questions
    task = get_task(name, questions=most if questions == "most" else questions)
    for e in task.train(4000, size=30):
        answers = ORACLES[name](text_of(task, e))
        assert len(answers) == task.questions
        assert all(right == answer for right, answer in answers)
    with pytest.raises(TaskError, match=f"questions is {most + 1}.*at most {most}"):
        get_task(name, questions=most + 1)


@pytest.mark.parametrize("name", ORACLES)
def test_no_row_is_in_two_splits_and_order_follows_the_seed(name):
    def rows(split):
        return {e.input_ids.tobytes() for e in split}

    def task():
        return get_task(name, tokenizer=Words())

    parts = [rows(task().train(200, size=300)), rows(task().validation(200)), rows(task().test(200))]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    first, again, other = (task().train(200, size=20, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
    assert rows(first) != rows(other)
    # a smaller split is the beginning of a larger one
    assert np.array_equal(task().train(200, size=5, seed=1)[4].input_ids, first[4].input_ids)


@pytest.mark.parametrize("name", ORACLES)
def test_facts_are_anywhere_and_longer_rows_have_more_noise_only(name):
    """Facts at the beginning or the end alone would teach a place in the row."""
    task = get_task(name)
    noise = usable_sentences(NOISE.read_text(encoding="utf-8"), set())
    shares, counts = [], {}
    for length in (LENGTH, 4 * LENGTH):
        sizes = []
        for e in task.validation(length):
            prompt = task.tokenizer.decode(e.prompt_ids.tolist())
            facts = [s for s in usable_sentences(prompt, set())[1:] if s not in noise]
            sizes.append(len(facts))
            for fact in set(facts):
                shares += [m.start() / len(prompt) for m in re.finditer(re.escape(fact), prompt)]
        counts[length] = np.mean(sizes)
    assert abs(counts[LENGTH] - counts[4 * LENGTH]) < 1
    assert len(shares) > 200
    histogram = np.histogram(shares, bins=4, range=(0, 1))[0] / len(shares)
    assert histogram.min() > 0.1


@pytest.mark.parametrize("name", ORACLES)
def test_floors_are_counted_and_met_by_predictions(name):
    task = get_task(name, tokenizer=Words())
    split = task.validation(256)
    floors = task.baselines(split)
    answers = Counter(answer for e in split for _, answer in ORACLES[name](text_of(task, e)))
    assert floors["chance"] == {"accuracy": pytest.approx(1 / len(task.candidates))}
    assert floors["constant"] == {"accuracy": pytest.approx(max(answers.values()) / answers.total())}
    if "last_mention" in floors:
        predictions = []
        for e in split:
            prompt = task.tokenizer.decode(e.prompt_ids.tolist())
            last = max(task.candidates, key=lambda word, prompt=prompt: prompt.rfind(f" {word}"))
            values = np.array([float(word == last) for word in task.candidates])
            predictions.append(np.tile(values, len(e.choices)))
        scored = task.score(split, predictions)
        assert scored.means == floors["last_mention"]
        assert len(scored.units) == len(set(scored.units)) == task.questions * len(split)
        assert set(Counter(scored.documents).values()) == {task.questions}
    perfect = [np.concatenate([np.eye(len(task.candidates))[c.answer] for c in e.choices]) for e in split]
    assert task.score(split, perfect).means == {"accuracy": 1.0}
    undecided = [np.zeros(task.questions * len(task.candidates)) for _ in split]
    assert task.score(split, undecided).means == {"accuracy": pytest.approx(1 / len(task.candidates))}


@pytest.fixture(scope="module")
def pieces_of_words():
    """Return a tokenizer as those of real models, of byte pairs; answers have one to six of them."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator([NOISE.read_text(encoding="utf-8")], vocab_size=600, special_tokens=["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, bos_token="<s>", eos_token="<s>")


@pytest.mark.parametrize("name", ORACLES)
def test_a_row_has_the_ids_of_its_text(name, pieces_of_words):
    """Pieces are tokenized one by one; put together they must be what the tokenizer makes of the whole."""
    task = get_task(name, tokenizer=pieces_of_words)
    split = task.validation(512, size=40)
    assert {len(ids) for c in split[0].choices for ids in c.candidates} & {2, 3, 4}
    for e in split:
        text = text_of(task, e)
        assert pieces_of_words.encode(text, add_special_tokens=False) == e.input_ids.tolist()
        assert all(right == answer for right, answer in ORACLES[name](text))


@pytest.fixture(scope="module")
def model():
    return one_layer_llama(2000, max_position_embeddings=2048, initializer_range=0.3)


@pytest.mark.parametrize("name", ORACLES)
def test_a_chat_template_changes_nothing(name, pieces_of_words):
    """Of a base without a chat template it was not said, nor tested, that it is as good as one with."""
    with_template = copy.deepcopy(pieces_of_words)
    with_template.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    assert with_template.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    rows = [get_task(name, tokenizer=t).validation(400, size=3) for t in (pieces_of_words, with_template)]
    for plain, other in zip(*rows, strict=True):
        assert np.array_equal(plain.input_ids, other.input_ids) and np.array_equal(plain.labels, other.labels)


@pytest.mark.parametrize("tokenizer", [None, Words()], ids=["bytes", "words"])
def test_likelihoods_are_those_of_one_candidate_at_a_time(model, tokenizer):
    """Answers of several tokens share passes, and the row itself is one of them."""
    task = get_task("where_is", tokenizer=tokenizer, questions=3)
    split = task.validation(900 if tokenizer is None else 200, size=3)
    predictions = predict(model, task, split, batch_size=2)
    for e, values in zip(split, predictions, strict=True):
        expected = []
        for choice in e.choices:
            for candidate in choice.candidates:
                ids = torch.as_tensor(np.concatenate([e.input_ids[: choice.position], candidate]))
                with torch.inference_mode():
                    logs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
                expected.append(sum(float(logs[choice.position - 1 + k, t]) for k, t in enumerate(candidate)))
        assert values == pytest.approx(expected, abs=1e-4)


def test_answers_are_generated_after_those_of_the_questions_before():
    """A model that has learned one sentence by heart is right for it alone."""
    task = get_task("where_is", tokenizer=Words(), by="generation", questions=3)
    split = task.validation(200, size=4)
    assert split.max_new_tokens == 1 and len(split) == 12
    for k, e in enumerate(split):
        prompt = task.tokenizer.decode(e.prompt_ids.tolist())
        assert len(re.findall(r"\?", prompt)) == k % 3 + 1
        (right, _), *_ = reversed(oracle_where_is(prompt + f" {e.references[0]}"))
        assert e.references == (right,)
    texts = [f" {e.references[0]}. Where" if k % 2 else " nowhere" for k, e in enumerate(split)]
    assert task.score(split, texts).means == {"accuracy": 0.5}
    assert task.score(split, [" kitchens"] * 12).means == {"accuracy": 0.0}
    by_likelihood = get_task("where_is", tokenizer=task.tokenizer, questions=3)
    assert task.baselines(split) == by_likelihood.baselines(by_likelihood.validation(200, size=4))
    # rows that are trained on have all answers
    assert len(task.train(200, size=2)[0].choices) == 3


def test_a_model_generates_what_it_is_scored_on(model):
    task = get_task("where_is", by="generation", questions=2)
    split = task.validation(700, size=2)
    texts = predict(model, task, split, batch_size=3)
    assert len(texts) == 4 and all(isinstance(text, str) for text in texts)
    right = [re.findall(r"\w+", t)[:1] == list(e.references) for t, e in zip(texts, split, strict=True)]
    assert evaluate(model, task, split).means["accuracy"] == np.mean(right)


class Writer(torch.nn.Module):
    """A model that generates the given ids, row by row."""

    def __init__(self, continuations):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.continuations = iter(continuations)

    def generate(self, input_ids, max_new_tokens, pad_token_id, **_):
        new = torch.full((len(input_ids), max_new_tokens), pad_token_id)
        for row in new:
            ids = next(self.continuations)
            row[: len(ids)] = torch.as_tensor(ids)
        return torch.cat([input_ids, new], 1)


def test_generated_answers_are_right_or_wrong():
    """The score of a random model, which answers nothing, was the only one tested: it is 0 in any case."""
    task = get_task("where_is", by="generation", questions=2)
    split = task.validation(700, size=3)
    continuations = []
    for k, e in enumerate(split):
        (choice,) = e.choices
        continuations.append(choice.candidates[(choice.answer + k % 2) % len(choice.candidates)])
    scores = evaluate(Writer(continuations), task, split, batch_size=4)
    assert scores.per_unit["accuracy"].tolist() == [1, 0, 1, 0, 1, 0]
    assert scores.means == {"accuracy": 0.5}


def test_the_noise_of_a_folder_is_not_shared(tmp_path):
    """Sentences numbered by their document: none of a training document is in a row of another split."""
    for k in range(9):
        lines = [f"Document{k}x tells line{i}y of a tale." for i in range(60)]
        (tmp_path / f"{k}.txt").write_text(" ".join(lines))
    task = get_task("where_is", text=tmp_path)
    documents = []
    for split in (task.train(1500, size=60), task.validation(1500, size=60), task.test(1500, size=60)):
        documents.append({w for e in split for w in re.findall(r"Document\dx", text_of(task, e))})
    assert all(documents)
    assert sum(map(len, documents)) == len(set.union(*documents)) == 9


def test_rows_do_not_depend_on_where_the_folder_lies(tmp_path):
    """Splits were made from whole paths at first: the same stories elsewhere gave other rows."""
    rows = []
    for name in ("here", "elsewhere"):
        (tmp_path / name / "below").mkdir(parents=True)
        for k in range(9):
            lines = [f"Document{k}x tells line{i}y of a tale." for i in range(30)]
            (tmp_path / name / "below" / f"{k}.txt").write_text(" ".join(lines))
        rows.append(
            [e.input_ids.tobytes() for e in get_task("where_is", text=tmp_path / name).test(900, size=9)]
        )
    assert rows[0] == rows[1]


def test_noise_never_speaks_of_what_is_asked(tmp_path):
    lines = [f"The tale number{i} is a long one." for i in range(40)]
    tale = "Mary is in the kitchen. The KITCHEN was cold! He said: the garden\u2019s gate is open. "
    (tmp_path / "tale.txt").write_text(tale * 40 + " ".join(lines), encoding="utf-8")
    for e in (task := get_task("where_is", text=tmp_path / "tale.txt")).train(1200, size=50):
        text = text_of(task, e)
        assert "tale number" in text
        assert "KITCHEN" not in text and "gate" not in text and "Mary is in" not in text


def test_nothing_of_the_default_noise_is_left_out():
    text = NOISE.read_text(encoding="utf-8")
    words = {w.lower() for n in ORACLES for w in (*get_task(n).names, *get_task(n).candidates)}
    sentences = usable_sentences(text, set())
    assert len(sentences) > 100
    assert usable_sentences(text, words) == sentences
    assert " ".join(sentences) == " ".join(text.split())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.txt", "is not there"),
        (lambda p: p, "has no .txt files"),
        (lambda p: p / "latin.txt", "no UTF-8"),
        (lambda p: p / "short.txt", "has 1 sentences .* at least 20"),
        (lambda p: p / "two", "has 2 .txt files.*give at least 3"),
    ],
)
def test_texts_that_are_none(tmp_path, make, message):
    path = make(tmp_path)
    if path != tmp_path:
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait. ")
        (tmp_path / "short.txt").write_text("Only this is told. Mary is here now.")
        (tmp_path / "two").mkdir()
        for k in range(2):
            (tmp_path / "two" / f"{k}.txt").write_text("It is told again. " * 30)
    with pytest.raises(TaskDataError, match=message):
        get_task("where_is", text=path).train(1200)


@pytest.mark.parametrize("text", [5, ["a.txt"], ""])
def test_a_text_that_is_no_path_is_refused(text):
    """A number ended in an error of pathlib, and the empty path read every text of the current folder."""
    with pytest.raises(TaskError, match=r"text is .*; give the path of a text"):
        get_task("where_is", text=text)


def test_a_length_that_is_too_short_is_refused_with_the_numbers():
    with pytest.raises(
        TaskError, match=r"length 100 is too short for task where_is: .* 5 questions .* take \d+"
    ):
        get_task("where_is").train(100)
    task = get_task("where_is", tokenizer=Words())
    assert all(len(e) <= 130 for e in task.train(130))


def test_a_tokenizer_that_does_not_tell_answers_apart_is_refused():
    class FirstLetters(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=False):
            return [ord(w[0]) for w in text.split()]

    with pytest.raises(
        TaskError, match=r"does not tell answers .* 'garden' is \[103\] and 'garage' is \[103\]"
    ):
        get_task("where_is", tokenizer=FirstLetters()).train(300)


def test_what_a_tokenizer_puts_around_a_text_is_around_the_row_only():
    """An end of text after the instruction would be in the middle of the row."""

    class Around(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=False):
            ids = list(text.encode())
            return [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids

    for e in get_task("where_is", tokenizer=Around()).train(900, size=5):
        assert e.input_ids[0] == 256 and (e.input_ids[1:] < 256).all()


def test_splits_go_to_other_processes():
    split = get_task("where_is").train(900, size=3)
    again = pickle.loads(pickle.dumps(split))
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(split, again, strict=True))
