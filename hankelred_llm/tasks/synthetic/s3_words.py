"""Words of the symmetric group S3: letters ``a`` to ``f``, one for each permutation of three things.

After each letter the product of all so far is scored, as a digit ``0`` to ``5``: the number of the
permutation in lexicographic order (``0`` and ``a`` are the identity), a new letter acting last. The group is
not commutative, so that no count of letters gives the answer.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ..byte_tokens import IntArray
from ..synthetic_task import SyntheticTask, after_each, codes

LETTERS, DIGITS = "abcdef", "012345"
PERMUTATIONS = tuple(permutations(range(3)))
#: entry [product so far, new letter]: the number of new after old
PRODUCTS = np.array(
    [[PERMUTATIONS.index((new[a], new[b], new[c])) for new in PERMUTATIONS] for a, b, c in PERMUTATIONS]
)


class S3Words(SyntheticTask):
    """Product of the permutations read so far."""

    name = "s3_words"
    summary = "product of the permutations of three things read so far, after every letter"
    answers = DIGITS

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of permutations; every position is scored."""
        letters = rng.integers(0, len(LETTERS), (size, length))
        products = np.empty_like(letters)
        product = np.zeros(size, dtype=np.int64)
        for t in range(length):
            product = PRODUCTS[product, letters[:, t]]
            products[:, t] = product
        return after_each(codes(LETTERS)[letters], codes(DIGITS)[products])


TASK = S3Words
