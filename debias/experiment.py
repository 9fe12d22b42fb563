"""The two jobs that need a model: `run` (data -> adapter -> evaluation -> report) and `evaluate`."""

from __future__ import annotations

import gc
import json
import logging
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from debias import assets, likelihood
from debias.benchmarks import Benchmark
from debias.data.encoding import encode
from debias.evaluation import Evaluation, Scorer, evaluate, finished, scores_of
from debias.models import adapter as adapters
from debias.models import composition
from debias.models.base import Base, BaseModel
from debias.models.placement import device, place
from debias.objectives import Attribute
from debias.progress import bar
from debias.records import Scoring, Tokens, Triplet, UserError
from debias.report.write import RunReport, write_reports
from debias.results import RunFolder, write_json
from debias.tuning import Tuning, train

log = logging.getLogger(__name__)

ADAPTER = "adapter"


class Cost:
    """Tokens, dollars and seconds by stage, kept in cost.json across interruptions."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cost.json"
        try:
            self.stages = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError):
            self.stages = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; the yielded dict takes its tokens."""
        spent: dict[str, Any] = {"tokens": 0}
        start = time.perf_counter()
        yield spent
        spent["seconds"] = round(time.perf_counter() - start, 2)
        self.stages[name] = spent
        self.write()

    def add(self, name: str, spent: Mapping[str, Any]) -> None:
        """Add what a stage took to what it took before an interruption; unknown dollars stay unknown."""
        pairs = {key: (self.stages.get(name, {}).get(key, 0), value) for key, value in spent.items()}
        self.stages[name] = {key: None if None in pair else sum(pair) for key, pair in pairs.items()}
        self.write()

    def write(self) -> None:
        """Write the sums so far."""
        gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        dollars = [s.get("dollars", 0.0) for s in self.stages.values()]  # a chat model's, where one wrote the data
        write_json(
            self.path,
            {
                "tokens": sum(s["tokens"] for s in self.stages.values()),
                "dollars": None if None in dollars else sum(dollars),
                "seconds": round(sum(s["seconds"] for s in self.stages.values()), 2),
                "peak_memory_gb": round(peak_memory_gb(), 3),
                "peak_gpu_memory_gb": round(gpu, 3),
                "stages": self.stages,
            },
        )


def run(
    folder: RunFolder,
    tuning: Tuning,
    model: BaseModel,
    scoring: Scoring,
    benchmarks: Sequence[Benchmark],
    report: RunReport,
) -> Evaluation:
    """Train an adapter unless the folder has it already, score base and debiased model, write the reports."""
    cost = Cost(folder.path)
    data = tuning.data
    checked = data.load(tuning.seed)  # bad data stops the job before the model is loaded
    if checked.spent:
        cost.add("generate", checked.spent)
    dropped = "".join(f"; {count} dropped: {reason}" for reason, count in checked.dropped.items())
    log.info("data: %d sentences from %s%s", len(checked.triplets), ", ".join(data.sources), dropped)
    for benchmark in benchmarks:
        benchmark.fingerprint()  # so does a missing benchmark
    seen = check_unseen([t.sentence for t in checked.triplets], benchmarks, model.tokens())
    checked = checked._replace(notes=(*checked.notes, *seen))
    for note in checked.notes:
        log.info("note: %s", note)
    with cost.stage("load"):
        base = model.load()
    log.info("model: %s on %s, %d threads", base.name, device().type, torch.get_num_threads())

    target = folder.path / ADAPTER
    if target.is_dir():
        log.info("adapter: already trained")
        adapted = adapters.load(base, target)
    else:
        with cost.stage("train") as spent:
            adapted, trained = train(tuning, checked.triplets, base, folder.path, target)
            spent.update(trained._asdict())
        trainable = adapters.trainable_parameters(adapted)
        log.info(
            "adapter: %s trainable parameters, trained in %.0f s, %d steps, %s tokens",
            f"{trainable:,}", spent["seconds"], spent["steps"], f"{spent['tokens']:,}",
        )  # fmt: skip

    evaluation = _evaluate(folder, base, adapted, scoring, benchmarks, cost)
    write_reports(folder, evaluation, report, checked, base.name, target)
    return evaluation


def assist(folder: RunFolder, tuning: Tuning, model: BaseModel) -> None:
    """Share the training of a run whose folder another process holds (`torchrun`, `srun`), and nothing else."""
    target = folder.path / ADAPTER
    if not folder.is_finished() and not target.is_dir():
        train(tuning, tuning.data.load(tuning.seed).triplets, model.load(), folder.path, target)


def check_unseen(sentences: Sequence[str], benchmarks: Sequence[Benchmark], tokens: Tokens) -> list[str]:
    """Sentences that are both trained on and scored, ignoring case and outer white space, as notes.

    Raises UserError where they are more than 1% of the training sentences.
    """
    notes = []
    for benchmark in benchmarks:
        scored = {candidate.text.strip().lower() for candidate in benchmark.candidates(tokens)}
        count = sum(sentence.strip().lower() in scored for sentence in sentences)
        what = f"{count} of the {len(sentences)} training sentences are scored by {benchmark.name}"
        if count > 0.01 * len(sentences):
            split = " or its other split (eval.stereoset.split=test)" if benchmark.name == "stereoset" else ""
            raise UserError(f"{what}; choose another benchmark with eval=[...]{split}, or other data")
        notes += [f"{what} too"] if count else []
    return notes


def attribute_losses(model: BaseModel, triplets: Sequence[Triplet]) -> list[float]:
    """The base model's loss on each triplet, in nats per attribute token."""
    base = model.load()
    objective = Attribute()
    spans = [objective.span(text) for text in encode(triplets, base.tokens)]
    layout = likelihood.choose_layout(base.model, base.kind)
    logprob_S = likelihood.score(base.model, spans, layout, progress=bar("scoring attributes"))
    return [-float(logprob) / span.num_tokens for logprob, span in zip(logprob_S, spans, strict=True)]


def evaluate_only(
    folder: RunFolder,
    model: BaseModel,
    adapter_paths: Sequence[str],
    scoring: Scoring,
    benchmarks: Sequence[Benchmark],
    report: RunReport,
    combine: str | None = None,
    weights: Sequence[float] | None = None,
) -> Evaluation:
    """Score a base model, and the same with each of the adapters: the base is loaded and scored once.

    Args:
        combine: `stack` or `average`: the adapters are one model.
        weights: of the average.
    """
    cost = Cost(folder.path)
    for benchmark in benchmarks:
        benchmark.fingerprint()
    for folder_path in adapter_paths:
        adapters.located(folder_path)  # the last one's absence shall not wait for the scores of the first
    adapted_by: dict[str, Callable[[Base], Any]] = {
        name: partial(adapters.load, folder=path) for name, path in adapter_names(adapter_paths).items()
    }
    if combine:
        composition.check(adapter_paths, combine, weights)
        adapted_by = {
            "debiased": partial(composition.combined, folders=adapter_paths, combine=combine, weights=weights)
        }
    with cost.stage("load"):
        base = model.load()
        place(base.model)
    frames: list[pd.DataFrame] = []
    notes: dict[str, None] = {}
    with cost.stage("evaluate") as spent:
        for name, adapt in adapted_by.items() or {"base": lambda _: None}.items():
            adapted = adapt(base)
            scorer = Scorer(base, adapted, scoring.precision, scoring.token_budget, assets.cache_dir(), name)
            models = scorer.models()[1:] if frames else scorer.models()
            frames += [scores_of(scorer, benchmarks, m) for m in models]
            spent["tokens"] += scorer.positions
            notes |= scorer.notes
            if adapted is not None:
                adapters.detach(adapted)
    evaluation = finished(base.tokens, benchmarks, pd.concat(frames, ignore_index=True), spent["tokens"], tuple(notes))
    _write(folder, evaluation)
    write_reports(folder, evaluation, report, None, base.name, None)
    return evaluation


def adapter_names(paths: Sequence[str]) -> dict[str, str]:
    """What each adapter's model is called in the records: `debiased`, or of several `debiased:` and its folder's name.

    A folder called `adapter` goes by its run's name, as `debias run` makes them; names that repeat get a number.
    """
    if len(paths) < 2:
        return dict(zip(["debiased"], paths, strict=False))
    names: dict[str, str] = {}
    for path in paths:
        folder = Path(path).expanduser().resolve()
        stem = folder.parent.name if folder.name == ADAPTER else folder.name
        same = sum(re.sub(r" \(\d+\)$", "", known) == f"debiased:{stem}" for known in names)
        names[f"debiased:{stem}" + (f" ({same + 1})" if same else "")] = path
    return names


def _evaluate(
    folder: RunFolder, base: Base, adapted: Any, scoring: Scoring, benchmarks: Sequence[Benchmark], cost: Cost
) -> Evaluation:
    place(base.model)
    with cost.stage("evaluate") as spent:
        scorer = Scorer(base, adapted, scoring.precision, scoring.token_budget, assets.cache_dir())
        evaluation = evaluate(scorer, benchmarks)
        spent["tokens"] = evaluation.positions
    _write(folder, evaluation)
    return evaluation


def _write(folder: RunFolder, evaluation: Evaluation) -> None:
    for note in evaluation.notes:
        log.info("note: %s", note)
    folder.write_likelihoods(evaluation.likelihoods)
    folder.write_figures(evaluation.figures)


def release_memory() -> None:
    """Hydra's basic launcher runs all jobs of a sweep in one process: give the memory back between them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def set_threads(count: int) -> None:
    """Use this many threads for tensor arithmetic."""
    torch.set_num_threads(count)


def peak_memory_gb() -> float:
    """Peak resident memory of this process, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6


def hardware() -> dict[str, Any]:
    """What the job ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "peak_memory_gb": round(peak_memory_gb(), 3),
    }
