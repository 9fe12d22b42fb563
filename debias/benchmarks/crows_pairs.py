"""CrowS-Pairs (Nangia et al. 2020): does the model prefer the more stereotyping of two nearly identical sentences?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import WHOLE, check_biases, left_out, same_texts, strata
from debias.benchmarks.statistics import Comparison, compare, ratio
from debias.data.rows import read_table
from debias.records import Candidate, Count, Tokens, UserError
from debias.scoring.protocols import Protocol


class Pair(NamedTuple):
    """Two sentences that differ in the group they are about, or in what they say of it."""

    example: str
    bias: str
    kind: str  # `stereo` or `antistereo`: whether the first sentence states a stereotype or the second violates one
    more: str
    less: str


class PairFile(NamedTuple):
    """The pairs of a file, and how many of its rows are left out for each reason."""

    pairs: list[Pair]
    left_out: Counter[str]
    total: int


class CrowsPairs(LikelihoodBenchmark):
    """1,508 pairs on nine biases. SS is the percentage of pairs whose more stereotyping sentence is likelier.

    Args:
        protocol: turns a sentence into a likelihood.
        path: another file in the authors' format, also a translation; null means the published one.
        limit: pairs per bias, a fixed sample; null means all.
        whole: biases scored in full, whatever `limit` is; those in a list must be there.
        n_resamples: bootstrap resamples.
    """

    name = "crows_pairs"

    def __init__(
        self,
        protocol: Protocol,
        path: str | None = None,
        limit: Count | None = None,
        whole: Sequence[str] | str = (),
        n_resamples: Count = 9999,
    ) -> None:
        super().__init__(protocol, path, limit, n_resamples)
        self.whole = whole if isinstance(whole, str) else list(whole)

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair."""
        return [
            Candidate(p.example, candidate, p.bias, p.kind, text)
            for p in self._pairs
            for candidate, text in (("sent_more", p.more), ("sent_less", p.less))
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS overall, per bias, and for each kind of pair; the resampled unit is the pair.

        In a `stereo` pair one sentence demonstrates a stereotype, in an `antistereo` pair one sentence violates it.
        Overall, each bias counts by its number of pairs in the whole benchmark.
        """
        pairs = [metrics.crows_pairs(scores, self.protocol.ties) for scores in (base, debiased)]
        first = pairs[0]
        groups = {"overall": ("SS", first["ss"].notna())}
        groups |= {bias: ("SS", first["bias"] == bias) for bias in sorted(first["bias"].unique())}
        kinds = {f"overall, {kind}": (f"SS-{kind}", first["target"] == kind) for kind in ("stereo", "antistereo")}
        sampled = strata(first["bias"].to_numpy(), self.limit, lambda: Counter(p.bias for p in self._file.pairs))
        for name, (metric, chosen) in {**groups, **kinds}.items():
            if not chosen.any():
                continue
            bias, n = name.partition(",")[0], int(chosen.sum())
            if sampled is None or bias != "overall":
                before, after = ((p["ss"].to_numpy()[chosen],) for p in pairs)
                yield compare(
                    bias, metric, 50.0, n, metrics.mean_of_first, before, after, self.n_resamples,
                    pairs=self.protocol.ties == 0,
                )  # fmt: skip
            else:
                one, two = ((p["ss"].to_numpy() * chosen.to_numpy(), chosen.to_numpy()) for p in pairs)
                yield compare(bias, metric, 50.0, n, ratio, one, two, self.n_resamples, strata=sampled)

    @property
    def notes(self) -> list[str]:
        """How many pairs of the file are left out."""
        return [*super().notes, *left_out(self.name, self._file.left_out, self._file.total)]

    @cached_property
    def _pairs(self) -> list[Pair]:
        names = [self.whole] if isinstance(self.whole, str) else self.whole
        renamed = ["race-color" if name == "race" else name for name in names]
        if not isinstance(self.whole, str):
            check_biases(renamed, (pair.bias for pair in self._file.pairs), "eval.crows_pairs.whole")
        return self.sample(self._file.pairs, lambda p: p.bias, lambda p: p.example, renamed)

    @cached_property
    def _file(self) -> PairFile:
        return read_pairs(self.path or assets.locate("crows_pairs"))


COLUMNS = ("sent_more", "sent_less", "bias_type")
IDS = ("", "id", "Unnamed: 0", "index")  # names of the first column in the authors' file and in its translations


def read_pairs(path: Path) -> PairFile:
    """The pairs of a file in the authors' format or a translation of it.

    Columns are separated by commas, semicolons or tabs. Where ids are missing or repeat, rows are numbered instead.
    Raises UserError, which names the column or line, if the file cannot be read.
    """
    header, table = read_table(path)
    if missing := [name for name in COLUMNS if name not in header]:
        raise UserError(
            f"{path} is not a CrowS-Pairs file: the column {', '.join(missing)} is missing; it has "
            f"{', '.join(name or '(no name)' for name in header)}; check eval.crows_pairs.path"
        )
    rows = [(row, dict(zip(header, row.content, strict=False))) for row in table]
    ids = [next((cells[name] for name in IDS if cells.get(name)), "") for _, cells in rows]
    if len(set(ids)) < len(ids) or "" in ids:
        ids = [str(number) for number in range(len(rows))]
    pairs, reasons = [], dict[str, list[int]]()
    for example, (row, cells) in zip(ids, rows, strict=True):
        more, less, bias = (cells.get(name, "") for name in COLUMNS)
        if not (more.strip() and less.strip() and bias.strip()):
            reasons.setdefault("incomplete", []).append(row.place)
        elif bias == WHOLE:
            reasons.setdefault(f"with a bias called {WHOLE!r}, which is the name of all together", []).append(row.place)
        elif same_texts((more, less)):
            reasons.setdefault("with two identical sentences", []).append(row.place)
        else:
            pairs.append(Pair(example, bias, cells.get("stereo_antistereo", ""), more, less))
    counts = Counter({f"{why} ({_lines(places)})": len(places) for why, places in reasons.items()})
    if not pairs:
        raise UserError(f"{path} has no pair to compare ({', '.join(counts) or 'it is empty'}); choose another file")
    return PairFile(pairs, counts, len(rows))


def _lines(places: Sequence[int]) -> str:
    shown = ", ".join(map(str, places[:5]))
    return f"line{'s' if len(places) > 1 else ''} {shown}{', ...' if len(places) > 5 else ''}"
