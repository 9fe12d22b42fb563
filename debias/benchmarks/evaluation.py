"""Scores every benchmark under every model and computes the figures."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from debias.benchmarks import Benchmark, LikelihoodBenchmark
from debias.benchmarks.statistics import adjusted
from debias.progress import portion, stage
from debias.records import Candidate, Figure, Tokens, UserError
from debias.run_folder import RunFolder

if TYPE_CHECKING:  # a report computes figures from records and needs no torch
    from debias.scoring.scorer import Scorer

log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Result of an evaluation: the figures, one row per scored text, and the texts themselves."""

    figures: list[Figure]
    likelihoods: pd.DataFrame  # the columns of likelihoods.parquet
    texts: pd.Series  # indexed by (benchmark, example, candidate)
    positions: int  # tokens scored in this run; cached scores do not count
    notes: tuple[str, ...] = ()  # what could not be scored, and oddities of the data
    start_tokens: Mapping[str, str] = {}  # by protocol; only causal models have one

    def write(self, folder: RunFolder) -> None:
        """Write likelihoods.parquet and metrics.jsonl, log the notes, and keep the start tokens in status.json."""
        folder.describe(start_tokens=dict(self.start_tokens))
        for note in self.notes:
            log.info("note: %s", note)
        folder.write_likelihoods(self.likelihoods)
        folder.write_figures(self.figures)


class Prepared(NamedTuple):
    """A benchmark with its candidates, built once for all models."""

    benchmark: Benchmark
    candidates: list[Candidate]


def prepared(benchmarks: Sequence[Benchmark], tokens: Tokens) -> list[Prepared]:
    """Build each benchmark's candidates for models with this tokenizer."""
    return [Prepared(benchmark, benchmark.candidates(tokens)) for benchmark in benchmarks]


def evaluate(scorer: Scorer, benchmarks: Sequence[Prepared]) -> Evaluation:
    """Score every benchmark under every model and compute the figures."""
    frames = [scores_of(scorer, benchmarks, model) for model in scorer.models()]
    return evaluation_of(benchmarks, frames, scorer.positions, scorer.notes, scorer.start_tokens)


def scores_of(scorer: Scorer, benchmarks: Sequence[Prepared], model: str) -> pd.DataFrame:
    """Score one model: one row per candidate, with the columns of likelihoods.parquet."""
    frames = []
    label, texts = f"score the {model} model", sum(len(candidates) for _, candidates in benchmarks)
    work = [work_of(candidates) for _, candidates in benchmarks]
    with scorer.using(model), stage(label, texts, part=f"score {model}", said=True, work=sum(work)) as shown:
        for (benchmark, candidates), its_work in zip(benchmarks, work, strict=True):
            with portion(shown, len(candidates), benchmark.name, its_work):
                if isinstance(benchmark, LikelihoodBenchmark):
                    scorer.notes |= dict.fromkeys(benchmark.notes)
                    rows = scorer.score(candidates, benchmark.protocol, benchmark.name)
                else:
                    rows = benchmark.measure(scorer, candidates)
            frames.append(rows.assign(benchmark=benchmark.name, protocol=benchmark.protocol_name, model=model))
    return pd.concat(frames, ignore_index=True)


def work_of(candidates: Sequence[Candidate]) -> float:
    """Characters that a model reads to score texts; what the texts of one example begin with is read once."""
    total = 0
    for _, same in itertools.groupby(candidates, key=lambda candidate: candidate.example):
        texts = sorted(candidate.text for candidate in same)
        shared = sum(len(commonprefix(pair)) for pair in itertools.pairwise(texts))  # noqa: RUF071 (of any text)
        total += sum(map(len, texts)) - shared
    return float(total)


def evaluation_of(
    benchmarks: Sequence[Prepared],
    frames: Sequence[pd.DataFrame],
    positions: int,
    notes: Iterable[str],
    start_tokens: Mapping[str, str],
) -> Evaluation:
    """Combine the scores of all models into figures and texts."""
    likelihoods = pd.concat(frames, ignore_index=True)
    shown = pd.DataFrame(
        [(b.name, c.example, c.candidate, c.text) for b, candidates in benchmarks for c in candidates],
        columns=["benchmark", "example", "candidate", "text"],
    ).drop_duplicates(["benchmark", "example", "candidate"])
    texts = shown.set_index(["benchmark", "example", "candidate"])["text"]
    with stage("compute figures and intervals", said=True):
        figures = figures_of([b for b, _ in benchmarks], likelihoods)
    return Evaluation(figures, likelihoods, texts, positions, tuple(notes), start_tokens)


def figures_of(benchmarks: Sequence[Benchmark], likelihoods: pd.DataFrame) -> list[Figure]:
    """Compute every figure of a run from its records alone, without a model or a benchmark file."""
    figures: list[Figure] = []
    for benchmark in benchmarks:
        by_model = records_of(benchmark, likelihoods)
        base = by_model["base"]
        # Without an adapter the base is compared with itself, and only its own lines are kept. With several adapters
        # every comparison gives the base's line again, so the first one counts.
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
    """A benchmark's rows by model, without examples in which any candidate has no score."""
    mine = likelihoods["benchmark"].eq(benchmark.name) & likelihoods["protocol"].eq(benchmark.protocol_name)
    rows = likelihoods[mine]
    # An example that one model cannot score is dropped for all models: a paired difference needs the same examples.
    broken = rows.loc[rows["score"].isna(), "example"].unique()
    rows = rows[~rows["example"].isin(broken)]
    if "base" not in set(rows["model"]):
        raise UserError(
            f"likelihoods.parquet has no scores for {benchmark.name} ({benchmark.protocol_name}); evaluate it again"
        )
    return {str(model): rows[rows["model"] == model] for model in rows["model"].unique()}
