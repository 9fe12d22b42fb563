"""`debias evaluate`: score a base model, alone, with adapters or with another method, and write the report."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from debias import assets
from debias.baselines import Baseline, Nothing
from debias.benchmarks import Benchmark, LikelihoodBenchmark
from debias.benchmarks.evaluation import Evaluation, evaluation_of, prepared, scores_of, work_of
from debias.jobs import making
from debias.jobs.cost import Cost
from debias.models import adapter as adapters
from debias.models import adapter_folder, composition
from debias.models.base import Base, BaseModel
from debias.models.checksums import checksum
from debias.models.placement import place
from debias.progress import outlook, stage
from debias.records import Scoring, UserError
from debias.report.one_run.report import RunReport, write_reports
from debias.results import run_of
from debias.run_folder import RunFolder
from debias.scoring.method import Method
from debias.scoring.scorer import Scorer

log = logging.getLogger(__name__)


def evaluate(
    folder: RunFolder,
    model: BaseModel,
    adapter_paths: Sequence[str],
    scoring: Scoring,
    benchmarks: Sequence[Benchmark],
    report: RunReport,
    combine: str | None = None,
    weights: Sequence[float] | None = None,
    baseline: Baseline | None = None,
) -> Evaluation:
    """Score a base model alone and with each adapter. The base is loaded and scored only once.

    Args:
        baseline: a method to score in place of adapters.
        combine: `stack` or `average` the adapters into one model.
        weights: weights of the average or the sum.
    """
    cost = Cost(folder.path)
    if adapter_paths:
        folder.describe(adapters=[making.of_adapter(path) for path in adapter_paths])
    adapted_by: dict[str, Callable[[Base], Any]] = {
        name: partial(adapter_folder.load, folder=path) for name, path in adapter_names(adapter_paths).items()
    }
    if combine:
        adapted_by = {
            "debiased": partial(composition.combined, folders=adapter_paths, combine=combine, weights=weights)
        }
    with cost.stage("load"), stage("load the model", said=True):
        base = model.load()
        place(base.model)
    with stage("read the benchmarks", said=True):
        to_score = prepared(benchmarks, base.tokens)
    Scorer(base, None, scoring.precision, scoring.token_budget)  # brings the weights to the precision of the scores
    intact = checksum(base.model)
    frames: list[pd.DataFrame] = []
    notes: dict[str, None] = {}
    method = None
    if baseline is not None:
        with cost.stage("fit"), stage("fit the method", said=not isinstance(baseline, Nothing)):
            method = baseline.fit(Scorer(base, None, scoring.precision, scoring.token_budget, assets.cache_dir()))
        if method is not None:
            _check_can_be_measured(method, benchmarks)
            notes[f"the debiased model is the base with {method.name}, not with an adapter"] = None
            folder.describe(method=method.name)
            adapted_by = {"debiased": lambda _: None}
    start_tokens: dict[str, str] = {}
    scored = sum(work_of(candidates) for _, candidates in to_score)
    parts = {f"score {name}": scored for name in ["base", *adapted_by]}
    with cost.stage("evaluate") as spent, outlook(parts):
        for name, adapt in adapted_by.items() or {"base": lambda _: None}.items():
            adapted = adapt(base)
            where = (scoring.precision, scoring.token_budget, assets.cache_dir(), name)
            scorer = Scorer(base, adapted, *where, method=method)
            models = scorer.models()[1:] if frames else scorer.models()
            try:
                frames += [scores_of(scorer, to_score, m) for m in models]
            finally:
                spent["tokens"] += scorer.positions
            notes |= scorer.notes
            start_tokens |= scorer.start_tokens
            if adapted is not None:
                adapters.detach(adapted)
                if checksum(base.model) != intact:
                    raise UserError(f"removing {name} did not restore the base; score this adapter in its own command")
    evaluation = evaluation_of(to_score, frames, spent["tokens"], notes, start_tokens)
    evaluation.write(folder)
    with stage("write the report", said=True):
        write_reports(folder, evaluation, report, None, base.name, None)
    return evaluation


def _check_can_be_measured(method: Method, benchmarks: Sequence[Benchmark]) -> None:
    """Raise UserError for benchmarks that read hidden states or written text, if the method does not change those."""
    others = [b.name for b in benchmarks if not isinstance(b, LikelihoodBenchmark)]
    if method.added and others:
        raise UserError(f"{method.name} changes likelihoods alone; leave {', '.join(others)} out of eval=[...]")


def check(adapter_paths: Sequence[str], combine: str | None, weights: Sequence[float] | None) -> None:
    """Raise UserError for adapters that are not there or cannot be combined, before anything is loaded."""
    for path in adapter_paths:
        adapter_folder.located(path)
    if combine:
        composition.check(adapter_paths, combine, weights)
    elif weights is not None:
        raise UserError(composition.MISPLACED_WEIGHTS)


def adapter_names(paths: Sequence[str]) -> dict[str, str]:
    """The name of each adapter's model in the records: `debiased`, or `debiased:FOLDER` if there are several.

    `debias run` calls all its folders `adapter`, so these go by the name of the run. Repeated names get a number.
    """
    if len(paths) < 2:
        return dict(zip(["debiased"], paths, strict=False))
    names: dict[str, str] = {}
    for path in paths:
        stem = run_of(Path(path).expanduser().resolve()).name
        same = sum(re.sub(r" \(\d+\)$", "", known) == f"debiased:{stem}" for known in names)
        names[f"debiased:{stem}" + (f" ({same + 1})" if same else "")] = path
    return names
