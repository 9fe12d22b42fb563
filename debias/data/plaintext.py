"""Plain text as training data: passages from the data wheels or a file, cut into sentences."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from debias import assets
from debias.data.rows import is_table, read_text, rows
from debias.records import Triplet, UserError

SHORTEST, LONGEST = 4, 60  # words of a sentence; longer ones would make batches large

_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'`“‘])(?:[A-Z]|(?:[A-Z]\.)+[A-Z]?|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Rev|Hon|Gen|Col|Capt|Lt|Sgt|Maj|Gov|Sen|Rep|"
    r"No|Vol|vs|cf|ca|c|Inc|Ltd|Co|Corp|Ave|Mt|Ft|e\.g|i\.e|etc)\.$"
)
_END = re.compile(r"[.!?][\"'’”)\]]*\s+(?=[\"'`“‘(\[]*[A-Z0-9])")


class Text:
    """Passages of text to train on: GAP development and validation, BOLD, or a file.

    Excludes GAP test, on which perplexity is measured, and BOLD's professions, which the KL term uses.

    Args:
        name: `gap` (Wikipedia passages about women and men), `bold` (Wikipedia sentences about groups of the bias), or
            the path of a text file, or of rows with a column `text`; if None, `gap` for gender and `bold` for others.
        bias: selects a part of BOLD.
    """

    def __init__(self, name: str | None, bias: str) -> None:
        self.name = name or ("gap" if bias == "gender" else "bold")
        self.assets: list[str] = []
        if self.name == "gap":
            self.assets = ["gap-development", "gap-validation"]
        elif self.name == "bold":
            if f"bold-{bias}" not in assets.ASSETS:
                raise UserError(
                    f"BOLD has no part for data.bias={bias!r}; choose gender, race or religion, or text=FILE"
                )
            self.assets = [f"bold-{bias}"]

    def fingerprint(self) -> str:
        """SHA-256 of the text."""
        digests = [assets.ASSETS[name].sha256 for name in self.assets]
        return " ".join(digests) or hashlib.sha256("\n".join(self._read()).encode()).hexdigest()

    def passages(self) -> Iterator[str]:
        """The passages in order."""
        for name in self.assets:
            yield from read_passages(name)
        if not self.assets:
            yield from self._read()

    def _read(self) -> list[str]:
        """Running text as one passage, or the column `text` of a file of rows."""
        path = Path(self.name).expanduser()
        if not is_table(path):
            return [read_text(path)]
        passages = []
        for row in rows(path):
            text = row.content.get("text") if isinstance(row.content, dict) else None
            if not isinstance(text, str):
                raise UserError(f"{row.where}: there is no text here; the passages must be in a column `text`")
            passages.append(text)
        return passages


def read_passages(name: str) -> Iterator[str]:
    """The passages of a part of GAP or BOLD, named as an asset, in order."""
    path = assets.locate(name)
    if name.startswith("gap-"):
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            yield from (row["Text"] for row in table)
    else:
        groups = json.loads(path.read_text(encoding="utf-8"))
        yield from (text for articles in groups.values() for texts in articles.values() for text in texts)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text: cut at line ends, and after `.`, `!` or `?` before a capital or a digit.

    Abbreviations and initials do not end a sentence; WikiText's punctuation with spaces around it does.
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if not _ABBREVIATION.search(line[: match.start() + 1]):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def usable(sentences: Iterable[str], dropped: Counter[str]) -> Iterator[str]:
    """Whole sentences of usual length that have not come before; the others are counted in `dropped`."""
    seen: set[str] = set()
    for sentence in sentences:
        words = len(sentence.split())
        if not re.search(r"[.!?][\"'’”)\]\s]*$", sentence) or words < SHORTEST:
            dropped["not a whole sentence (such as a heading)"] += 1
        elif words > LONGEST:
            dropped[f"longer than {LONGEST} words"] += 1
        elif sentence in seen:
            dropped["repeats a sentence"] += 1
        else:
            seen.add(sentence)
            yield sentence


def whole(sentence: str, bias: str, source: str) -> Triplet:
    """A sentence as a triplet without target and attribute: every token is scored."""
    return Triplet(sentence, "", "", bias, source, 0, len(sentence))
