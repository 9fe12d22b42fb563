"""The stage of a run that trains: checked sentences and a frozen base in, an adapter that passed the gate out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from debias.benchmarks.metrics import icat_of_terms, stereoset_terms
from debias.benchmarks.stereoset import StereoSet
from debias.data.mixture import Mixture
from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models.base import Base
from debias.models.ranks import launched_rank
from debias.records import Recipe, Triplet, Watch
from debias.scoring import likelihood
from debias.scoring.encoding import encode
from debias.scoring.protocols import BiasBench
from debias.scoring.scorer import Scorer
from debias.training import module as training
from debias.training.batches import SpanData, Texts
from debias.training.gate import Gate
from debias.training.matching import steps_of_examples, steps_of_tokens
from debias.training.pairs import paired

log = logging.getLogger(__name__)

PROBE = 8  # texts that the gate scores


class Tuning(NamedTuple):
    """What a training needs beside the base: data, adapter, objective, recipe and trainer."""

    data: Mixture
    adapter: Any  # a PEFT config
    objective: Any
    neutral: Any  # where the text comes from on which the model is held to its base
    recipe: Recipe
    make_trainer: Callable[..., pl.Trainer]
    seed: int
    logger: Any = False  # Lightning's, or none


def train(
    tuning: Tuning, triplets: Sequence[Triplet], base: Base, folder: Path, target: Path
) -> tuple[Any, training.Spent]:
    """Train an adapter and save it at `target` once it passed the gate; goes on from the folder's checkpoint.

    Raises:
        UserError: the adapter does not fit the base, the objective finds nothing to compare, or training diverged.
        GateError: the result is no adapter.
    """
    recipe = tuning.recipe
    pl.seed_everything(tuning.seed, verbose=False)
    examples = _examples(tuning, base, triplets)
    adapted = adapters.attach(base, tuning.adapter)
    layout = likelihood.choose_layout(adapted, base.kind)
    num_neutral = recipe.num_neutral if recipe.retention else 0  # without retention they would only cost time
    neutral = tuning.neutral.spans(base, recipe.start_token) if num_neutral else []
    mix_lengths = tuning.data.match in ("steps", "tokens")
    look = DevSet(base, recipe.watch, tuning.data.bias) if recipe.watch.every else None
    batches = SpanData(
        examples, layout, recipe.batch_size, tuning.seed, neutral, num_neutral, mix_lengths, look is not None
    )
    gate = Gate(adapted, [span for texts in examples[:PROBE] for span in texts], layout)
    _prepare(adapted, recipe)
    module = training.Debiaser(
        adapted, tuning.objective, recipe, tuning.seed, _matched_steps(tuning, base, batches), look
    )

    keep = partial(_keep, adapted, base, folder / "adapter.before_divergence")
    spent = training.fit(module, batches, tuning.make_trainer, folder, keep, tuning.logger)
    if launched_rank() == 0:
        unchecked = folder / "adapter.unchecked"
        adapters.save(adapted, base, unchecked)
        gate.check(unchecked)
        unchecked.rename(target)
    return adapted, spent


def _keep(adapted: Any, base: Base, place: Path) -> Path:
    """Save an adapter beside the run's own; returns where. (A function that other processes can be given.)"""
    adapters.save(adapted, base, place)
    return place


def _examples(tuning: Tuning, base: Base, triplets: Sequence[Triplet]) -> list[Texts]:
    """The spans that the objective scores: of each sentence, and of its counterpart where it compares."""
    pairs, dropped = paired(triplets, tuning.objective.contrast)
    for reason, count in dropped.items():
        log.info("note: %d of %d sentences are left out: %s", count, len(triplets), reason)
    encoded = encode([t for texts in pairs for t in texts], base.tokens, tuning.recipe.start_token)
    spans = [tuning.objective.span(text) for text in encoded]
    texts = 1 if tuning.objective.contrast is None else 2
    return [tuple(spans[k : k + texts]) for k in range(0, len(spans), texts)]


def _prepare(adapted: Any, recipe: Recipe) -> None:
    """Options that trade memory and time."""
    if recipe.gradient_checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in adapted.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True  # transformers asks for it; what is inside stays in eval mode
    if recipe.compile:
        adapted.compile(dynamic=True)


def _matched_steps(tuning: Tuning, base: Base, batches: SpanData) -> int | None:
    """Steps that make runs on different sources comparable, or None: the epochs decide."""
    data, recipe = tuning.data, tuning.recipe
    if data.match == "steps":
        return steps_of_examples(data.match_to, recipe.batch_size, recipe.epochs)
    if data.match == "tokens":
        general = _examples(tuning, base, TripletFile("general").load().triplets)
        length = sum(len(span.ids) for texts in general for span in texts) / len(general)
        trainer = tuning.make_trainer()  # only it knows how many batches make a step
        return steps_of_tokens(
            recipe.epochs * data.match_to * length,
            batches.tokens_per_step(trainer.world_size, trainer.accumulate_grad_batches),
        )
    return None


class DevSet:
    """StereoSet dev, looked at while training: SS, LMS and ICAT of the targeted bias (else overall).

    Args:
        base: the loaded base.
        watch: how much of it.
        bias: the targeted bias.
    """

    def __init__(self, base: Base, watch: Watch, bias: str) -> None:
        self.base, self.bias = base, bias
        self.benchmark = StereoSet(BiasBench(), split="dev", limit=watch.limit)
        self.candidates = self.benchmark.candidates(base.tokens)

    def __call__(self, model: Any) -> dict[str, float]:
        """Figures by name."""
        scorer = Scorer(self.base, model, "32", 512, cache=None)
        rows = scorer.score(self.candidates, self.benchmark.protocol, self.benchmark.name)
        terms = stereoset_terms(rows, self.benchmark.protocol.ties)
        mine = terms[terms["bias"] == self.bias] if self.bias in set(terms["bias"]) else terms
        ss, lms = mine["ss"].to_numpy(), mine["lms"].to_numpy()
        return {"SS": float(ss.mean()), "LMS": float(lms.mean()), "ICAT": float(icat_of_terms(ss, lms))}
