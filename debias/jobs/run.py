"""`debias run`: data -> adapter -> evaluation of base and debiased model -> report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import peft
import torch

from debias import assets
from debias.benchmarks import Benchmark
from debias.benchmarks.evaluation import Evaluation, Prepared, evaluate, prepared, work_of
from debias.jobs import making
from debias.jobs.cost import Cost
from debias.jobs.show import written
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base, BaseModel
from debias.models.placement import device, place
from debias.models.ranks import Say, following
from debias.progress import duration, outlook, stage
from debias.records import Scoring, Triplet, UserError, Writing
from debias.report.one_run.report import RunReport, write_reports
from debias.report.one_run.written import Written
from debias.results import ADAPTER
from debias.run_folder import RunFolder
from debias.run_identity import data_sha256
from debias.scoring.scorer import Scorer
from debias.scoring.spans import start_token
from debias.training.balance import Nothing
from debias.training.fitting import CHECKPOINT
from debias.training.stage import Tuning, rounds_base, train
from debias.wording import counted

log = logging.getLogger(__name__)

NEUTRAL = 760  # characters of the neutral texts that a step takes by itself: about 190 tokens
ROUNDED = 0.45  # time of a character beside a base in bfloat16, relative to one in float32


def run(
    folder: RunFolder,
    tuning: Tuning,
    model: BaseModel,
    scoring: Scoring,
    benchmarks: Sequence[Benchmark],
    report: RunReport,
    writing: Writing | None = None,
    say: Say = lambda message: None,
) -> Evaluation:
    """Train an adapter unless the folder has one, score the base and the debiased model, write the reports.

    Args:
        say: tells the processes that help to train what `assist` waits for.
    """
    cost, target = Cost(folder.path), folder.path / ADAPTER
    if target.is_dir():
        say(None)
    else:
        say({"folder": str(folder.path), "resumes": (folder.path / CHECKPOINT).is_file()})
    with cost.stage("load"), stage("load the model", said=True):
        base = model.load()  # refuse a model that cannot be scored before a chat model is paid for the data
    log.info("model: %s on %s, %s", base.name, device().type, counted(torch.get_num_threads(), "thread"))
    with stage("read the data", said=True):
        checked = tuning.data.load(tuning.seed)
    if checked.spent:
        cost.add("generate", checked.spent)
        # A chat model has written the data just now, perhaps fewer sentences than were wanted.
        folder.refine(data_sha256=data_sha256([tuning.data, *benchmarks]))
    dropped = "".join(f"; {count} dropped: {reason}" for reason, count in checked.dropped.items())
    of = ", ".join(tuning.data.sources)
    log.info("data: %s from %s%s", counted(len(checked.triplets), "sentence"), of, dropped)
    tuning, chosen = tuning.settled(checked.triplets, base.tokens)
    for key in chosen:
        log.info("%s: %s, which suits the data", key, type(getattr(tuning, key)).__name__)
    with stage("read the benchmarks", said=True):
        to_score = prepared(benchmarks, base.tokens)
    seen = check_unseen([t.sentence for t in checked.triplets], to_score)
    folder.describe(chosen=chosen, trained_on_scored=seen, warning=checked.warning)
    number = counted(len(checked.triplets), "training sentence")
    told = [f"{name} scores {n} of the {number} too" for name, n in seen.items() if n]
    checked = checked._replace(notes=(*checked.notes, *told))
    for note in checked.notes:
        log.info("note: %s", note)

    with outlook(_work(tuning, base, checked.triplets, to_score)):
        if target.is_dir():
            log.info("adapter: already trained")
            adapted = adapter_folder.load(base, target)
        else:
            say(checked.triplets)
            with cost.stage("train") as spent, stage("train", said=True):
                adapted, trained = train(tuning, checked.triplets, base, folder.path, target)
                spent.update(trained._asdict())
            log.info(
                "adapter: %s, trained in %s, %s, %s",
                counted(adapters.trainable_parameters(adapted), "trainable parameter"), duration(spent["seconds"]),
                counted(spent["steps"], "step"), counted(spent["tokens"], "token"),
            )  # fmt: skip
            log.info("adapter: its modules hold %s of the model's parameters", adapter_folder.share_reached(target))

        place(adapted)  # not the base alone: PEFT keeps prompts and prefixes outside it
        with cost.stage("evaluate") as spent:
            scorer = Scorer(base, adapted, scoring.precision, scoring.token_budget, assets.cache_dir())
            try:
                evaluation = evaluate(scorer, to_score)
            finally:
                spent["tokens"] = scorer.positions
    if base.kind == "causal":
        start = start_token(base.tokenizer) if tuning.recipe.start_token else "none"
        evaluation = evaluation._replace(start_tokens={"training": start, **evaluation.start_tokens})
    evaluation.write(folder)
    making.note(target, making.of_run(folder.path))
    texts = samples(base, adapted, writing) if writing else []
    with stage("write the report", said=True):
        write_reports(folder, evaluation, report, checked, base.name, target, texts)
    return evaluation


def samples(base: Base, adapted: peft.PeftModel, writing: Writing) -> list[Written]:
    """What both models write, for the report; nothing from a masked model, or one that cannot generate."""
    if base.kind == "masked" or not writing.samples:
        return []
    try:
        with stage("write samples", said=True):
            return written(base, adapted, (), writing)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:  # some adapters cannot
        log.warning("no samples for the report: %s: %s", type(error).__name__, " ".join(str(error).split())[:200])
        return []


def _work(tuning: Tuning, base: Base, triplets: Sequence[Triplet], to_score: Sequence[Prepared]) -> dict[str, float]:
    """Characters that the model reads in each part of a run, weighed by the time that one takes in scoring.

    A training step reads forwards and backwards, and training beside a rounded base is faster than scoring.
    """
    data, recipe = tuning.data, tuning.recipe
    length = sum(len(triplet.sentence) for triplet in triplets) / len(triplets)
    number = len(triplets) if data.match is None else data.match_to
    others = NEUTRAL * tuning.num_neutral(base.kind) / tuning.neutral.texts_per_step(base.kind)
    if recipe.balance and not isinstance(tuning.balance, Nothing):
        others += 2 * recipe.num_pairs * length
    read = number * (length + others / recipe.batch_size)  # in an epoch
    distinct = 1.0 if data.match is None else min(len(triplets), number * recipe.epochs) / number
    scored = sum(work_of(candidates) for _, candidates in to_score)
    if rounds_base(tuning, base.model):
        read *= ROUNDED
    return {"ask": distinct * read, "train": 3.0 * read * recipe.epochs, "score base": scored, "score debiased": scored}


def assist(tuning: Tuning, model: BaseModel) -> None:
    """Take part in the training of a run that another process manages (`torchrun`, `srun`), and in nothing else.

    That process decides whether and where to train, and reads the data: what this one found in the folder of the run or
    of a generated set might be older or newer.

    Raises UserError if that process fails, or if this one does not see its files.
    """
    with following() as hear:
        if (work := hear()) is None:
            return
        base = model.load()  # meanwhile the first process loads it too
        if (sentences := hear()) is None:
            return
    folder, triplets = Path(work["folder"]), [Triplet(*sentence) for sentence in sentences]
    if (folder / CHECKPOINT).is_file() != work["resumes"]:
        one, other = ("the first", "this") if work["resumes"] else ("this", "the first")
        raise UserError(
            f"{folder}: {one} process sees a checkpoint here, but {other} one does not; "
            "put the run folder on a disk that all machines share"
        )
    train(tuning.settled(triplets, base.tokens)[0], triplets, base, folder, folder / ADAPTER)


def check_unseen(sentences: Sequence[str], benchmarks: Sequence[Prepared]) -> dict[str, int]:
    """How many training sentences each benchmark scores too, ignoring case and surrounding white space.

    Raises UserError if they make up more than 1% of the training sentences.
    """
    counts: dict[str, int] = {}
    for benchmark, candidates in benchmarks:
        scored = {candidate.text.strip().lower() for candidate in candidates}
        count = sum(sentence.strip().lower() in scored for sentence in sentences)
        if count > 0.01 * len(sentences):
            split = " or its other split (eval.stereoset.split=test)" if benchmark.name == "stereoset" else ""
            raise UserError(
                f"{benchmark.name} scores {count} of the {counted(len(sentences), 'training sentence')}; "
                f"choose another benchmark with eval=[...]{split}, or other data"
            )
        counts[benchmark.name] = max(count, counts.get(benchmark.name, 0))  # one benchmark under several protocols
    return counts
