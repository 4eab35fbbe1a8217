"""How a text is compared with right answers; the best of several right answers counts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from .errors import TaskError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_words(text: str) -> list[str]:
    """Return lower-case words without punctuation and articles, as in SQuAD and LongBench."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def word_f1(prediction: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of words (LongBench's ``qa_f1_score``)."""
    predicted, expected = normalized_words(prediction), normalized_words(reference)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def answer_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return ``f1`` and ``exact_match`` of words."""
    predicted = normalized_words(prediction)
    return {
        "f1": max(word_f1(prediction, r) for r in references),
        "exact_match": float(any(predicted == normalized_words(r) for r in references)),
    }


def rouge_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Return ROUGE F1, first ROUGE-L; then the recall of ROUGE-1, which long answers win and papers print.

    Computed by the library rouge-score with stemming. LongBench computes its ROUGE-L with the library rouge,
    without stemming: figures are not to be compared to the last digit.
    """
    scored = [_rouge().score(reference, prediction) for reference in references]
    f1 = {f"{name}_f1": max(s[name].fmeasure for s in scored) for name in ("rougeL", "rouge1", "rouge2")}
    return {**f1, "rouge1_recall": max(s["rouge1"].recall for s in scored)}


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise TaskError("ROUGE needs the library rouge-score; pip install 'hankelred[evaluate]'") from None

    return RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=True)
