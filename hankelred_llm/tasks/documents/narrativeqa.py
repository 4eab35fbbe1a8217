"""NarrativeQA: answer a question about a book or a film script in a phrase, from its full text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import ClassVar

from ..base import SplitName
from ..byte_tokens import Tokenizer
from ..document_task import Document, DocumentTask, Question
from ..longbench_prompts import ANSWER_LENGTHS, PROMPTS
from ..metrics import answer_scores
from ..sources import SourceRecord, checked_revision, read_hub

DATASET, REVISION = "deepmind/narrativeqa", "2e643e7363944af1c33a652d1c87320d0871c4e4"


class NarrativeQA(DocumentTask):
    """Questions about books and film scripts.

    Parameters
    ----------
    data_dir, tokenizer
        As in :class:`DocumentTask`.
    revision : str
        Branch, tag or commit of the data set on the hub.
    """

    name = "narrativeqa"
    summary = "answer a question about a book or a film script in a phrase"
    source = DATASET
    license = "Apache-2.0"
    metric = "f1"
    prompt = PROMPTS["narrativeqa"]
    answer_length = ANSWER_LENGTHS["narrativeqa"]
    measure = staticmethod(answer_scores)
    files: ClassVar[Mapping[str, str]] = {
        "train": "narrativeqa/train.jsonl",
        "validation": "narrativeqa/validation.jsonl",
        "test": "narrativeqa/test.jsonl",
    }
    layout = "document (id, text), question (text) and answers (each with text), as the rows of the hub"

    def __init__(
        self,
        *,
        data_dir: str | PathLike[str] | None = None,
        tokenizer: Tokenizer | None = None,
        revision: str = REVISION,
    ) -> None:
        super().__init__(data_dir=data_dir, tokenizer=tokenizer)
        self.revision = checked_revision(revision)

    def hub(self) -> Mapping[SplitName, Iterable[SourceRecord]]:
        """Return the rows of the hub, one per question."""
        names: tuple[SplitName, ...] = ("train", "validation", "test")
        return {name: read_hub(DATASET, name, self.layout, revision=self.revision) for name in names}

    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return one document per story; each record has one question."""
        texts: dict[str, str] = {}
        questions: dict[str, list[Question]] = {}
        for record in records:
            document = record.within("document")
            key = document.text("id")
            texts.setdefault(key, document.text("text"))
            answers = tuple(a.text("text") for a in record.each("answers"))
            if not answers:
                raise record.error("'answers' is empty")
            questions.setdefault(key, []).append(Question(record.within("question").text("text"), answers))
        return [Document(key, text, tuple(questions[key])) for key, text in texts.items()]


TASK = NarrativeQA
