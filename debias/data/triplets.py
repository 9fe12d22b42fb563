"""Training triplets: read from a file of any format, checked, and never repaired silently."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from debias.data.counterparts import COUNTERPARTS
from debias.data.rows import FORMATS, Row, rows, sha256
from debias.data.word_borders import anywhere, same_word, whole_word
from debias.records import Triplet, UserError

log = logging.getLogger(__name__)

CORPORA = Path(__file__).resolve().parent.parent / "corpora"
FIELDS = ("sentence", "target", "attribute")

Policy = Literal["strict", "as_published"]


class Record(NamedTuple):
    """One row of a file with its three texts, before its words are looked for in its sentence."""

    sentence: str
    target: str
    attribute: str
    bias: str
    source: str = ""
    stereotype: str | None = None
    unrelated: str | None = None
    place: int = 0  # line of JSON Lines or item of a JSON list, from 1
    row: Mapping[str, Any] = MappingProxyType({})  # everything the file says about it, including fields that we ignore


class Broken(NamedTuple):
    """A line or item that does not hold a record."""

    place: int
    where: str  # the place as an error message names it
    reason: str


class Checked(NamedTuple):
    """Triplets to train on, the number of records dropped for each reason, and notes for the report."""

    triplets: list[Triplet]
    dropped: Counter[str]
    notes: tuple[str, ...] = ()
    spent: Mapping[str, Any] = MappingProxyType({})  # by a chat model: tokens, dollars (None: unknown) and seconds
    warning: str = ""  # what to know before reading any figure


class TripletFile:
    """A data source: one file of triplets, or our own corpus for the bias if no path is given.

    Args:
        bias: the social bias that the sentences address; also picks the corpus when `path` is empty.
        path: rows with `sentence`, `target` and `attribute`, or lists of these three, in a format of `data.rows`.
        policy: `strict` drops and counts records whose attribute does not follow the target as a whole word;
            `as_published` does what the paper's script did (see `_as_published`).
    """

    def __init__(self, bias: str, path: str | None = None, policy: Policy = "strict") -> None:
        self.bias, self.policy = bias, policy
        self.path = Path(path).expanduser() if path else _corpus(bias)

    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes."""
        return sha256(self.path)

    def load(self, seed: int = 0) -> Checked:
        """Read and check. Raises UserError for a broken line, and when nothing is left to train on."""
        records, broken = read_records(self.path, self.bias)
        log.info("data file: %s", self.path)
        if broken:
            raise UserError(
                f"{broken[0].where}: {broken[0].reason}; fix or delete it (`debias doctor` lists all faults)"
            )
        check = strict if self.policy == "strict" else _as_published
        triplets: list[Triplet] = []
        dropped: Counter[str] = Counter()
        for record in records:
            checked = check(record)
            if isinstance(checked, str):
                dropped[checked] += 1
            else:
                triplets.append(checked)
        if not triplets:
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise UserError(f"{self.path}: no usable triplet is left ({reasons}); fix the file or choose another")
        return Checked(triplets, dropped)


def corpora() -> list[str]:
    """Names of the corpora that come with the program."""
    return sorted(path.stem for path in CORPORA.glob("*.jsonl"))


def _corpus(bias: str) -> Path:
    path = CORPORA / f"{bias}.jsonl"
    if not path.is_file():
        raise UserError(
            f"there is no corpus of ours for data.bias={bias!r} (there is one for: {', '.join(corpora())}); "
            "name a file with data.path=FILE"
        )
    return path


# ---------------------------------------------------------------- file -> records


def read_records(path: Path, bias: str = "") -> tuple[list[Record], list[Broken]]:
    """All records, with `bias` for those that do not name one, and all places that do not hold a record.

    Raises UserError if nothing can be read: the file is missing, empty or in no known format, or has other columns.
    """
    records: list[Record] = []
    broken: list[Broken] = []
    found = list(rows(path))
    for place, where, row in found:
        read = _record(row, bias, path.name, place)
        if isinstance(read, Record):
            records.append(read)
        else:
            broken.append(Broken(place, where, read))
    if not records:
        _check_columns(path, found)
    return records, broken


def _check_columns(path: Path, found: Sequence[Row]) -> None:
    """Raises UserError if there are no rows, or if none of them has the columns of a triplet."""
    if not found:
        raise UserError(f"{path}: this file holds no records; write one triplet per line, or choose another file")
    if any(not isinstance(row.content, dict) or set(FIELDS) <= set(row.content) for row in found):
        return
    names = dict.fromkeys(name for row in found for name in row.content)
    remedy = f"rename them, or choose another file ({FORMATS})"
    if {"chosen", "rejected"} <= set(names):
        remedy = (
            "of a preference pair, the chosen text is the sentence; add its target, its attribute, and in `stereotype` "
            "the words that the rejected text has in the attribute's place"
        )
    raise UserError(
        f"{path}: no row has the columns {', '.join(FIELDS)}; found {', '.join(map(str, names)) or 'none'}; {remedy}"
    )


def _record(row: Any, bias: str, source: str, place: int) -> Record | str:
    """The only reader of the record format: a record, or the reason why the row is not one.

    `debias run` stops at a row that has a reason and `debias doctor` counts it, so they cannot disagree.
    """
    if isinstance(row, json.JSONDecodeError):
        return f"not JSON ({row.msg})"
    if isinstance(row, ValueError):
        return f"cannot be read ({row})"
    if isinstance(row, list) and len(row) == len(FIELDS):
        row = dict(zip(FIELDS, row, strict=True))
    if not isinstance(row, dict):
        return f"expected an object or [sentence, target, attribute], found {str(row)[:60]!r}"
    for key in FIELDS:
        if why := fault(row.get(key)):
            return f"{key!r} {why}"
    sentence, target, attribute = (row[key].strip() for key in FIELDS)
    counterparts = {name: row.get(name) for name in COUNTERPARTS}
    for name, word in counterparts.items():
        if word is not None and (why := fault(word)):
            return f"{name!r} {why}"
    return Record(
        sentence,
        target,
        attribute,
        bias=str(row.get("bias") or bias),
        source=str(row.get("source") or source),
        **{name: word and word.strip() for name, word in counterparts.items()},
        place=place,
        row=row,
    )


def fault(value: Any) -> str | None:
    """Why a value is not a text to read or to look for; None if it is one."""
    if value is None:
        return "is missing"
    if not isinstance(value, str):
        return "is not a string"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:  # as in JSON's "\ud83d"; it cannot be tokenised or written to a file
        return "holds half a surrogate pair, which is not a character"
    if not any(unicodedata.category(character)[0] in "LNPS" for character in value):
        return "has no visible character"
    if hidden := next(filter(_hides, value), None):
        return f"holds U+{ord(hidden):04X}, which no reader sees as it is"
    return None


def _hides(character: str) -> bool:
    """Whether a character is for machines alone, or turns the direction of the text."""
    if character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        return True
    return unicodedata.category(character) == "Cc" and not character.isspace()


# ---------------------------------------------------------------- record -> triplet


def strict(record: Record) -> Triplet | str:
    """The triplet with its attribute located after its target, or the reason why it cannot be trained on."""
    target = whole_word(record.target, record.sentence)
    if target is None:
        return _missing("target", record.target, record.sentence)
    if whole_word(record.attribute, record.sentence) is None:
        return _missing("attribute", record.attribute, record.sentence)
    found = whole_word(record.attribute, record.sentence, start=target[1])
    if found is None:
        return "attribute before the target"
    return _triplet(record, record.sentence, *found)


def _missing(name: str, word: str, sentence: str) -> str:
    return f"{name} {'only inside a longer word' if anywhere(word).search(sentence) else 'not in the sentence'}"


def _as_published(record: Record) -> Triplet | str:
    """What Data/process_data_for_gpt.py of the paper's repository makes of a record.

    The text before the attribute's first exact occurrence (inside a word or not), or the whole sentence if there is
    none, followed by the attribute. The notebook joins them with two spaces; we use one.
    """
    context = record.sentence.split(record.attribute)[0].strip()
    if not context:
        return "attribute begins the sentence"
    sentence = f"{context} {record.attribute}"
    return _triplet(record, sentence, len(context) + 1, len(sentence))


def _triplet(record: Record, sentence: str, start: int, stop: int) -> Triplet:
    assert same_word(sentence[start:stop], record.attribute), (sentence, record.attribute)
    return Triplet(
        sentence, record.target, record.attribute, record.bias, record.source, start, stop, record.stereotype,
        record.unrelated,
    )  # fmt: skip
