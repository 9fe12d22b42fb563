"""Benchmarks x models -> scored candidates and figures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from debias.benchmarks import Benchmark, LikelihoodBenchmark
from debias.benchmarks.statistics import adjusted
from debias.records import Candidate, Figure, Tokens, UserError
from debias.results import RunFolder
from debias.scoring.scorer import Scorer

log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Everything that was measured: figures, one row per scored text, and the texts themselves."""

    figures: list[Figure]
    likelihoods: pd.DataFrame  # the columns of likelihoods.parquet
    texts: pd.Series  # by (benchmark, example, candidate)
    positions: int  # tokens that were scored afresh, not taken from the cache
    notes: tuple[str, ...] = ()  # what could not be scored

    def write(self, folder: RunFolder) -> None:
        """Write likelihoods.parquet and metrics.jsonl, and log the notes."""
        for note in self.notes:
            log.info("note: %s", note)
        folder.write_likelihoods(self.likelihoods)
        folder.write_figures(self.figures)


class Prepared(NamedTuple):
    """A benchmark with its candidates, which are built once and shown to every model."""

    benchmark: Benchmark
    candidates: list[Candidate]


def prepared(benchmarks: Sequence[Benchmark], tokens: Tokens) -> list[Prepared]:
    """Each benchmark with the candidates that a model with this tokenizer is shown."""
    return [Prepared(benchmark, benchmark.candidates(tokens)) for benchmark in benchmarks]


def evaluate(scorer: Scorer, benchmarks: Sequence[Prepared]) -> Evaluation:
    """Score every benchmark under every model and compute the figures."""
    frames = [scores_of(scorer, benchmarks, model) for model in scorer.models()]
    return evaluation_of(benchmarks, frames, scorer.positions, scorer.notes)


def scores_of(scorer: Scorer, benchmarks: Sequence[Prepared], model: str) -> pd.DataFrame:
    """Scores of one model, one row per candidate: the columns of likelihoods.parquet."""
    frames = []
    with scorer.using(model):
        for benchmark, candidates in benchmarks:
            if isinstance(benchmark, LikelihoodBenchmark):
                scorer.notes |= dict.fromkeys(benchmark.notes)
                rows = scorer.score(candidates, benchmark.protocol, benchmark.name)
            else:
                rows = benchmark.measure(scorer, candidates)
            frames.append(rows.assign(benchmark=benchmark.name, protocol=benchmark.protocol_name, model=model))
    return pd.concat(frames, ignore_index=True)


def evaluation_of(
    benchmarks: Sequence[Prepared], frames: Sequence[pd.DataFrame], positions: int, notes: Iterable[str]
) -> Evaluation:
    """Scores of all models -> figures and texts."""
    likelihoods = pd.concat(frames, ignore_index=True)
    shown = pd.DataFrame(
        [(b.name, c.example, c.candidate, c.text) for b, candidates in benchmarks for c in candidates],
        columns=["benchmark", "example", "candidate", "text"],
    ).drop_duplicates(["benchmark", "example", "candidate"])
    texts = shown.set_index(["benchmark", "example", "candidate"])["text"]
    figures = figures_of([b for b, _ in benchmarks], likelihoods)
    return Evaluation(figures, likelihoods, texts, positions, tuple(notes))


def figures_of(benchmarks: Sequence[Benchmark], likelihoods: pd.DataFrame) -> list[Figure]:
    """Every figure of a run from its records alone: no model and no benchmark file is needed."""
    figures: list[Figure] = []
    for benchmark in benchmarks:
        by_model = records_of(benchmark, likelihoods)
        base = by_model["base"]
        others = {name: rows for name, rows in by_model.items() if name != "base"} or {"base": base}
        lines: dict[tuple[str, str, str], Figure] = {}
        for model, rows in others.items():
            for comparison in benchmark.comparisons(base, rows):
                for figure in comparison.figures(benchmark.name, benchmark.protocol_name, model):
                    lines.setdefault((figure.bias, figure.metric, figure.model), figure)
        wanted = {"base", *others, *(name.replace("debiased", "delta", 1) for name in others)}
        figures.extend(f for f in lines.values() if f.model in wanted)
    return adjusted(figures)


def records_of(benchmark: Benchmark, likelihoods: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A benchmark's rows by model, without the examples that have a candidate without a score."""
    mine = likelihoods["benchmark"].eq(benchmark.name) & likelihoods["protocol"].eq(benchmark.protocol_name)
    rows = likelihoods[mine]
    broken = rows.loc[rows["score"].isna(), "example"].unique()
    rows = rows[~rows["example"].isin(broken)]
    if "base" not in set(rows["model"]):
        raise UserError(f"likelihoods.parquet holds no score of {benchmark.name} ({benchmark.protocol_name})")
    return {str(model): rows[rows["model"] == model] for model in rows["model"].unique()}
