"""Four-part chorales as bytes: one byte a voice and sixteenth, the MIDI number, 0 where fewer voices sound.

The file has lists of chorales under "train" and "valid", and may have "test"; a chorale is a list of steps, a
step a list of up to four numbers. Without "test", "valid" is the test and every eighth chorale of "train" the
validation. Windows never run from one chorale into the next. Bits per byte are bits per voice and sixteenth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from ..base import SplitName
from ..byte_task import ByteTask, Streams
from ..errors import TaskDataError

VOICES = 4
VALIDATION_EVERY = 8


class Chorales(ByteTask):
    """Every note of a chorale from those before it.

    Parameters
    ----------
    path : path or str
        A JSON file in the layout of ``jsb_chorales_16th.json``.
    """

    name = "chorales"
    summary = "every note of a four-part chorale from those before it, as bytes"
    source: ClassVar[str] = "czhuang/JSB-Chorales-dataset, 16th notes"
    license: ClassVar[str] = "none stated"

    def __init__(self, *, path: str | PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)

    def streams(self) -> Mapping[SplitName, Streams]:
        """Return one stream a chorale."""
        remedy = "give a JSON file in the layout of jsb_chorales_16th.json"
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TaskDataError(self.path, None, f"cannot be read ({error.strerror})", remedy) from None
        except ValueError as error:
            raise TaskDataError(
                self.path, getattr(error, "lineno", None), f"no JSON ({error})", remedy
            ) from None
        parts: dict[str, Streams] = {}
        for part in ("train", "valid", "test"):
            pieces = content.get(part) if isinstance(content, dict) else None
            if not isinstance(pieces, list) or not pieces:
                if part == "test":
                    continue
                raise TaskDataError(self.path, None, f"has no list {part!r} of chorales", remedy)
            parts[part] = [
                (
                    f"{part} {i}",
                    b"".join(self._step(f"{part}[{i}][{t}]", step) for t, step in enumerate(piece)),
                )
                for i, piece in enumerate(pieces)
            ]
        if "test" in parts:
            return {"train": parts["train"], "validation": parts["valid"], "test": parts["test"]}
        train = parts["train"]
        return {
            "train": [s for i, s in enumerate(train) if (i + 1) % VALIDATION_EVERY],
            "validation": train[VALIDATION_EVERY - 1 :: VALIDATION_EVERY],
            "test": parts["valid"],
        }

    def _step(self, where: str, step: Any) -> bytes:
        """Return the bytes of one step."""
        notes = step if isinstance(step, list) else None
        if notes is None or len(notes) > VOICES or not all(_is_note(n) for n in notes):
            raise TaskDataError(
                self.path,
                None,
                f"{where} is {step!r}",
                f"give up to {VOICES} whole MIDI numbers from 1 to 127",
            )
        return bytes(int(n) for n in notes) + bytes(VOICES - len(notes))


def _is_note(value: Any) -> bool:
    return isinstance(value, int | float) and value == value // 1 and 1 <= value <= 127


TASK = Chorales
