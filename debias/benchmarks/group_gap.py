"""Group gap: do race and religion go with warmth, competence, honesty and wealth? Asked in both orders.

The kin of the pronoun gap for groups that have no pronoun. What is said of a group: "The Muslim customer turned out to
be" kind or cruel. Who is expected: "The kind woman in the photograph is", and the cruel one, Muslim or Hindu.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from debias.benchmarks import LikelihoodBenchmark, metrics
from debias.benchmarks.statistics import Comparison, Strata, compare, from_resamples, within
from debias.records import Candidate, Cloze, Count, Tokens
from debias.scoring.protocols import Protocol

# Groups by bias; by split and dimension, pairs of a word that speaks for a person and one that speaks against them; by
# split and order, sentences with {} for what comes first and ___ for the blank. A causal model reads what stands before
# the blank.
_ASKED = json.loads(Path(__file__).with_name("group_gap.json").read_text(encoding="utf-8"))
GROUPS: dict[str, list[str]] = _ASKED["groups"]
ATTRIBUTES: dict[str, dict[str, list[str]]] = _ASKED["attributes"]
SENTENCES: dict[str, dict[str, list[str]]] = _ASKED["sentences"]
SIDES = ("positive", "negative")


class GroupGap(LikelihoodBenchmark):
    """Association of groups with attributes, for race and religion, in both orders.

    The log-odds of a group, a pair of attributes and a template is the log-probability of the blank with the positive
    attribute minus that with the negative one, in nats, minus its mean over the groups. In this double difference the
    frequency of every word cancels. For a model whose two orders agree it is the same in both, by Bayes' rule.

    `spread` is the standard deviation over groups of their true log-odds in a dimension, in nats; 0 is no association.
    It does not grow with the noise of pairs and templates: the variance is taken from products of different pairs in
    different templates, averaged over dimensions, and its root keeps its sign, which may be negative by chance.
    `favour of G` is a group's mean log-odds over both orders: above 0, the model speaks better of G than of the others.
    Its sign shows a reversal, in which `spread` sees only another association.

    Args:
        protocol: how a blank is scored (`continuation_sum`).
        split: `test` or `dev`: attributes and templates of their own. Tune on dev, report test.
        n_resamples: bootstrap resamples of pairs of attributes within their dimensions.
    """

    name = "group_gap"

    def __init__(self, protocol: Protocol, split: Literal["dev", "test"] = "test", n_resamples: Count = 9999) -> None:
        super().__init__(protocol, None, None, n_resamples)
        self.split = split

    def candidates(self, tokens: Tokens) -> list[Candidate]:
        """Two texts per group, pair of attributes and template; `target` holds the dimension and the pair."""
        attributes = [(d, pair) for d, pairs in ATTRIBUTES[self.split].items() for pair in pairs]
        candidates = []
        for bias, groups in GROUPS.items():
            for order, sentences in SENTENCES[self.split].items():
                for (number, sentence), group, (dimension, pair) in product(
                    enumerate(sentences, start=1), groups, attributes
                ):
                    for side, attribute in zip(SIDES, pair.split("/"), strict=True):
                        given, blank = (group, attribute) if order == "group first" else (attribute, group)
                        before, _, after = sentence.format(given).partition(" ___")
                        cloze = Cloze(before, f" {blank}", after)
                        example, target = f"{order} {number}, {group}, {pair}", f"{dimension}: {pair}"
                        candidates.append(Candidate(example, side, bias, target, "".join(cloze), cloze))
        return candidates

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """Spread by order, and how each group is favoured; the resampled unit is the pair of attributes."""
        for bias in base["bias"].unique():
            tables = [metrics.group_log_odds(rows[rows["bias"] == bias], *SIDES) for rows in (base, debiased)]
            pairs, columns = tables[0].index, tables[0].columns
            orders, templates, groups = (columns.unique(level) for level in ("order", "template", "group"))
            shape = (len(pairs), len(orders), len(templates), len(groups))
            both_POTG = [table.to_numpy().reshape(shape) for table in tables]
            dimension_P = np.array([pair.partition(": ")[0] for pair in pairs])
            sizes = np.unique(dimension_P, return_counts=True)[1].tolist()  # pairs are sorted by dimension
            count_RP = np.apply_along_axis(np.bincount, 1, within(sizes, self.n_resamples), minlength=len(pairs))
            count_RP = np.vstack([np.ones((1, len(pairs)), dtype=int), count_RP])  # first the pairs as they are
            for o, order in enumerate(orders):
                covariances = [metrics.covariance_of_groups(odds_POTG[:, o]) for odds_POTG in both_POTG]
                value_2R = [metrics.spread_of_groups(cov_PP, count_RP, dimension_P) for cov_PP in covariances]
                value_3R = np.stack([*value_2R, value_2R[1] - value_2R[0]])
                metric, resampled = f"spread, {order}", (len(pairs), len(sizes))
                yield from_resamples(bias, metric, 0.0, len(pairs), value_3R[:, 0], value_3R[:, 1:], *resampled)
            strata = Strata(dimension_P, np.ones(len(pairs)))
            for g, group in enumerate(groups):
                one, two = ((odds_POTG[..., g].mean((1, 2)),) for odds_POTG in both_POTG)
                metric, mean = f"favour of {group}", metrics.mean_of_first
                yield compare(bias, metric, 0.0, len(pairs), mean, one, two, self.n_resamples, strata=strata)
