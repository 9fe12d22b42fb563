"""What is wrong with a file of triplets: every bad line by its number, and measures of the whole file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from debias.data import quality
from debias.data.counterparts import COUNTERPARTS, misfits
from debias.data.leakage import Index
from debias.data.triplets import Broken, Record, read_records, strict
from debias.data.word_borders import anywhere, composed, whole_word
from debias.records import Triplet
from debias.wording import counted

Level = Literal["error", "warning", "ok"]
MOST_OFTEN = {"target": 0.03, "attribute": 0.03, "opening": 0.01}  # largest share of the records that may have the same
FEW = 500  # a share of fewer records says little, so small files are allowed as many repeats as a file of this size
EXAMPLES = 5  # shown for each finding
CRITERIA = ("fluency", "breaks_stereotype", "respectful")  # columns with a judge's scores, 1 to 5


@dataclass
class Finding:
    """One kind of fault: an `error` makes a record unusable, a `warning` exceeds a bound. Places are lines or items."""

    name: str
    level: Level
    count: int
    places: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@dataclass
class Leak:
    """How much of one benchmark is in the file: exact and near repeats, and the share of targets it tests."""

    benchmark: str
    sentences: int  # distinct ones in the benchmark
    exact: int
    near: int
    places: list[int]
    examples: list[str]
    target_overlap: float | None  # None: the benchmark names no targets


@dataclass
class Diagnosis:
    """All findings about a file. `measures` are shares from 0 to 1 unless their name says otherwise."""

    path: str
    records: int
    usable: int
    findings: list[Finding]
    measures: dict[str, float]
    common: dict[str, list[tuple[str, int]]]
    leaks: list[Leak]
    unread: list[str] = field(default_factory=list)  # benchmarks that could not be read
    loss: dict[str, Any] | None = None
    scores: dict[str, dict[int, int]] = field(default_factory=dict)  # by criterion: score -> records

    @property
    def passes(self) -> bool:
        """Whether every record can be trained on and none repeats a benchmark."""
        return all(f.level != "error" for f in self.findings) and not any(k.exact or k.near for k in self.leaks)

    def add_refused(self, refused: Sequence[tuple[Record, str]]) -> None:
        """Add usable records on which a certain model cannot be trained, each with its reason."""
        found = [(r.place, f"{why}, at {_shown(r)}") for r, why in refused]
        self.findings.append(_finding("cannot be trained on with this model", "error", found))
        self.usable -= len(refused)

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as plain values."""
        return {**asdict(self), "passes": self.passes}


def examine(path: Path, bias: str = "", indices: Iterable[Index] = (), unread: Sequence[str] = ()) -> Diagnosis:
    """Examine a file of triplets.

    Args:
        bias: for records that do not name one.
        indices: the benchmarks to compare it with; none when empty.
        unread: names of benchmarks that should have been compared but could not be read.

    Raises UserError if the file cannot be read at all. Single bad lines are findings.
    """
    records, broken = read_records(path, bias)
    return diagnose(str(path), records, broken, indices, unread)


def diagnose(
    name: str,
    records: Sequence[Record],
    broken: Sequence[Broken] = (),
    indices: Iterable[Index] = (),
    unread: Sequence[str] = (),
) -> Diagnosis:
    """Examine records; `broken` are the places that do not hold one."""
    unusable = [(r, why) for r in records if isinstance(why := strict(r), str)]
    return Diagnosis(
        path=name,
        records=len(records),
        usable=len(records) - len(unusable),
        findings=[
            _finding("not a record", "error", [(b.place, f"{b.place}: {b.reason}") for b in broken]),
            _finding("cannot be trained on", "error", [(r.place, f"{why}, at {_shown(r)}") for r, why in unusable]),
            *(_of_records(name, level, records, test) for name, level, test in CHECKS),
            *_counterparts(records),
            *_repeats(records),
            *_too_often(records),
        ],
        measures=_measures(records),
        common={what: _common(records, what) for what in ("target", "attribute", "bias", "opening")},
        leaks=[_leak(records, index) for index in indices],
        unread=list(unread),
        scores=_scores(records),
    )


def of_triplets(name: str, triplets: Iterable[Triplet]) -> Diagnosis:
    """Examine loaded triplets, without a search for leakage; texts without an attribute are left out."""
    rows = [Record(*t[:4], place=i) for i, t in enumerate(triplets, 1) if t.attribute]
    return diagnose(name, rows)


# ---------------------------------------------------------------- single records


# These rules are looser than those of training (`strict`), where `self` is not a word of `self-made`: they count what
# a plain search would miss. A record that training accepts has no error here.


def _within(word: str, sentence: str) -> bool:
    return anywhere(word).search(sentence) is not None


def _whole(word: str, sentence: str) -> bool:
    return whole_word(word, sentence, hyphen_joins=False) is not None


def _before(record: Record) -> bool:
    """Whether the attribute first occurs before the target does."""
    attribute, target = (anywhere(word).search(record.sentence) for word in (record.attribute, record.target))
    return attribute is not None and target is not None and attribute.start() < target.start()


def _check(word: Callable[[Record], str]) -> tuple[Callable[[Record], bool], ...]:
    """Tests of a word: absent; only inside a longer word; in another case, where an exact search fails."""
    return (
        lambda r: not _within(word(r), r.sentence),
        lambda r: _within(word(r), r.sentence) and not _whole(word(r), r.sentence),
        lambda r: _within(word(r), r.sentence) and composed(word(r)) not in composed(r.sentence),
    )


_ATTRIBUTE, _TARGET = _check(lambda r: r.attribute), _check(lambda r: r.target)

CHECKS: tuple[tuple[str, Level, Callable[[Record], bool]], ...] = (
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


def _of_records(name: str, level: Level, records: Sequence[Record], test: Callable[[Record], bool]) -> Finding:
    found = [r for r in records if test(r)]
    return _finding(name, level, [(r.place, _shown(r)) for r in found])


def _shown(r: Record) -> str:
    return f"{r.place}: {r.sentence} [{r.target} / {r.attribute}]"


def _counterparts(records: Sequence[Record]) -> Iterator[Finding]:
    """Counterparts that do not fit in the attribute's place, if there are any counterparts."""
    if any(r.stereotype or r.unrelated for r in records):
        wrong = [(r, "; ".join(misfits(t))) for r in records if isinstance(t := strict(r), Triplet) and misfits(t)]
        shown = [(r.place, f"{why}, at {_shown(r)} ({r.stereotype} / {r.unrelated})") for r, why in wrong]
        yield _finding("counterpart does not fit", "warning", shown)


def _finding(name: str, level: Level, found: Sequence[tuple[int, str]]) -> Finding:
    """A finding from places and their descriptions, of which the first few become examples."""
    places = [place for place, _ in found]
    return Finding(name, level if found else "ok", len(found), places, [text for _, text in found[:EXAMPLES]])


# ---------------------------------------------------------------- the whole


def _repeats(records: Sequence[Record]) -> Iterator[Finding]:
    """Sentences that repeat an earlier one, exactly or nearly."""
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
    yield _finding("repeated sentence", "warning", exact)
    yield _finding("nearly repeated sentence", "warning", near)


def _item(record: Record, what: str) -> str:
    return quality.opening(record.sentence) if what == "opening" else str(getattr(record, what)).lower()


def _too_often(records: Sequence[Record]) -> Iterator[Finding]:
    for what, bound in MOST_OFTEN.items():
        counts = Counter(_item(r, what) for r in records)
        often = [(item, n) for item, n in counts.most_common() if n > bound * max(len(records), FEW)]
        shown = [f"{item}: {counted(n, 'time')}" for item, n in often[:EXAMPLES]]
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
        **{
            f"with {name}": count / n
            for name in COUNTERPARTS
            if (count := sum(bool(getattr(r, name)) for r in records))
        },
    }


def _leak(records: Sequence[Record], index: Index) -> Leak:
    found = [(r, near) for r in records if (near := index.sentences.nearest(r.sentence))]
    exact = sum(near.similarity == 1 for _, near in found)
    asked = sum(r.target.lower() in index.targets for r in records) / max(1, len(records))
    return Leak(
        benchmark=index.name,
        sentences=len(index.sentences),
        exact=exact,
        near=len(found) - exact,
        places=[r.place for r, _ in found],
        examples=[f"{r.place}: {r.sentence} ~ {near.sentence}" for r, near in found[:EXAMPLES]],
        target_overlap=asked if index.targets else None,
    )


def _scores(records: Sequence[Record]) -> dict[str, dict[int, int]]:
    """How many records have each score, for the criteria that a judge scored."""
    found = {}
    for name in CRITERIA:
        counts = Counter(score for r in records if type(score := r.row.get(name)) is int and 1 <= score <= 5)
        if counts:
            found[name] = {score: counts[score] for score in range(1, 6)}
    return found


# ---------------------------------------------------------------- a cleaned copy, and losses


def cleaned(
    records: Sequence[Record], broken: Sequence[Broken], indices: Iterable[Index] = ()
) -> tuple[list[Record], Counter[str]]:
    """The records worth keeping, and how many were dropped for each reason (the first that applies).

    Of sentences that repeat each other, exactly or nearly, the first usable one is kept.
    """
    indices, known = list(indices), quality.NearDuplicates()
    kept: list[Record] = []
    dropped = Counter({"not a record": len(broken)} if broken else {})
    for r in records:
        if isinstance(reason := strict(r), str):
            dropped[reason] += 1
        elif leak := next((index.name for index in indices if index.sentences.find(r.sentence)), None):
            dropped[f"in {leak}"] += 1
        elif near := known.nearest(r.sentence):
            dropped["repeated sentence" if near.similarity == 1 else "nearly repeated sentence"] += 1
        else:
            known.add(str(r.place), r.sentence)
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
