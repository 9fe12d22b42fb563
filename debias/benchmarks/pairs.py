"""Sentence pairs of one's own: is the more stereotyping sentence likelier? The statistics of CrowS-Pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import WHOLE
from debias.benchmarks.statistics import Comparison, compare, compare_means
from debias.data.rows import rows
from debias.records import Candidate, Count, Tokens, UserError
from debias.scoring.protocols import Protocol
from debias.wording import counted

# Columns that are found by their names, in lower case with _ for blanks and hyphens.
MORE = ("sent_more", "more", "more_stereotyping", "more_stereotypical", "stereotype", "stereotyped", "stereotypical")
LESS = (
    "sent_less", "less", "less_stereotyping", "less_stereotypical", "anti_stereotype", "antistereotype",
    "anti_stereotyped", "anti_stereotypical",
)  # fmt: skip
BIAS, GROUP, CLUSTER = ("bias", "bias_type"), ("group",), ("cluster",)
SHOWN = 5  # bad rows that a note names


class Pair(NamedTuple):
    """Two sentences, the line or row that they come from, and what the file says about them."""

    place: int
    more: str
    less: str
    bias: str
    group: str
    cluster: str  # pairs of the same cluster are resampled together


class Pairs(LikelihoodBenchmark):
    """The pairs of a file. SS is the percentage of pairs whose more stereotyping sentence is likelier.

    Args:
        protocol: turns a sentence into a likelihood.
        path: a file in a format of `data.rows` (CSV, TSV, JSON Lines, Parquet, ...) with a column for each sentence.
        name: what tables and the headline call the pairs.
        more, less, bias, group, cluster: the names of columns; null means that they are found by their usual names.
        limit: the first so many pairs; null means all.
        n_resamples: bootstrap resamples of pairs or, where there is a column for them, of clusters.
    """

    def __init__(
        self,
        protocol: Protocol,
        path: str,
        name: str = "pairs",
        more: str | None = None,
        less: str | None = None,
        bias: str | None = None,
        group: str | None = None,
        cluster: str | None = None,
        limit: Count | None = None,
        n_resamples: Count = 9999,
    ) -> None:
        super().__init__(protocol, path, limit, n_resamples)
        self.name = str(name)
        self.columns = {"more": more, "less": less, "bias": bias, "group": group, "cluster": cluster}
        self._bad: list[str] = []

    @property
    def notes(self) -> list[str]:
        """The rows that are not pairs, and the pairs that `limit` leaves out."""
        pairs, notes = self._pairs, []
        if self._bad:
            more = f" and {len(self._bad) - SHOWN} more" if len(self._bad) > SHOWN else ""
            bad = counted(len(self._bad), "row is", "rows are")
            notes.append(f"{self.name}: {bad} left out: {'; '.join(self._bad[:SHOWN])}{more}")
        if self.limit is not None and len(pairs) > self.limit:
            of = counted(len(pairs), "pair")
            notes.append(f"{self.name}: the first {self.limit:,} of {of}, because of eval.pairs.limit")
        return notes

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair; the example is the pair's line, and its cluster if it has one."""
        return [
            Candidate(f"{p.place} of {p.cluster}" if p.cluster else str(p.place), candidate, p.bias, p.group, text)
            for p in self._pairs[: self.limit]
            for candidate, text in (("sent_more", p.more), ("sent_less", p.less))
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS overall, per bias and per group; the resampled unit is the pair, or the cluster if the file has them."""
        pairs = [metrics.crows_pairs(scores, self.protocol.ties) for scores in (base, debiased)]
        first = pairs[0]
        cluster = first["example"].str.partition(" of ")[2].to_numpy()
        chosen = {("overall", "SS"): np.full(len(first), True)}
        for column, named in (("bias", lambda b: (b, "SS")), ("target", lambda g: ("overall", f"SS, {g}"))):
            if first[column].nunique() > 1 or (column == "bias" and first[column].iloc[0]):
                values = sorted(value for value in first[column].unique() if value)
                chosen |= {named(value): (first[column] == value).to_numpy() for value in values}
        for (bias, metric), of in chosen.items():
            before, after = (p["ss"].to_numpy()[of] for p in pairs)
            if all(cluster):
                yield compare_means(bias, metric, 50.0, before, after, cluster[of], self.n_resamples)
            else:
                yield compare(
                    bias, metric, 50.0, int(of.sum()), metrics.mean_of_first, (before,), (after,), self.n_resamples,
                    pairs=self.protocol.ties == 0,
                )  # fmt: skip

    @cached_property
    def _pairs(self) -> list[Pair]:
        assert self.path is not None
        found = [(row.place, row.content) for row in rows(self.path)]
        header = [
            str(name) for name in dict.fromkeys(name for _, row in found if isinstance(row, dict) for name in row)
        ]
        usual = {"more": MORE, "less": LESS, "bias": BIAS, "group": GROUP, "cluster": CLUSTER}
        columns = {key: self._column(key, names, header) for key, names in usual.items()}
        pairs = []
        for place, row in found:
            texts = {key: _text(row, name) for key, name in columns.items()} if isinstance(row, dict) else {}
            if fault := _fault(texts) if texts else str(row):
                self._bad.append(f"{self.path.name}:{place}: {fault}")
            else:
                pairs.append(Pair(place, *(texts[key] for key in ("more", "less", "bias", "group", "cluster"))))
        if not pairs:
            first = f": {self._bad[0]}" if self._bad else ""
            raise UserError(f"{self.path}: this file holds no pairs{first}; write two sentences in each row")
        if columns["cluster"]:  # a pair that names no cluster is one of its own
            pairs = [p if p.cluster else p._replace(cluster=f"row {p.place}") for p in pairs]
        return pairs

    def _column(self, key: str, usual: Sequence[str], header: Sequence[str]) -> str | None:
        """The column to read; None for an optional one that is not there. Raises UserError for the others."""
        named = self.columns[key]
        plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(header)}
        if named is None:
            found = next((plain[name] for name in usual if name in plain), None)
            if found is None and key in ("more", "less"):
                raise UserError(
                    f"{self.path}: no column holds the {key} stereotyping sentence (usual names: {', '.join(usual)}); "
                    f"found {', '.join(header) or 'no column'}; name it with eval.pairs.{key}=COLUMN"
                )
            return found
        if named not in header:
            raise UserError(
                f"{self.path}: there is no column {named!r}, only {', '.join(header)}; see eval.pairs.{key}"
            )
        return named


def _text(row: dict[str, Any], name: str | None) -> str:
    value = row.get(name) if name else None
    return "" if value is None or value != value else str(value).strip()


def _fault(texts: dict[str, str]) -> str:
    """Why a row is not a pair; empty if it is one."""
    if not texts["more"] or not texts["less"]:
        return "an empty sentence"
    if texts["bias"] == WHOLE:
        return f"a bias called {WHOLE!r}, which is the name of all pairs together"
    return "the same sentence twice" if texts["more"] == texts["less"] else ""
