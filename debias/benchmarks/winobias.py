"""WinoBias (Zhao et al. 2018): is a sentence likelier if its pronoun fits the stereotype of an occupation?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import left_out, same_texts, strata
from debias.benchmarks.statistics import Comparison, compare_means
from debias.records import Candidate, Tokens, UserError
from debias.wording import counted, plural

GENDERED = {"he", "she", "him", "her", "his", "hers", "himself", "herself"}
MARKED = re.compile(r"\d+ .*?\[ ?(?:the |an? )?(?P<occupation>[^\]]+)\].*\[", re.IGNORECASE)  # 1 [The nurse] ... [she]


class Pair(NamedTuple):
    """The same sentence with the stereotypical pronoun and with the other one."""

    example: str
    kind: str  # `type 1` or `type 2`
    occupation: str  # that the pronoun refers to
    pro: str
    anti: str

    @property
    def minimal(self) -> bool:
        """Whether the sentences differ only in gendered words."""
        pro, anti = ([w for w in re.findall(r"\w+", text) if w not in GENDERED] for text in (self.pro, self.anti))
        return pro == anti


class WinoBias(LikelihoodBenchmark):
    """1,584 pairs, half of each type. SS is the percentage of pairs whose pro-stereotypical sentence is likelier.

    In type 1 only the meaning says what the pronoun refers to; in type 2 the grammar says it too. Some published pairs
    differ in more than gendered words. They are scored as published, and a note counts them.

    Args:
        protocol: turns a sentence into a likelihood.
        path: another folder with the authors' eight files; null means the published ones.
        limit: pairs per type, a fixed sample; null means all.
        n_resamples: bootstrap resamples.
    """

    name = "winobias"

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair; `target` is the occupation, which about forty pairs of a file share."""
        return [
            Candidate(p.example, candidate, "gender", p.occupation, text)
            for p in self._pairs
            for candidate, text in (("pro", p.pro), ("anti", p.anti))
        ]

    @property
    def notes(self) -> list[str]:
        """How many pairs are left out, and how many differ in more than gendered words."""
        same = Counter("with two identical sentences" for p in self._in_files if same_texts((p.pro, p.anti)))
        odd = sum(not pair.minimal for pair in self._pairs)
        verbs = plural(odd, "differs in more than gendered words and is", "differ in more than gendered words and are")
        note = f"{odd:,} of {counted(len(self._pairs), 'pair')} {verbs} scored as published"
        return [
            *super().notes,
            *left_out(self.name, same, len(self._in_files)),
            *([f"{self.name}: {note}"] if odd else []),
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS of all pairs and of each type; the resampled unit is the occupation."""
        before, after = (metrics.preferences(rows, "pro", "anti", self.protocol.ties) for rows in (base, debiased))
        kind = before["example"].str.partition(",")[0]
        groups = {"SS": np.full(len(before), True)} | {f"SS {k}": (kind == k).to_numpy() for k in sorted(kind.unique())}
        occupations = before["target"].to_numpy()
        for metric, of in groups.items():
            one, two = (pairs["preferred"].to_numpy()[of] for pairs in (before, after))
            sampled = strata(kind[of].to_numpy(), self.limit, lambda: Counter(p.kind for p in self._all))
            yield compare_means("gender", metric, 50.0, one, two, occupations[of], self.n_resamples, sampled)

    @cached_property
    def _pairs(self) -> list[Pair]:
        return self.sample(self._all, lambda p: p.kind, lambda p: p.example)

    @cached_property
    def _all(self) -> list[Pair]:
        pairs = [p for p in self._in_files if not same_texts((p.pro, p.anti))]
        if not pairs:
            raise UserError(f"{self.path} has no pair to compare; check eval.winobias.path")
        return pairs

    @cached_property
    def _in_files(self) -> list[Pair]:
        return [pair for kind in (1, 2) for split in ("dev", "test") for pair in self._read(kind, split)]

    def _read(self, kind: int, split: str) -> list[Pair]:
        """Pairs from two files whose lines correspond."""
        pro, anti = (self._file(f"{side}_stereotyped_type{kind}.txt.{split}") for side in ("pro", "anti"))
        first, second = _lines(pro), _lines(anti)
        if len(first) != len(second):
            lengths = f"{counted(len(first), 'line')}, but {anti.name} has {len(second)}"
            raise UserError(f"{pro} has {lengths}; the lines of both must correspond, check eval.winobias.path")
        return [
            Pair(f"type {kind}, {split} {number}", f"type {kind}", occupation, text, other)
            for number, ((occupation, text), (_, other)) in enumerate(zip(first, second, strict=True), start=1)
        ]

    def _file(self, name: str) -> Path:
        return self.path / name if self.path else assets.locate(f"winobias-{name}")


def _lines(path: Path) -> list[tuple[str, str]]:
    """Occupation and sentence of each line; the sentence loses its number and its brackets."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check eval.winobias.path") from error
    found = []
    for number, line in enumerate(lines, start=1):
        marked = MARKED.match(line)
        if marked is None:
            raise UserError(
                f"{path}, line {number} does not have a number and two words in brackets; check eval.winobias.path"
            )
        text = " ".join(re.sub(r"[\[\]]", "", line).split()[1:])
        found.append((marked["occupation"].lower(), text))
    return found
