"""The training stage of a run: checked sentences and a frozen base in, an adapter that passed the gate out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from transformers import PreTrainedModel

from debias import assets
from debias.assets.cache import cached
from debias.data.mixture import Mixture
from debias.data.triplets import TripletFile
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.base import Base, LanguageModel
from debias.models.checksums import arithmetic
from debias.models.placement import place
from debias.models.ranks import launched_rank
from debias.progress import bar
from debias.records import Masked, Recipe, Scored, Span, Tokens, Triplet, UserError
from debias.run_identity import code_sha256, text_sha256
from debias.scoring import batched, likelihood
from debias.scoring.layout_trial import choose_layout
from debias.scoring.layouts import ROW, Layout
from debias.scoring.reference import Ask, Said, ask
from debias.scoring.scorer import keep_scores, kept_scores
from debias.training import fitting
from debias.training.arithmetic import bf16_pays, fast_kernels, frozen_in_bf16
from debias.training.balance import Balance, Nothing, Pair, aims, of_pairs
from debias.training.batches import SpanData, Texts
from debias.training.by_data import choices
from debias.training.dev_set import DevSet
from debias.training.examples import examples, fits
from debias.training.gate import Gate, GateError
from debias.training.matching import steps_of_examples, steps_of_tokens
from debias.training.module import Debiaser
from debias.training.neutral import NeutralText
from debias.training.objectives import Objective
from debias.training.pairs import paired
from debias.wording import counted, plural

log = logging.getLogger(__name__)

PROBE = 8  # examples that the gate scores
# Positions of a tree's row in training on a CPU. Training texts share little, so one long row is mostly a mask; a story
# of 96 tokens and some sentences fit into this one.
CPU_ROW = 160

Kernels = Callable[[], AbstractContextManager[None]]


class Tuning(NamedTuple):
    """Everything that decides an adapter besides the base."""

    data: Mixture
    adapter: peft.PeftConfig
    objective: Objective  # or an ObjectiveOfData, until `settled`
    neutral: NeutralText
    recipe: Recipe
    make_trainer: Callable[..., pl.Trainer]
    seed: int
    logger: Logger | bool = False
    balance: Balance = Nothing()  # or a BalanceOfData, until `settled`

    def settled(self, triplets: Sequence[Triplet], tokens: Tokens) -> tuple[Tuning, dict[str, str]]:
        """The same with the objective and the pairs that suit these sentences, and the names of what was chosen."""
        chosen = choices(self._asdict(), triplets, tokens)
        return self._replace(**{key: getattr(getattr(self, key), name) for key, name in chosen.items()}), chosen

    def num_neutral(self, kind: str) -> int:
        """Neutral texts in a step of this kind of model; none without the KL term, which alone reads them."""
        if not self.recipe.retention:
            return 0
        wanted = self.recipe.num_neutral
        return self.neutral.texts_per_step(kind) if wanted is None else wanted


def train(
    tuning: Tuning, triplets: Sequence[Triplet], base: Base, folder: Path, target: Path
) -> tuple[peft.PeftModel, fitting.Spent]:
    """Train an adapter, check it and save it as `target`. Resumes from the folder's checkpoint if there is one.

    Args:
        tuning: settled.

    Raises:
        UserError: the adapter does not fit the base, no sentence can be trained on, or training diverged.
        GateError: the trained adapter failed a check.
    """
    recipe = tuning.recipe
    pl.seed_everything(tuning.seed, verbose=False)
    # Before anything computes: the layout's trial, the base's answers and the gate run where training does.
    place(base.model, torch.device("cpu") if _option(tuning, "accelerator") == "cpu" else None)
    trained_on = _examples(tuning, base, triplets)
    adapted = adapters.attach(base, tuning.adapter)
    num_neutral = tuning.num_neutral(base.kind)
    neutral = _neutral(tuning, base) if num_neutral else []
    pairs = tuning.balance.pairs(base.tokens) if recipe.balance and recipe.num_pairs else []
    longest = max(
        span.num_positions for texts in [*trained_on, tuple(neutral), *(pair[:2] for pair in pairs)] for span in texts
    )
    on_cpu = base.model.device.type == "cpu"
    row = CPU_ROW if on_cpu else ROW
    layout = choose_layout(adapted, base.kind, longest, row)
    kernels = partial(fast_kernels, base.model.device, max(longest, row))
    mix_lengths = tuning.data.match in ("steps", "tokens")
    watches = recipe.watch.every is not None
    dev_set = DevSet(base, recipe.watch, tuning.data.bias) if watches else None
    needs_base = bool(recipe.retention or pairs) or tuning.objective.needs_base
    batches = SpanData(
        trained_on, layout, recipe.batch_size, tuning.seed, neutral, num_neutral, mix_lengths, dev_set is not None,
        asking(adapted, base, layout, sharded=_option(tuning, "strategy") == "fsdp") if needs_base else None,
        kl=bool(recipe.retention), weight=tuning.objective.weight, pairs=pairs,
        aims=_aims(adapted, base, layout, pairs, kernels),
        num_pairs=recipe.num_pairs,
    )  # fmt: skip
    gate = Gate(adapted, [span for texts in trained_on[:PROBE] for span in texts], layout)
    if recipe.gradient_checkpointing:
        _checkpoint_gradients(adapted)
    steps = batches.steps = _matched_steps(tuning, base, batches)
    module = Debiaser(adapted, tuning.objective, recipe, tuning.seed, steps, dev_set)

    keep = partial(_keep, adapted, base, folder / "adapter.before_divergence")  # picklable, for ddp_spawn
    with ExitStack() as ways:
        ways.enter_context(kernels())
        make_trainer = tuning.make_trainer
        if rounds_base(tuning, adapted):
            ways.enter_context(frozen_in_bf16(adapted))
            make_trainer = partial(make_trainer, precision="bf16-mixed")
            log.info("training in bfloat16, scoring in float32 (trainer.precision=32-true trains in float32)")
        spent = fitting.fit(module, batches, make_trainer, folder, keep, tuning.logger)
    if launched_rank() == 0:
        unchecked = folder / "adapter.unchecked"
        adapter_folder.save(adapted, base, unchecked)
        # The checkpoints stay until the gate has decided, so that a run killed here does not train again. Those of an
        # adapter that failed are of no use.
        try:
            gate.check(unchecked)
        except GateError:
            fitting.remove_checkpoints(folder)
            raise
        unchecked.rename(target)
        fitting.remove_checkpoints(folder)
    return adapted, spent


def rounds_base(tuning: Tuning, model: LanguageModel) -> bool:
    """Whether training rounds the frozen weights to bfloat16: on a CPU where that pays, unless the run says otherwise.

    A look at the dev set scores with the weights as they are, and the evaluation with exact ones. So with
    `training.watch` they stay exact.
    """
    on_cpu, watches = model.device.type == "cpu", tuning.recipe.watch.every is not None
    return on_cpu and not watches and _option(tuning, "precision") == "auto" and bf16_pays(model)


def asking(adapted: peft.PeftModel, base: Base, layout: Layout, sharded: bool = False) -> Ask | None:
    """Asks the base about texts, once for all runs; None where every step must ask it.

    That is so where an adapter or a sharding changes the output layer, or the model scales its logits behind it.
    """
    if sharded or not likelihood.plain_head(adapted):
        return None
    answers = partial(_said_by_base, adapted, _identity(base), layout)  # picklable, for ddp_spawn
    try:
        answers([Span((1, 2, 3), 2) if base.kind == "causal" else Masked((1, 2, 3), (1,), (2,))])
    except ValueError as error:
        log.info("note: %s; the base is asked in every step", error)
        return None
    return answers


def _identity(base: Base) -> str:
    """What the base's answers depend on beside the text and the type in which the weights are held at the time."""
    return f"{base.sha256} {arithmetic(base.model)} {base.model.device.type} {code_sha256('scoring', 'models')}"


def _said_by_base(adapted: peft.PeftModel, identity: str, layout: Layout, spans: Sequence[Scored]) -> list[Said]:
    key = f"{identity} {likelihood.dtype(adapted)}"  # of now: training may round the weights
    with adapted.disable_adapter():
        return ask(adapted, spans, layout, batched.budget(adapted), assets.cache_dir(), key)


def _aims(adapted: peft.PeftModel, base: Base, layout: Layout, pairs: Sequence[Pair], kernels: Kernels) -> list[float]:
    """The log-odds that each pair is to get, from the cache where another run asked for them."""
    if not pairs:
        return []
    spans = [span for pair in pairs for span in pair[:2]]
    key = text_sha256(f"{_identity(base)} {likelihood.dtype(adapted)} {[tuple(s) for s in spans]}")

    def make() -> np.ndarray:
        with adapted.disable_adapter(), kernels():
            progress = bar("asking the base about pairs")
            return batched.score(adapted, spans, layout, batched.budget(adapted), progress)

    path = assets.cache_dir() / "reference" / f"{key}.npy"
    found = cached(path, kept_scores, make, keep_scores, "ask the base about pairs")
    places = aims(pairs, of_pairs(torch.as_tensor(found), len(pairs)))
    number = counted(len(pairs), "pair")
    log.info("balance: %s, log-odds %.2f to %.2f nats by place", number, min(places), max(places))
    return places


def _option(tuning: Tuning, name: str) -> str | None:
    """An option of the trainer, which exists only once training begins."""
    return getattr(tuning.make_trainer, "keywords", {}).get(name)


def _keep(adapted: peft.PeftModel, base: Base, folder: Path) -> Path:
    adapter_folder.save(adapted, base, folder)
    return folder


def _examples(tuning: Tuning, base: Base, triplets: Sequence[Triplet]) -> list[Texts]:
    """The spans that the objective scores in each sentence and in its counterparts."""
    pairs, dropped = paired(triplets, tuning.objective.contrasts, tuning.objective.compares)
    limit = _max_positions(tuning, base)
    found = examples(pairs, tuning.objective, base.tokens, limit, tuning.recipe.start_token)
    dropped.update(texts for texts in found if isinstance(texts, str))
    for reason, count in dropped.items():
        of, are = counted(len(triplets), "sentence"), plural(count, "is", "are")
        log.info("note: %s of %s %s not trained on: %s", f"{count:,}", of, are, reason)
    kept = [texts for texts in found if not isinstance(texts, str)]
    if not kept:
        raise UserError(
            f"none of {counted(len(triplets), 'sentence')} can be trained on ({', '.join(dropped)}); choose other data"
        )
    if alone := sum(len(texts) == 1 for texts in kept) if tuning.objective.contrasts else 0:
        if alone == len(kept):
            reason = "no sentence is about a bias whose stereotypes are unlearned (objective.biases)"
            raise UserError(f"{reason}; choose objective=bounded")
        of, are = counted(len(triplets), "sentence"), plural(alone, "is", "are")
        log.info("note: %s of %s %s learned without counterparts: about other biases", f"{alone:,}", of, are)
    return kept


def _neutral(tuning: Tuning, base: Base) -> list[Scored]:
    """Neutral texts within the model's context."""
    spans, limit = tuning.neutral.spans(base, tuning.recipe.start_token), _max_positions(tuning, base)
    kept = [span for span in spans if fits(span, limit)]
    if len(kept) < len(spans):
        out, of = len(spans) - len(kept), counted(len(spans), "neutral text")
        are = plural(out, "is", "are")
        log.info("note: %d of %s %s left out: longer than the model's %d tokens", out, of, are, limit)
    if not kept:
        raise UserError(f"no neutral text is within the model's {limit} tokens; set neutral.longest to fewer")
    return kept


def _max_positions(tuning: Tuning, base: Base) -> int | None:
    limit = base.max_positions
    return limit and limit - adapters.prompt_length(tuning.adapter)


def _checkpoint_gradients(adapted: peft.PeftModel) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    base = adapted.get_base_model()
    assert isinstance(base, PreTrainedModel)
    base.enable_input_require_grads()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in adapted.modules():
        if hasattr(module, "gradient_checkpointing"):
            # transformers checkpoints a module only if it is in training mode. Set the flag on the module alone: its
            # children, dropout among them, stay in eval mode.
            module.training = True


def _matched_steps(tuning: Tuning, base: Base, batches: SpanData) -> int | None:
    """Number of steps that makes runs on different sources comparable; None if the recipe's epochs decide."""
    data, recipe = tuning.data, tuning.recipe
    if data.match == "steps":
        return steps_of_examples(data.match_to, recipe.batch_size, recipe.epochs)
    if data.match == "tokens":
        general = _examples(tuning, base, TripletFile("general").load().triplets)
        length = sum(len(span.ids) for texts in general for span in texts) / len(general)
        trainer = tuning.make_trainer()  # knows the number of devices and of batches per step
        return steps_of_tokens(
            recipe.epochs * data.match_to * length,
            batches.tokens_per_step(trainer.world_size, trainer.accumulate_grad_batches),
        )
    return None
