"""Byte-level language modeling of any file, without label smoothing.

The first 90 % of the bytes are for training, the next 5 % for validation, the last 5 % for the test:
contiguous ranges, cut between documents, so that nothing but what the file itself repeats is on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import ClassVar

from hankelred.errors import short_repr

from ..base import SplitName
from ..byte_task import ByteTask, Streams, ranges
from ..errors import TaskDataError, TaskError

HELD_OUT = 0.05


class ByteLM(ByteTask):
    r"""Every byte of a file from those before it in the window.

    Parameters
    ----------
    path : path or str
        Any file; it is read as bytes.
    document_break : str
        Regular expression at whose matches documents begin. Default: after a blank line, or a line of
        blanks. For WikiText: ``r"(?m)^ = [^=]"``, the title of an article.
    """

    name = "byte_lm"
    summary = "every byte of a file from those before it"
    source: ClassVar[str] = "a file of yours"
    license: ClassVar[str] = "that of the file"

    def __init__(self, *, path: str | PathLike[str], document_break: str = r"(?<=\n)[ \t\r]*\n") -> None:
        super().__init__()
        self.path = Path(path)
        try:
            self._break = re.compile(document_break.encode())
        except re.error as error:
            raise TaskError(
                f"document_break {short_repr(document_break)} is no regular expression: {error}"
            ) from None

    def streams(self) -> Mapping[SplitName, Streams]:
        """Return one stream a split."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise TaskDataError(
                self.path, None, f"cannot be read ({error.strerror})", "give the path of a file"
            ) from None
        starts = [m.start() for m in self._break.finditer(data)]
        edges = [0, *(s for s in starts if s > 0), len(data)]
        pieces = [data[a:b] for a, b in pairwise(edges) if b > a]
        if len(pieces) < 3:
            raise TaskDataError(
                self.path,
                None,
                f"has {len(pieces)} documents, three splits need three",
                "give a longer file, or a document_break that matches where its documents begin",
            )
        train, validation, test = ranges(pieces, HELD_OUT)
        return {
            "train": [(f"{self.path.name}, first range", train)],
            "validation": [(f"{self.path.name}, second range", validation)],
            "test": [(f"{self.path.name}, third range", test)],
        }


TASK = ByteLM
