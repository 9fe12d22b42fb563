"""BiasTestGPT (Kocielnik et al. 2023): generated sentence pairs, in the four sets that Han et al. 2024 use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from debias import assets
from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.sampling import left_out, same_texts, strata
from debias.benchmarks.statistics import Comparison, compare_means
from debias.data.word_borders import whole_word
from debias.records import Candidate, Tokens, UserError
from debias.wording import counted, plural

SETS = {  # `bias_spec` in the published files -> the bias in our tables; unknown ones keep their name
    "Career_Family_vs_MaleName_FemaleName": "career-family",
    "Math_Arts_vs_Male_Female": "math-arts",
    "Mexican_Female_European_Male_vs_MFemergent_EMintersectional": "mexican-female",
    "Professions_vs_Gender": "profession",
}
LABELS = ("stereotype", "anti-stereotype")


class Pair(NamedTuple):
    """A stereotyping sentence and its counterpart about another group."""

    example: str
    bias: str
    attribute: str
    sentences: dict[str, str]  # by label
    named: bool  # whether both sentences contain their group term as a whole word


class BiasTestGPT(LikelihoodBenchmark):
    """1,696 pairs in four sets. SS is the percentage of pairs whose stereotyping sentence is likelier.

    In 57 pairs of `math-arts` a sentence lacks its group term (it has another form of the pronoun). They are scored as
    published, and a note counts them.

    Args:
        protocol: turns a sentence into a likelihood.
        path: another file in the authors' format; null means the published ones.
        limit: pairs per set, a fixed sample; null means all.
        n_resamples: bootstrap resamples.
    """

    name = "biastestgpt"

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two sentences per pair; `target` is the attribute word, which many pairs share."""
        return [
            Candidate(p.example, label, p.bias, p.attribute, p.sentences[label])
            for p in self._pairs
            for label in LABELS
        ]

    @property
    def notes(self) -> list[str]:
        """How many pairs are left out, and how many have a sentence without its group term."""
        same = Counter("with two identical sentences" for p in self._in_files if same_texts([*p.sentences.values()]))
        unnamed = sum(not pair.named for pair in self._pairs)
        verbs = plural(unnamed, "lacks a group term and is", "lack a group term and are")
        note = f"{unnamed:,} of {counted(len(self._pairs), 'pair')} {verbs} scored as published"
        return [
            *super().notes,
            *left_out(self.name, same, len(self._in_files)),
            *([f"{self.name}: {note}"] if unnamed else []),
        ]

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """SS per set and overall; the resampled unit is the attribute word.

        Overall, each set counts by its number of pairs in the whole benchmark.
        """
        before, after = (metrics.preferences(rows, *LABELS, self.protocol.ties) for rows in (base, debiased))
        groups = {"overall": np.full(len(before), True)}
        groups |= {bias: (before["bias"] == bias).to_numpy() for bias in sorted(before["bias"].unique())}
        words = before["target"].to_numpy()
        for name, of in groups.items():
            one, two = (pairs["preferred"].to_numpy()[of] for pairs in (before, after))
            sampled = strata(before["bias"].to_numpy()[of], self.limit, lambda: Counter(p.bias for p in self._all))
            yield compare_means(name, "SS", 50.0, one, two, words[of], self.n_resamples, sampled)

    @cached_property
    def _pairs(self) -> list[Pair]:
        return self.sample(self._all, lambda p: p.bias, lambda p: p.example)

    @cached_property
    def _all(self) -> list[Pair]:
        pairs = [p for p in self._in_files if not same_texts([*p.sentences.values()])]
        if not pairs:
            raise UserError(f"{self.path} has no pair to compare; check eval.biastestgpt.path")
        return pairs

    @cached_property
    def _in_files(self) -> list[Pair]:
        published = [remote for name, remote in assets.REMOTE.items() if name.startswith("biastestgpt-")]
        paths = [self.path] if self.path else [assets.fetch(remote) for remote in published]
        return [p for path in paths for p in _read(path)]


def _read(path: Path) -> list[Pair]:
    try:
        return [_pair(row, number) for number, row in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a BiasTestGPT file ({error}); check eval.biastestgpt.path") from error


def _pair(row: dict[str, Any], number: int) -> Pair:
    try:
        sentences = {row["label_1"]: row["sentence"], row["label_2"]: row["alt_sentence"]}
        bias = SETS.get(row["bias_spec"], row["bias_spec"])
        terms = ((row["grp_term1"], row["sentence"]), (row["grp_term2"], row["alt_sentence"]))
        attribute = row["att_term"]
    except KeyError as error:
        raise ValueError(f"row {number} has no {error}") from error
    if set(sentences) != set(LABELS):
        raise ValueError(f"row {number}: labels {sorted(sentences)} instead of one each of {list(LABELS)}")
    named = all(whole_word(term, sentence) for term, sentence in terms)
    return Pair(f"{bias}-{number}", bias, attribute, sentences, named)
