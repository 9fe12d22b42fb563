"""A file of triplets read to its end: every record, and every line that holds none, by its number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from debias.data.triplets import read_text, strict
from debias.records import Triplet, UserError

FIELDS = ("sentence", "target", "attribute")


class Record(NamedTuple):
    """One record as the file has it, and the place to find it at: a line, or an item of a JSON list."""

    place: int
    sentence: str
    target: str
    attribute: str
    bias: str
    row: Mapping[str, Any] = {}  # everything the file says of it, also fields that are not ours

    def triplet(self) -> Triplet | str:
        """The record as a triplet that can be trained on, or why it cannot be one."""
        return strict({**{name: getattr(self, name) for name in (*FIELDS, "bias")}, "source": ""})


class Broken(NamedTuple):
    """A line or item that holds no record, and why."""

    place: int
    reason: str


def read_records(path: Path, bias: str = "") -> tuple[list[Record], list[Broken]]:
    """All records (those that name no bias get `bias`), and the places that hold none.

    Raises UserError where nothing can be read: the file is missing, empty, no UTF-8, or a JSON list that is no JSON.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty; write one triplet a line, or choose another file")
    records: list[Record] = []
    broken: list[Broken] = []
    for place, row in _rows(path, text):
        read = _record(place, row, bias)
        if isinstance(read, Record):
            records.append(read)
        else:
            broken.append(read)
    if not records and not broken:
        raise UserError(f"{path}: there is no record in it; write one triplet a line, or choose another file")
    return records, broken


def _record(place: int, row: Any, bias: str) -> Record | Broken:
    if isinstance(row, ValueError):
        return Broken(place, f"not JSON ({row})")
    if isinstance(row, list) and len(row) == len(FIELDS):
        row = dict(zip(FIELDS, row, strict=True))
    if not isinstance(row, dict):
        return Broken(place, f"neither an object nor a list of three: {str(row)[:60]!r}")
    wrong = [name for name in FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
    if wrong:
        return Broken(place, f"{', '.join(wrong)}: missing, empty or not a text")
    sentence, target, attribute = (row[name].strip() for name in FIELDS)
    return Record(place, sentence, target, attribute, str(row.get("bias") or bias), row)


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Places and decoded rows; a line that is no JSON comes as the ValueError that says why."""
    if text.lstrip().startswith("[") and path.suffix != ".jsonl":
        try:
            yield from enumerate(json.loads(text), start=1)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); mend this line") from error
        return
    for i, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield i, json.loads(line)
            except json.JSONDecodeError as error:
                yield i, ValueError(error.msg)
