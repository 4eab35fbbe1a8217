"""State of an automaton after every symbol: inputs ``a``, ``b``, ...; target states ``0``, ``1``, ...

The automaton is the same in every row and every split: what is learned is the automaton, not how to read one
from a prompt. It starts in state 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hankelred.errors import short_repr

from ..byte_tokens import IntArray
from ..errors import TaskError
from ..synthetic_task import SyntheticTask, after_each, checked_count, codes

LETTERS = "abcdefghijklmnopqrstuvwxyz"
STATES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_DRAWS = 20_000


class PrefixDFA(SyntheticTask):
    """State of a fixed automaton after every symbol.

    Parameters
    ----------
    transitions : sequence of sequences of int, optional
        ``transitions[state][symbol]`` is the next state. Default: drawn from the seed, such that every
        state leads to every other, no cycle length is common to all loops (the position alone says
        nothing in the long run), no symbol leads from everywhere to one state (the last symbol alone
        does not tell the state), and some set of accepting states makes it minimal.
    states, symbols : int
        Size of an automaton that is drawn; not used when `transitions` are given.
    seed : int
        Draws the automaton and the rows.
    """

    name = "prefix_dfa"
    summary = "state of a fixed finite automaton, after every symbol"

    def __init__(
        self,
        *,
        transitions: Sequence[Sequence[int]] | None = None,
        states: int = 4,
        symbols: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if transitions is None:
            states = checked_count("states", states, least=2, most=len(STATES))
            symbols = checked_count("symbols", symbols, least=2, most=len(LETTERS))
            self.transitions = random_automaton(
                np.random.default_rng([self.seed, states, symbols]), states, symbols
            )
        else:
            self.transitions = checked_automaton(transitions)
        self.answers = STATES[: len(self.transitions)]

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of symbols; every position is scored."""
        symbols = rng.integers(0, self.transitions.shape[1], (size, length))
        visited = np.empty_like(symbols)
        state = np.zeros(size, dtype=np.int64)
        for t in range(length):
            state = self.transitions[state, symbols[:, t]]
            visited[:, t] = state
        return after_each(codes(LETTERS)[symbols], codes(STATES)[visited])


def checked_automaton(transitions: Any) -> IntArray:
    """Return a table given by a user; every state must be in range and reachable."""
    try:
        table = np.array(transitions)
        shaped = table.ndim == 2 and table.dtype.kind in "iu"
    except ValueError:  # rows of different lengths
        shaped = False
    if not shaped:
        raise TaskError(
            f"transitions are {short_repr(transitions)}; give one row of next states (whole numbers) a state"
        )
    n, m = table.shape
    if not (2 <= n <= len(STATES) and 1 <= m <= len(LETTERS)):
        raise TaskError(
            f"{n} states and {m} symbols; 2 to {len(STATES)} and 1 to {len(LETTERS)} can be written"
        )
    if table.min() < 0 or table.max() >= n:
        raise TaskError(f"transitions lead to {table.min()} to {table.max()}; give states 0 to {n - 1}")
    unreachable = np.flatnonzero(~_reach(table)[0])
    if unreachable.size:
        raise TaskError(f"states {unreachable.tolist()} cannot be reached from state 0; leave them out")
    return table.astype(np.int64)


def random_automaton(rng: np.random.Generator, states: int, symbols: int) -> IntArray:
    """Return a random table with the properties that `PrefixDFA` promises."""
    for _ in range(MAX_DRAWS):
        table = rng.integers(0, states, (states, symbols))
        resets = (table == table[0]).all(axis=0).any()
        if not resets and _reach(table).all() and _aperiodic(table) and _minimal(table, rng):
            return table
    raise TaskError(f"no automaton of {states} states and {symbols} symbols was found; take more symbols")


def _steps(table: IntArray) -> IntArray:
    """Return the matrix of which state leads to which in one step."""
    steps = np.zeros((len(table),) * 2, dtype=np.int64)
    steps[np.arange(len(table))[:, None], table] = 1
    return steps


def _reach(table: IntArray) -> Any:
    """Return the matrix of which state leads to which in any number of steps, none included."""
    reach = (_steps(table) + np.eye(len(table), dtype=np.int64)) > 0
    for _ in range(len(table).bit_length()):
        reach = (reach.astype(np.int64) @ reach) > 0
    return reach


def _aperiodic(table: IntArray) -> bool:
    """Tell whether after long enough every state can follow every state (Wielandt's exponent)."""
    n = len(table)
    power, exponent = _steps(table) > 0, 1
    while exponent < (n - 1) ** 2 + 1:
        power, exponent = (power.astype(np.int64) @ power) > 0, 2 * exponent
    return bool(power.all())


def _minimal(table: IntArray, rng: np.random.Generator) -> bool:
    """Tell whether a drawn set of accepting states makes all states distinguishable (Moore's refinement)."""
    block = rng.integers(0, 2, len(table))
    for _ in range(len(table)):
        block = np.unique(np.column_stack([block, block[table]]), axis=0, return_inverse=True)[1].reshape(-1)
    return int(block.max()) + 1 == len(table)


TASK = PrefixDFA
