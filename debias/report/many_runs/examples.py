"""The sentences behind the figures: pairs, and how much each configuration prefers the stereotype."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from debias.benchmarks import Benchmark
from debias.records import Tokens, UserError
from debias.report.comparison import TITLES, decimals
from debias.report.many_runs.configurations import Benchmarks, Configuration, records_of_run

log = logging.getLogger(__name__)

PAIRS = {
    "stereoset": ("stereotype", "anti-stereotype"),
    "stereoset_intersentence": ("stereotype", "anti-stereotype"),
    "crows_pairs": ("sent_more", "sent_less"),
}
MOST = 1500  # pairs on the page, those that changed most
INDEX = ["benchmark", "bias", "target", "example"]


class Examples(NamedTuple):
    """Pairs of texts, and how much each configuration prefers the stereotype before and after, in nats per token."""

    pairs: list[dict[str, str]]  # benchmark, bias, more and less stereotyping sentence
    before: dict[str, list[float | None]]  # by configuration; None if it was not scored on the pair
    after: dict[str, list[float | None]]
    found: int  # number of all pairs; `pairs` are those that changed most

    def data(self) -> dict[str, Any]:
        """What the page's script reads; configurations with the same base model share their `before`."""
        different = list({tuple(numbers): None for numbers in self.before.values()})
        base = {key: different.index(tuple(numbers)) for key, numbers in self.before.items()}
        return {"pairs": self.pairs, "before": different, "base": base, "after": self.after}

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks of the pairs."""
        return sorted({pair["benchmark"] for pair in self.pairs})

    @property
    def biases(self) -> list[str]:
        """The biases of the pairs."""
        return sorted({pair["bias"] for pair in self.pairs})


def examples(configurations: Sequence[Configuration], benchmarks_of: Benchmarks) -> Examples | None:
    """The pairs of all configurations that have records, averaged over seeds; None if no configuration has any.

    A preference is the difference of two scores under the first protocol; 0 means no preference.
    """
    tables: dict[str, pd.DataFrame] = {}
    texts: dict[tuple[str, str], tuple[str, str]] = {}
    for configuration in configurations:
        try:
            table = preferences(configuration)
            if table is None:
                continue
            if not {(key[0], key[3]) for key in table.index} <= set(texts):
                texts |= _texts(benchmarks_of(configuration.run.config))
            tables[configuration.key] = table
        except UserError as error:  # the page is useful without sentences
            log.debug("%s: no examples: %s", configuration.name, error)
    return _together(tables, texts) if tables else None


def preferences(configuration: Configuration) -> pd.DataFrame | None:
    """Means over seeds of `before` and `after` by pair; None for a base model alone, or if records are missing."""
    if configuration.change is None or not all(member.run.records for member in configuration.members):
        return None
    of_seeds = [_of_records(records_of_run(member)) for member in configuration.members]
    return pd.concat(of_seeds).groupby(level=INDEX, sort=False).mean()


def _of_records(records: pd.DataFrame) -> pd.DataFrame:
    tables = []
    for benchmark, (more, less) in PAIRS.items():
        mine = records[records["benchmark"].eq(benchmark) & records["candidate"].isin((more, less))]
        mine = mine[mine["protocol"].eq(mine["protocol"].iloc[0])] if len(mine) else mine
        wide = mine.pivot(index=INDEX, columns=["model", "candidate"], values="score")
        if len(wide):
            lean = {m: wide[m][more] - wide[m][less] for m in ("base", "debiased")}
            tables.append(pd.DataFrame({"before": lean["base"], "after": lean["debiased"]}).dropna())
    empty = pd.DataFrame({"before": [], "after": []}, index=pd.MultiIndex.from_arrays([[]] * 4, names=INDEX))
    return pd.concat(tables) if tables else empty


def _texts(benchmarks: Sequence[Benchmark]) -> dict[tuple[str, str], tuple[str, str]]:
    """The stereotype and its counterpart by benchmark and example, from the benchmark's own files."""
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for benchmark in benchmarks:
        if benchmark.name in PAIRS:
            for c in benchmark.candidates(Tokens(None, "causal")):
                texts.setdefault((benchmark.name, str(c.example)), {})[c.candidate] = c.text
    return {key: (of[PAIRS[key[0]][0]], of[PAIRS[key[0]][1]]) for key, of in texts.items()}


def _together(tables: Mapping[str, pd.DataFrame], texts: Mapping[tuple[str, str], tuple[str, str]]) -> Examples | None:
    changes = pd.concat([(t["after"] - t["before"]).abs() for t in tables.values()])
    ranked = changes.groupby(level=INDEX, sort=False).mean().sort_values(ascending=False, kind="stable").index
    known = [key for key in ranked if (key[0], key[3]) in texts]
    if not known:
        return None
    kept = pd.MultiIndex.from_tuples(known[:MOST], names=INDEX)
    pairs = [
        {"benchmark": TITLES[b], "bias": bias, "more": texts[b, example][0], "less": texts[b, example][1]}
        for b, bias, _, example in kept
    ]
    before, after = (
        {key: _numbers(table[of].reindex(kept)) for key, table in tables.items()} for of in ("before", "after")
    )
    return Examples(pairs, before, after, len(known))


def _numbers(values: pd.Series[Any]) -> list[float | None]:
    return [round(float(v), decimals("nats")) if np.isfinite(v) else None for v in values]
