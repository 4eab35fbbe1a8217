"""SQuALITY: answer five questions about a long story, each in a paragraph or more; four reference answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from ..document_task import Document, DocumentTask, Question
from ..metrics import rouge_scores
from ..sources import SourceRecord


class Squality(DocumentTask):
    """Long answers about stories."""

    name = "squality"
    summary = "answer a question about a long story in a few paragraphs"
    source = "nyu-mll/SQuALITY v1.3"
    license = "CC BY 4.0; stories: Project Gutenberg"
    metric = "rougeL_f1"
    # not in LongBench; worded like its prompts
    prompt = (
        "You are given a story and a question. Answer the question in one or more paragraphs.\n\n"
        "Story: {context}\n\n"
        "Now, answer the question based on the story in one or more paragraphs.\n\n"
        "Question: {input}\n"
        "Answer:"
    )
    answer_length = 512
    measure = staticmethod(rouge_scores)
    files: ClassVar[Mapping[str, str]] = {
        "train": "squality/train.jsonl",
        "validation": "squality/dev.jsonl",
        "test": "squality/test.jsonl",
    }
    layout = "metadata (passage_id), document and questions (question_text, responses with response_text)"

    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return one document a story."""
        documents = []
        for record in records:
            questions = []
            for q in record.each("questions"):
                answers = tuple(r.text("response_text") for r in q.each("responses"))
                if not answers:
                    raise q.error("'responses' is empty")
                questions.append(Question(q.text("question_text"), answers))
            key = record.within("metadata").text("passage_id")
            documents.append(Document(key, record.text("document"), tuple(questions)))
        return documents


TASK = Squality
