"""What is wrong with a file of triplets: every bad line by its number, and measures of the whole."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from debias.data import quality
from debias.data.leakage import Index
from debias.data.triplets import read_text, strict
from debias.records import Triplet, UserError

Level = Literal["error", "warning", "ok"]
FIELDS = ("sentence", "target", "attribute")
MOST_OFTEN = {"target": 0.03, "attribute": 0.03, "opening": 0.01}  # largest share of one item, of 500 records and more
FEW = 500  # below, shares of one item say little
EXAMPLES = 5


class Record(NamedTuple):
    """One record as the file has it, and the place to find it at: a line, or an item of a JSON list."""

    place: int
    sentence: str
    target: str
    attribute: str
    bias: str


@dataclass
class Finding:
    """One kind of fault: `error` cannot be trained on, `warning` is beyond a bound; `places` are lines or items."""

    name: str
    level: Level
    count: int
    places: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@dataclass
class Leak:
    """How much of one benchmark is in the file: exact and near repeats, and the share of targets it asks about."""

    benchmark: str
    exact: int
    near: int
    places: list[int]
    examples: list[str]
    target_overlap: float | None  # None: the benchmark names no targets


@dataclass
class Diagnosis:
    """Everything that is known about a file. `measures` are shares from 0 to 1 unless their name says otherwise."""

    path: str
    records: int
    usable: int
    findings: list[Finding]
    measures: dict[str, float]
    common: dict[str, list[tuple[str, int]]]
    leaks: list[Leak]
    unread: list[str] = field(default_factory=list)  # benchmarks that could not be read
    loss: dict[str, Any] | None = None

    @property
    def passes(self) -> bool:
        """No record that cannot be trained on, and nothing of a benchmark."""
        return not any(f.level == "error" and f.count for f in self.findings) and not any(
            leak.exact or leak.near for leak in self.leaks
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passes": self.passes}


def examine(path: Path, bias: str = "", indices: Iterable[Index] = (), unread: Sequence[str] = ()) -> Diagnosis:
    """Examine a file of triplets.

    Args:
        bias: of records that name none.
        indices: the benchmarks to search it for; none when empty.
        unread: names of benchmarks that should have been searched but could not be read.

    Raises:
        UserError: the file cannot be read at all. Single bad lines are findings.
    """
    records, broken = _read(path, bias)
    return diagnose(str(path), records, broken, indices, unread)


def diagnose(
    name: str,
    records: Sequence[Record],
    broken: Sequence[tuple[int, str]] = (),
    indices: Iterable[Index] = (),
    unread: Sequence[str] = (),
) -> Diagnosis:
    """Examine records; `broken` are the places that hold none, with the reason."""
    usable = sum(usable_triplet(r) is not None for r in records)
    findings = [
        Finding(
            "not a record",
            "error" if broken else "ok",
            len(broken),
            [p for p, _ in broken],
            [f"{p}: {why}" for p, why in broken][:5],
        ),
        *(_finding(name, level, records, test) for name, level, test in CHECKS),
        *_repeats(records),
        *_too_often(records),
    ]
    common = {what: _common(records, what) for what in ("target", "attribute", "bias", "opening")}
    return Diagnosis(
        name, len(records), usable, findings, _measures(records), common,
        [_leak(records, index) for index in indices], list(unread),
    )  # fmt: skip


def _told(broken: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{place}: {reason}" for place, reason in broken[:EXAMPLES]]


def of_triplets(name: str, triplets: Iterable[Triplet]) -> Diagnosis:
    """Examine training triplets that were loaded already (no search for leakage); plain texts have no attribute."""
    rows = [Record(i, t.sentence, t.target, t.attribute, t.bias) for i, t in enumerate(triplets, 1) if t.attribute]
    return diagnose(name, rows)


def usable_triplet(record: Record) -> Triplet | None:
    """The record as a triplet that can be trained on, or None."""
    found = strict({"sentence": record.sentence, "target": record.target, "attribute": record.attribute,
                    "bias": record.bias, "source": ""})  # fmt: skip
    return found if isinstance(found, Triplet) else None


# ---------------------------------------------------------------- single records


def _within(word: str, sentence: str) -> bool:
    return word.lower() in sentence.lower()


def _whole(word: str, sentence: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE) is not None


def _before(record: Record) -> bool:
    """The attribute's first place stands before the target's."""
    sentence = record.sentence.lower()
    attribute, target = sentence.find(record.attribute.lower()), sentence.find(record.target.lower())
    return 0 <= attribute < target


def _check(word: Callable[[Record], str]) -> tuple[Callable[[Record], bool], ...]:
    """Absent; only inside a longer word; not in this case (so that an exact search fails)."""
    return (
        lambda r: not _within(word(r), r.sentence),
        lambda r: _within(word(r), r.sentence) and not _whole(word(r), r.sentence),
        lambda r: word(r) not in r.sentence,
    )


_ATTRIBUTE, _TARGET = _check(lambda r: r.attribute), _check(lambda r: r.target)

CHECKS: tuple[tuple[str, Level, Callable[[Record], bool]], ...] = (
    ("cannot be trained on", "error", lambda r: usable_triplet(r) is None),
    ("attribute absent", "error", _ATTRIBUTE[0]),
    ("attribute only inside a word", "error", _ATTRIBUTE[1]),
    ("attribute in another case", "warning", _ATTRIBUTE[2]),
    ("target absent", "error", _TARGET[0]),
    ("target only inside a word", "error", _TARGET[1]),
    ("target in another case", "ok", _TARGET[2]),
    ("attribute before target", "warning", _before),
    ("attribute of several words", "warning", lambda r: " " in r.attribute),
    ("target of several words", "ok", lambda r: " " in r.target),
)


def _finding(name: str, level: Level, records: Sequence[Record], test: Callable[[Record], bool]) -> Finding:
    found = [r for r in records if test(r)]
    examples = [f"{r.place}: {r.sentence} [{r.target} / {r.attribute}]" for r in found[:EXAMPLES]]
    return Finding(name, level if found else "ok", len(found), [r.place for r in found], examples)


# ---------------------------------------------------------------- the whole


def _repeats(records: Sequence[Record]) -> Iterator[Finding]:
    """Sentences that repeat an earlier one, to the letter or nearly."""
    known = quality.NearDuplicates()
    first: dict[str, int] = {}
    exact, near = [], []
    for r in records:
        if r.sentence in first:
            exact.append((r.place, f"{r.place}: repeats {first[r.sentence]}: {r.sentence}"))
            continue
        first[r.sentence] = r.place
        if found := known.nearest(r.sentence):
            near.append((r.place, f"{r.place}: nearly repeats {found.key}: {r.sentence} ~ {found.sentence}"))
        known.add(str(r.place), r.sentence)
    for name, found_at in (("repeated sentence", exact), ("nearly repeated sentence", near)):
        places, examples = [p for p, _ in found_at], [text for _, text in found_at[:EXAMPLES]]
        yield Finding(name, "warning" if found_at else "ok", len(found_at), places, examples)


def _item(record: Record, what: str) -> str:
    return quality.opening(record.sentence) if what == "opening" else str(getattr(record, what)).lower()


def _too_often(records: Sequence[Record]) -> Iterator[Finding]:
    for what, bound in MOST_OFTEN.items():
        counts = Counter(_item(r, what) for r in records)
        limit = max(bound * len(records), bound * FEW)
        often = [(item, count) for item, count in counts.most_common() if count > limit]
        shown = [f"{item}: {count} times" for item, count in often[:EXAMPLES]]
        yield Finding(f"{what} in over {bound:.0%}", "warning" if often else "ok", len(often), [], shown)


def _common(records: Sequence[Record], what: str) -> list[tuple[str, int]]:
    return Counter(_item(r, what) for r in records).most_common(10)


def _measures(records: Sequence[Record]) -> dict[str, float]:
    sentences = [r.sentence for r in records]
    kinds = [quality.polarity(sentence) for sentence in sentences]
    n = max(1, len(records))
    return {
        **{f"distinct-{k}": quality.distinct_n(sentences, k) for k in (1, 2, 3, 4)},
        "self-BLEU (0 to 100, 100 sentences)": quality.self_bleu(sentences),
        "words a sentence": sum(len(quality.words(s)) for s in sentences) / n,
        "different targets": float(len({r.target.lower() for r in records})),
        "different attributes": float(len({r.attribute.lower() for r in records})),
        "concessive": sum(kind.concessive for kind in kinds) / n,
        "negated": sum(kind.negated for kind in kinds) / n,
    }


def _leak(records: Sequence[Record], index: Index) -> Leak:
    found = [(r, near) for r in records if (near := index.sentences.nearest(r.sentence))]
    exact = sum(near.similarity == 1 for _, near in found)
    shown = [f"{r.place}: {r.sentence} ~ {near.sentence}" for r, near in found[:EXAMPLES]]
    overlap = sum(r.target.lower() in index.targets for r in records) / max(1, len(records))
    places = [r.place for r, _ in found]
    return Leak(index.name, exact, len(found) - exact, places, shown, overlap if index.targets else None)


# ---------------------------------------------------------------- reading and mending


def _read(path: Path, bias: str) -> tuple[list[Record], list[tuple[int, str]]]:
    """All records, and the places that hold none with the reason. A JSON list that is no JSON is an error."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty; write one triplet a line, or choose another file")
    records, broken = [], []
    for place, row in _rows(path, text):
        if isinstance(row, list) and len(row) == len(FIELDS):
            row = dict(zip(FIELDS, row, strict=True))
        if isinstance(row, ValueError):
            broken.append((place, f"not JSON ({row})"))
        elif not isinstance(row, dict):
            broken.append((place, f"neither an object nor a list of three: {str(row)[:60]!r}"))
        elif wrong := [k for k in FIELDS if not isinstance(row.get(k), str) or not row[k].strip()]:
            broken.append((place, f"{', '.join(wrong)}: missing, empty or not a text"))
        else:
            sentence, target, attribute = (row[k].strip() for k in FIELDS)
            records.append(Record(place, sentence, target, attribute, str(row.get("bias") or bias)))
    return records, broken


def _rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
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


def mended(path: Path, bias: str, diagnosis: Diagnosis) -> tuple[list[Record], Counter[str]]:
    """The records worth keeping, and how many were dropped for which reason (the first that applies)."""
    records, broken = _read(path, bias)
    by_name = {f.name: set(f.places) for f in diagnosis.findings}
    leaked = {place for leak in diagnosis.leaks for place in leak.places}
    kept: list[Record] = []
    dropped = Counter({"not a record": len(broken)}) if broken else Counter[str]()
    for r in records:
        for reason, places in (
            ("cannot be trained on", by_name["cannot be trained on"]),
            ("repeated sentence", by_name["repeated sentence"]),
            ("nearly repeated sentence", by_name["nearly repeated sentence"]),
            ("of a benchmark", leaked),
        ):
            if r.place in places:
                dropped[reason] += 1
                break
        else:
            kept.append(r)
    return kept, dropped


def histogram(losses: Sequence[float], bins: int = 12) -> dict[str, Any]:
    """Mean, quartiles and a histogram of losses in nats per attribute token."""
    import numpy as np

    counts, edges = np.histogram(losses, bins=bins)
    q1, median, q3 = np.quantile(losses, [0.25, 0.5, 0.75])
    return {
        "mean": float(np.mean(losses)), "q1": float(q1), "median": float(median), "q3": float(q3),
        "counts": counts.tolist(), "edges": [round(float(e), 3) for e in edges],
    }  # fmt: skip
