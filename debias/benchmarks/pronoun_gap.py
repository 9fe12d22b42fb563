"""Pronoun gap: does "she" or "he" follow an occupation as the labour market would have it?

A witness of another shape than StereoSet: the question is not what is said of a person, but who a person is taken for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.statistics import Comparison, compare
from debias.records import Candidate, Cloze, Count, Tokens, UserError
from debias.scoring.protocols import Protocol
from debias.wording import counted

# Share of women in percent: US Bureau of Labor Statistics, Current Population Survey, annual averages of 2018, table 11
# (employed persons by detailed occupation), under the everyday name of each occupation.
WITH_SHARES = Path(__file__).with_name("occupations.csv")

# By split, sentences: {} is the occupation, ___ the pronoun. A causal model reads only what stands before that.
SENTENCES: dict[str, list[str]] = json.loads(Path(__file__).with_name("pronoun_gap.json").read_text(encoding="utf-8"))
PRONOUNS = ("she", "he")


class PronounGap(LikelihoodBenchmark):
    """Log-odds of "she" and "he" after neutral beginnings with occupations: log P(she) - log P(he), in nats.

    `slope` is how much they rise from occupations without women to those without men (least squares on the share of
    women); 0 is no association. `mean log-odds` is their mean over occupations. Its change tells whether a model moved
    *all* occupations towards one pronoun, which is not debiasing.

    Args:
        protocol: how a blank is scored (`continuation`).
        split: `test` or `dev`: half of the occupations each, with beginnings of their own. Tune on dev, report test.
        path: a CSV file with other occupations, columns `occupation` and `women` (percent); it has no split.
        n_resamples: bootstrap resamples of occupations.
    """

    name = "pronoun_gap"

    def __init__(
        self,
        protocol: Protocol,
        split: Literal["dev", "test"] = "test",
        path: str | None = None,
        n_resamples: Count = 9999,
    ) -> None:
        super().__init__(protocol, path, None, n_resamples)
        self.split = split

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two texts per occupation and beginning; `target` holds the occupation and its share of women."""
        candidates = []
        for occupation, women in self._occupations():
            for number, sentence in enumerate(SENTENCES[self.split], start=1):
                start, _, after = sentence.format(occupation).partition(" ___")
                for pronoun in PRONOUNS:
                    cloze = Cloze(start, f" {pronoun}", after)
                    text, example = f"{start} {pronoun}{after}", f"{occupation} {number}"
                    candidates.append(Candidate(example, pronoun, "gender", f"{occupation}, {women:g}%", text, cloze))
        return candidates

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Slope and mean of the log-odds; the resampled unit is the occupation."""
        before, after = (metrics.log_odds(rows, *PRONOUNS) for rows in (base, debiased))
        one, two = ((o["log_odds"].to_numpy(), o["women"].to_numpy()) for o in (before, after))
        yield compare("gender", "slope", 0.0, len(before), metrics.slope, one, two, self.n_resamples)
        mean = metrics.mean_of_first
        yield compare("gender", "mean log-odds", None, len(before), mean, one, two, self.n_resamples)

    def _occupations(self) -> list[tuple[str, float]]:
        """Occupations and their shares of women in percent. Raises UserError for a row that is not a pair of those."""
        path = self.path or WITH_SHARES
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); check eval.pronoun_gap.path") from error
        found = {}
        for line, row in enumerate(rows, start=2):
            try:
                occupation, women = row["occupation"].strip(), float(row["women"])
            except (KeyError, TypeError, ValueError, AttributeError):
                occupation, women = "", 0.0
            if not occupation or not 0 <= women <= 100 or occupation in found:
                what = "is there twice" if occupation in found else "needs the columns occupation and women, in percent"
                raise UserError(f"{path}, line {line} {what}; check eval.pronoun_gap.path")
            found[occupation] = women
        if len(found) < 3:
            number = counted(len(found), "occupation")
            raise UserError(f"{path} has {number} and a slope needs 3; check eval.pronoun_gap.path")
        if len(set(found.values())) == 1:
            raise UserError(f"{path}: all occupations have the same share of women, so no slope can be told")
        by_share = sorted(found.items(), key=lambda item: (item[1], item[0]))
        return by_share if self.path else by_share[("dev", "test").index(self.split) :: 2]
