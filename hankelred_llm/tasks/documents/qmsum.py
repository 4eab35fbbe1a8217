"""QMSum: answer a query about a meeting in a few sentences, from its transcript.

The official release, in files or fetched from its repository by `datasets`. Specific queries mark the turns
with the evidence, so that the share that is left after truncation is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from ..base import SplitName
from ..document_task import Document, DocumentTask, Question, join_with_ranges, text_hash
from ..longbench_prompts import ANSWER_LENGTHS, PROMPTS
from ..metrics import rouge_scores
from ..sources import SourceRecord, read_hub

#: the release of the authors; the copy on the hub, by SCROLLS, does not mark the evidence
COMMIT = "83d7768c1f2b4dfeb091385d3dc7e239b8e5bb7e"
RELEASE = f"https://raw.githubusercontent.com/Yale-LILY/QMSum/{COMMIT}/data/ALL/jsonl"


class QMSum(DocumentTask):
    """Queries about meetings."""

    name = "qmsum"
    summary = "answer a query about a meeting in a few sentences"
    source = "Yale-LILY/QMSum"
    license = "MIT"
    metric = "rougeL_f1"
    prompt = PROMPTS["qmsum"]
    answer_length = ANSWER_LENGTHS["qmsum"]
    measure = staticmethod(rouge_scores)
    files: ClassVar[Mapping[str, str]] = {
        "train": "qmsum/train.jsonl",
        "validation": "qmsum/val.jsonl",
        "test": "qmsum/test.jsonl",
    }
    layout = (
        "meeting_transcripts (speaker, content), general_query_list (query, answer) and specific_query_list "
        "(query, answer, relevant_text_span)"
    )

    def hub(self) -> Mapping[SplitName, Iterable[SourceRecord]]:
        """Return the records of the official release."""
        files: dict[SplitName, str] = {"train": "train", "validation": "val", "test": "test"}
        return {
            name: read_hub("json", "train", self.layout, data_files=f"{RELEASE}/{file}.jsonl")
            for name, file in files.items()
        }

    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return one document per meeting, with one line per turn."""
        documents = []
        for record in records:
            turns = record.each("meeting_transcripts")
            lines = [f"{turn.get('speaker', str)}: {turn.get('content', str)}" for turn in turns]
            text, ranges = join_with_ranges(lines, "\n")
            questions = [
                Question(q.text("query"), (q.text("answer"),)) for q in record.each("general_query_list")
            ]
            for q in record.each("specific_query_list"):
                spans = [_turns(span, len(turns)) for span in q.each("relevant_text_span")]
                marked = sorted({i for first, last in spans for i in range(first, last + 1)})
                evidence = tuple(ranges[i] for i in marked)
                questions.append(Question(q.text("query"), (q.text("answer"),), evidence))
            documents.append(Document(text_hash(text), text, tuple(questions)))
        return documents


def _turns(span: SourceRecord, count: int) -> tuple[int, int]:
    """Return the first and the last turn of a span."""
    try:
        first, last = (int(span.content[i]) for i in (0, -1))
    except (TypeError, ValueError, IndexError, KeyError):
        first, last = -1, -1
    if not 0 <= first <= last < count:
        raise span.error(f"relevant_text_span {span.content!r} is no range of the {count} turns")
    return first, last


TASK = QMSum
