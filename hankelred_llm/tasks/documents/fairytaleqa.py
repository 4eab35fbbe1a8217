"""FairytaleQA: answer a question about a fairy tale in a phrase. Sections with the evidence are marked.

It is similar to NarrativeQA but smaller, and has the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from ..document_task import Document, DocumentTask, Question, join_with_ranges
from ..longbench_prompts import ANSWER_LENGTHS, PROMPTS
from ..metrics import answer_scores
from ..sources import SourceRecord


class FairytaleQA(DocumentTask):
    """Questions about fairy tales."""

    name = "fairytaleqa"
    summary = "answer a question about a fairy tale in a phrase"
    source = "uci-soe/FairytaleQAData"
    license = "Apache-2.0"
    metric = "f1"
    prompt = PROMPTS["narrativeqa"]
    answer_length = ANSWER_LENGTHS["narrativeqa"]
    measure = staticmethod(answer_scores)
    files: ClassVar[Mapping[str, str]] = {
        "train": "fairytaleqa/train.jsonl",
        "validation": "fairytaleqa/val.jsonl",
        "test": "fairytaleqa/test.jsonl",
    }
    layout = "name, sections (texts) and questions (question, answers, sections counted from 1)"

    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return one document per tale."""
        documents = []
        for record in records:
            sections = [str(s.content) for s in record.each("sections")]
            text, ranges = join_with_ranges(sections, "\n\n")
            questions = []
            for q in record.each("questions"):
                answers = tuple(str(a.content) for a in q.each("answers") if str(a.content).strip())
                if not answers:
                    raise q.error("'answers' is empty")
                marked = [s.content for s in q.each("sections")]
                if not all(isinstance(s, int) and 1 <= s <= len(sections) for s in marked):
                    raise q.error(f"sections {marked} are not among the {len(sections)} of the tale")
                evidence = tuple(ranges[s - 1] for s in sorted(set(marked)))
                questions.append(Question(q.text("question"), answers, evidence))
            documents.append(Document(record.text("name"), text, tuple(questions)))
        return documents


TASK = FairytaleQA
