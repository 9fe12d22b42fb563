"""Training triplets: read from JSON Lines or the published JSON lists, checked, never silently mended."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from debias.records import Triplet, UserError

CORPORA = Path(__file__).resolve().parent.parent / "corpora"

Policy = Literal["strict", "as_published"]


class Checked(NamedTuple):
    """Triplets that can be trained on, how many records were dropped for which reason, and what a reader must know."""

    triplets: list[Triplet]
    dropped: Counter[str]
    notes: tuple[str, ...] = ()
    spent: Mapping[str, Any] = MappingProxyType({})  # tokens, dollars (None: unknown) and seconds of a chat model


class TripletFile:
    """A data source: one file of triplets, or our own corpus of the bias when no path is given.

    Args:
        bias: the social bias that the sentences address; also picks the corpus when `path` is empty.
        path: JSON Lines of objects, or one JSON list of `[sentence, target, attribute]`.
        policy: `strict` drops and counts records whose attribute does not stand after the target as a whole word;
            `as_published` does what the paper's script did (see `_as_published`).
    """

    def __init__(self, bias: str, path: str | None = None, policy: Policy = "strict") -> None:
        if policy not in ("strict", "as_published"):
            raise UserError(f"data.policy={policy!r} is unknown; choose strict or as_published")
        self.bias, self.policy = bias, policy
        self.path = Path(path).expanduser() if path else _corpus(bias)

    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes."""
        return hashlib.sha256(_read(self.path)).hexdigest()

    def load(self, seed: int = 0) -> Checked:
        """Read and check. Raises UserError when nothing is left to train on."""
        check = strict if self.policy == "strict" else _as_published
        triplets: list[Triplet] = []
        dropped: Counter[str] = Counter()
        for record in _records(self.path, self.bias):
            checked = check(record)
            if isinstance(checked, str):
                dropped[checked] += 1
            else:
                triplets.append(checked)
        if not triplets:
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the file is empty"
            raise UserError(f"{self.path}: no usable triplet is left ({reasons}); mend the file or choose another")
        return Checked(triplets, dropped)


def corpora() -> list[str]:
    """Names of the corpora that come with the program."""
    return sorted(path.stem for path in CORPORA.glob("*.jsonl"))


def whole_word(word: str) -> re.Pattern[str]:
    """Pattern of `word` as a whole word, ignoring case; `self` is not a word of `self-made` or `selfish`."""
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE)


def _corpus(bias: str) -> Path:
    path = CORPORA / f"{bias}.jsonl"
    if not path.is_file():
        raise UserError(
            f"there is no corpus of ours for data.bias={bias!r} (there is one for: {', '.join(corpora())}); "
            "name a file with data.path=FILE"
        )
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the triplets ({error.strerror}); check the path") from error


def read_text(path: Path) -> str:
    """A file of triplets as text. Raises UserError when it cannot be read or is no UTF-8."""
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _records(path: Path, bias: str) -> Iterator[dict[str, str]]:
    """Records of a file as `{sentence, target, attribute, bias, source}`; UserError names the line of a bad one."""
    text = read_text(path)
    for place, raw in _rows(path, text):
        row: Any = raw
        if isinstance(row, list) and len(row) == 3:
            row = dict(zip(("sentence", "target", "attribute"), row, strict=True))
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object or [sentence, target, attribute], found {str(raw)[:60]!r}")
        for key in ("sentence", "target", "attribute"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(f"{place}: {key!r} is missing, empty or not a text; add it or delete the record")
        stereotype = row.get("stereotype")
        if stereotype is not None and (not isinstance(stereotype, str) or not stereotype.strip()):
            raise UserError(f"{place}: 'stereotype' is empty or not a text; mend it or leave it out")
        yield {
            **({"stereotype": stereotype.strip()} if stereotype else {}),
            "sentence": row["sentence"].strip(),
            "target": row["target"].strip(),
            "attribute": row["attribute"].strip(),
            "bias": str(row.get("bias") or bias),
            "source": str(row.get("source") or path.name),
        }


def _rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("[") and path.suffix != ".jsonl":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); mend this line") from error
        yield from ((f"{path}: item {i}", item) for i, item in enumerate(items, start=1))
        return
    for i, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{i}", json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{i}: not JSON ({error.msg}); mend or delete this line") from error


def strict(record: dict[str, str]) -> Triplet | str:
    """The triplet with its attribute located, or the reason why it cannot be trained on."""
    sentence = record["sentence"]
    target = whole_word(record["target"]).search(sentence)
    if target is None:
        return "target not in the sentence"
    attribute = whole_word(record["attribute"])
    if attribute.search(sentence) is None:
        return "attribute not in the sentence"
    found = attribute.search(sentence, target.end())
    if found is None:
        return "attribute before the target"
    return Triplet(**record, start=found.start(), stop=found.end())


def _as_published(record: dict[str, str]) -> Triplet | str:
    """What Data/process_data_for_gpt.py of the paper's repository makes of a record.

    The text before the attribute's first exact occurrence (inside a word or not), or the whole sentence where there is
    none, followed by the attribute. The notebook joins them by two spaces; we by one.
    """
    context = record["sentence"].split(record["attribute"])[0].strip()
    if not context:
        return "attribute begins the sentence"
    sentence = f"{context} {record['attribute']}"
    return Triplet(**{**record, "sentence": sentence}, start=len(context) + 1, stop=len(sentence))
