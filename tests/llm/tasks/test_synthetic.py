"""Synthetic tasks against oracles that read rows symbol by symbol and know nothing of how they were drawn."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hankelred_llm.tasks import TaskError, get_task
from hankelred_llm.tasks.synthetic.prefix_dfa import random_automaton

PAPER_LIKE = [[2, 1], [0, 3], [0, 2], [0, 3]]


def rows(split):
    """Yield each row as text, and what it is asked as {position in the text: answer}."""
    for e in split:
        text = "".join(chr(i) if i < 256 else "" for i in e.input_ids)
        yield text, {int(p): chr(t) for p, t in zip(e.scored, e.targets, strict=True)}


def by_parity(text):
    ones = 0
    for t, bit in enumerate(text):
        ones += bit == "1"
        yield t, "odd" if ones % 2 else "even"


def oracle_parity(text):
    return {t: {"odd": "1", "even": "0"}[value] for t, value in by_parity(text)}


def oracle_majority(text):
    answers = {}
    for t in range(len(text)):
        counts = Counter(text[: t + 1])
        if counts["0"] != counts["1"]:
            answers[t] = max("01", key=counts.__getitem__)
    return answers


def oracle_modular_sum(text, modulus=5):
    return {t: str(sum(map(int, text[: t + 1])) % modulus) for t in range(len(text))}


def oracle_lag_copy(text, lag=8):
    return {t: text[t - lag] for t in range(lag, len(text))}


def oracle_flip_flop(text):
    memory, answers = None, {}
    for t in range(0, len(text), 2):
        if text[t] == "w":
            memory = text[t + 1]
        elif text[t] == "r":
            answers[t] = memory
            assert text[t + 1] == memory
        else:
            assert text[t] == "i"
    return answers


def oracle_key_retrieval(text):
    assert text.count(":") == text.count("?") == 1
    before, after = text.split("?")
    assert before.split(":")[1][0] == after
    return {len(before): after}


def oracle_associative_recall(text):
    values, answers = {}, {}
    for t in range(0, len(text), 2):
        letter, digit = text[t], text[t + 1]
        if letter in values:
            answers[t] = values[letter]
            assert digit == values[letter]
        values[letter] = digit
    return answers


def oracle_s3_words(text):
    """By permutation matrices: the identity first, then in lexicographic order of the images."""
    identity = np.eye(3, dtype=int)
    order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    matrices = [identity[:, images] for images in order]  # column i is the image of i
    product_so_far, answers = identity, {}
    for t, letter in enumerate(text):
        product_so_far = matrices["abcdef".index(letter)] @ product_so_far
        (which,) = [k for k, m in enumerate(matrices) if np.array_equal(m, product_so_far)]
        answers[t] = str(which)
    return answers


def oracle_prefix_dfa(transitions):
    def run(text):
        state, answers = 0, {}
        for t, letter in enumerate(text):
            state = int(transitions[state]["abcdefghij".index(letter)])
            answers[t] = "0123456789ABC"[state]
        return answers

    return run


CASES = {
    "parity": ({}, oracle_parity, 0.5),
    "majority": ({}, oracle_majority, 0.5),
    "modular_sum": ({}, oracle_modular_sum, 0.2),
    "lag_copy": ({}, oracle_lag_copy, 1 / 8),
    "flip_flop": ({}, oracle_flip_flop, 0.5),
    "key_retrieval": ({}, oracle_key_retrieval, 0.1),
    "associative_recall": ({}, oracle_associative_recall, 0.1),
    "s3_words": ({}, oracle_s3_words, 1 / 6),
    "prefix_dfa": ({"transitions": PAPER_LIKE}, oracle_prefix_dfa(PAPER_LIKE), 0.25),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [18, 64])
def test_answers_are_those_of_the_oracle(name, length):
    options, oracle, _ = CASES[name]
    task = get_task(name, **options)
    for split in (task.train(length, size=60), task.validation(length, size=60), task.test(length, size=60)):
        assert len(split) == 60
        for text, asked in rows(split):
            assert asked == oracle(text)
            assert asked


def test_options_reach_the_rows():
    for text, asked in rows(get_task("lag_copy", lag=3).train(10, size=20)):
        assert asked == oracle_lag_copy(text, 3)
    for text, asked in rows(get_task("modular_sum", modulus=7).train(10, size=20)):
        assert asked == oracle_modular_sum(text, 7)
    task = get_task("prefix_dfa", states=6, symbols=3, seed=4)
    assert task.transitions.shape == (6, 3)
    for text, asked in rows(task.train(20, size=20)):
        assert asked == oracle_prefix_dfa(task.transitions)(text)


@pytest.mark.parametrize("name", CASES)
def test_no_row_is_in_two_splits_and_order_follows_the_seed(name):
    """At a length where rows would repeat often if splits were drawn independently."""
    options, _, _ = CASES[name]
    length = 18 if name == "associative_recall" else 10
    task = get_task(name, **options)
    train, other = task.train(length), task.train(length, seed=1)
    validation, test = task.validation(length), task.test(length)
    texts = [[text for text, _ in rows(split)] for split in (train, other, validation, test)]
    held = set(texts[2]), set(texts[3])
    assert not (set(texts[0]) | set(texts[1])) & (held[0] | held[1])
    assert not held[0] & held[1]
    assert texts[0] != texts[1]
    again = get_task(name, **options)
    assert [t for t, _ in rows(again.train(length))] == texts[0]
    assert [t for t, _ in rows(again.test(length))] == texts[3]
    assert [t for t, _ in rows(get_task(name, **options, seed=9).test(length))] != texts[3]


def test_splits_do_not_differ_in_kind():
    """The hash that keeps splits apart must not see what is asked: the last parity is fair in all of them."""
    task = get_task("parity")
    for split in (task.train(24, size=4000), task.validation(24, size=4000), task.test(24, size=4000)):
        last = [asked[23] == "1" for _, asked in rows(split)]
        assert abs(np.mean(last) - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("name", CASES)
def test_floors(name):
    options, oracle, chance = CASES[name]
    task = get_task(name, **options)
    split = task.test(64, size=200)
    baselines = {k: v["accuracy"] for k, v in task.baselines(split).items()}
    assert baselines["chance"] == pytest.approx(chance)
    # counted anew from text, by answers of the oracle
    pairs = Counter()
    for text, _ in rows(split):
        for t, answer in oracle(text).items():
            pairs[text[t], answer] += 1
    answers, best = Counter(), Counter()
    for (last, answer), count in pairs.items():
        answers[answer] += count
        best[last] = max(best[last], count)
    assert baselines["constant"] == pytest.approx(max(answers.values()) / pairs.total())
    assert baselines["last_symbol"] == pytest.approx(best.total() / pairs.total())
    # reading alone stays far from the answer
    assert baselines["last_symbol"] < 0.65
    # and a constant prediction scores what the floor says
    constant = ord(answers.most_common(1)[0][0])
    predictions = [np.full(e.targets.size, constant) for e in split]
    assert task.score(split, predictions).means["accuracy"] == pytest.approx(baselines["constant"])


def test_exact_floors_of_the_automaton_used_in_continuous_integration():
    """By the exact distribution of states after each symbol, not by counting rows."""
    share = [Fraction(1), Fraction(0), Fraction(0), Fraction(0)]
    state_share = [Fraction(0)] * 4
    joint = {}
    for _ in range(32):
        after = [Fraction(0)] * 4
        for state, symbol in product(range(4), range(2)):
            new = PAPER_LIKE[state][symbol]
            after[new] += share[state] / 2
            joint[symbol, new] = joint.get((symbol, new), Fraction(0)) + share[state] / 2 / 32
        share = after
        state_share = [a + b / 32 for a, b in zip(state_share, after, strict=True)]
    last = sum(max(joint.get((symbol, s), Fraction(0)) for s in range(4)) for symbol in range(2))
    task = get_task("prefix_dfa", transitions=PAPER_LIKE)
    baselines = task.baselines(task.test(32, size=3000))
    assert baselines["constant"]["accuracy"] == pytest.approx(float(max(state_share)), abs=0.01)
    assert baselines["last_symbol"]["accuracy"] == pytest.approx(float(last), abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 4))
def test_drawn_automata_keep_their_promises(seed, states, symbols):
    table = random_automaton(np.random.default_rng(seed), states, symbols)
    assert table.shape == (states, symbols)
    # strongly connected, by search from every state
    for start in range(states):
        reached, todo = {start}, [start]
        while todo:
            for new in map(int, table[todo.pop()]):
                if new not in reached:
                    reached.add(new)
                    todo.append(new)
        assert len(reached) == states
    # no common cycle length: the set of states reachable in exactly t steps becomes everything
    reachable = {0}
    for _ in range(states**2):
        reachable = {int(new) for s in reachable for new in table[s]}
    assert len(reachable) == states
    # no symbol forgets where it was
    assert all(len(set(table[:, k].tolist())) > 1 for k in range(symbols))
    # some set of accepting states tells all states apart, by words (Myhill-Nerode)
    words = [w for n in range(min(states, 4)) for w in product(range(symbols), repeat=n)]

    def distinguishable(accepting):
        prints = set()
        for start in range(states):
            outcome = []
            for word in words:
                state = start
                for letter in word:
                    state = int(table[state, letter])
                outcome.append(state in accepting)
            prints.add(tuple(outcome))
        return len(prints) == states

    subsets = product([False, True], repeat=states)
    assert any(distinguishable({s for s in range(states) if chosen[s]}) for chosen in subsets)


def test_three_states_that_move_alike_are_never_told_apart():
    """Two outcomes cannot tell three apart; such tables are drawn rarely, so one is handed in first."""
    alike = np.array([[1, 2, 3], [3, 0, 1], [3, 0, 1], [3, 0, 1]])
    drawn = [alike] * 50

    class Rigged:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def integers(self, low, high, size):
            return drawn.pop() if drawn and size == (4, 3) else self.rng.integers(low, high, size)

    table = random_automaton(Rigged(), 4, 3)
    assert not drawn and table.tolist() != alike.tolist()


def test_automata_differ_by_seed_and_stay_for_a_seed():
    tables = [get_task("prefix_dfa", seed=s).transitions.tolist() for s in range(8)]
    assert len({str(t) for t in tables}) >= 7
    assert get_task("prefix_dfa", seed=3).transitions.tolist() == tables[3]


@pytest.mark.parametrize(
    "transitions, message",
    [
        ([[0, 1], [1]], "whole numbers"),
        ([[0.5, 1], [1, 0]], "whole numbers"),
        ("ab", "whole numbers"),
        ([[0, 2], [1, 0]], "give states 0 to 1"),
        ([[0, 0], [1, 0]], r"states \[1\] cannot be reached"),
        ([[0, 0]], "1 states"),
    ],
)
def test_automata_that_make_no_sense(transitions, message):
    with pytest.raises(TaskError, match=message):
        get_task("prefix_dfa", transitions=transitions)


@pytest.mark.parametrize(
    "name, length, message",
    [
        ("lag_copy", 8, "a length of at least 9"),
        ("flip_flop", 7, "an even length of at least 4"),
        ("associative_recall", 16, "an even length of at least 18"),
        ("key_retrieval", 3, "at least 4"),
        ("parity", 1, "too few different rows"),
    ],
)
def test_lengths_that_ask_nothing(name, length, message):
    with pytest.raises(TaskError, match=message):
        task = get_task(name)
        task.train(length), task.validation(length), task.test(length)


def test_keys_lie_anywhere():
    places = [text.index(":") for text, _ in rows(get_task("key_retrieval").train(20, size=3000))]
    assert set(places) == set(range(18))
    assert max(Counter(places).values()) < 2 * 3000 / 18
