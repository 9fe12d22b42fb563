"""The LightningModule around a frozen base with an adapter, and the trainer that fits it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_scheduler

from debias.models.base import bf16_is_native
from debias.models.ranks import launched_processes
from debias.records import Batch, Encoded, Recipe, Scored, UserError, Watch
from debias.scoring.likelihood import beside_base, span_logprobs
from debias.training import sharding
from debias.training.batches import SpanData
from debias.training.callbacks import Diverged, LossCurve, SaveOnSignal, StopAfter, WholeFiles
from debias.training.rank_allocation import callbacks_for

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.ckpt"
BEST = "best.ckpt"


class Objective(Protocol):
    """What the trainer needs of an objective (`debias/training/objectives.py`)."""

    contrast: str | None
    needs_base: bool

    def span(self, text: Encoded) -> Scored:
        """The tokens of a text that are scored."""

    def losses(self, logprob_BK: Tensor, base_BK: Tensor, num_tokens_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and weight of each example."""


class Spent(NamedTuple):
    """What training took: optimiser steps, and positions read by this process (neutral text and padding included)."""

    steps: int
    tokens: int


class Debiaser(pl.LightningModule):
    """Trains the adapter of a PEFT model on the log-probabilities of spans.

    The base stays in eval mode, as Hugging Face loads it, so its own dropout is off; the adapter's dropout is on.

    Args:
        model: a frozen base with a trainable adapter.
        objective: what the loss is taken on.
        recipe: how it is trained.
        seed: of dropout.
        steps: train for exactly that many optimiser steps; the recipe's epochs decide when empty.
        look: figures of the model on a dev set, by name; only asked where `recipe.watch` says when.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        recipe: Recipe,
        seed: int,
        steps: int | None = None,
        look: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.recipe, self.seed, self.steps = model, objective, recipe, seed, steps
        self.look = look
        self.epoch_loss = MeanMetric()
        self.read = 0
        self.strict_loading = False  # checkpoints hold the trainable part alone
        self._gathered: Callable[[], Any] | None = None

    def configure_model(self) -> None:
        """Where the strategy divides a model among devices (trainer=fsdp), train a divided copy."""
        if self.device_mesh is not None and self._gathered is None:
            whole, self.model = self.model, sharding.sharded(self.model, self.device_mesh["data_parallel"])
            self._gathered = partial(sharding.gathered, self.model, whole)

    def gather(self) -> None:
        """Make a divided model whole again, and leave any other as it is; all processes call it together."""
        if self._gathered is not None:
            self.model, self._gathered = self._gathered(), None

    def on_train_end(self) -> None:
        """What comes next needs the whole model."""
        self.gather()

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch; the epoch's mean is weighted as the batch's."""
        retention = self.recipe.retention
        if retention or self.objective.needs_base:
            beside = beside_base(self.model, batch, drift=bool(retention))
            loss_B, weight_B = self._losses(batch, beside.logprob_S, beside.base_S)
            loss = self._mean(loss_B, weight_B) + retention * self._mean(beside.drift, beside.num_free)
        else:
            logprob_S = span_logprobs(self.model, batch)
            loss_B, weight_B = self._losses(batch, logprob_S, logprob_S.detach())
            loss = self._mean(loss_B, weight_B)
        self.read += batch.input_ids_BT.numel()
        self.epoch_loss.update(loss.detach(), weight_B.sum())
        self.log("loss", loss, prog_bar=True, batch_size=len(loss_B), sync_dist=True)
        done = {"steps": self.global_step + 1.0, "positions": float(self.read)}  # for `fit`, not for a logger
        self.log_dict(done, batch_size=1, logger=False)
        return loss

    def _losses(self, batch: Batch, logprob_S: Tensor, base_S: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and weight of each example; neutral spans, which score nothing, belong to none."""
        scored_S = batch.num_tokens_S > 0
        texts = 1 if self.objective.contrast is None else 2
        of_examples = (t[scored_S].view(-1, texts) for t in (logprob_S, base_S, batch.num_tokens_S))
        return self.objective.losses(*of_examples)

    def _mean(self, total: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over the examples of all devices; devices' gradients are averaged, hence the factor."""
        devices = self.trainer.world_size
        weight = weight.detach().sum().float()
        if devices > 1:
            weight = self.trainer.strategy.reduce(weight, reduce_op="sum") / devices
        return total.sum() / weight.clamp(min=1)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        self.log("epoch_loss", self.epoch_loss.compute(), prog_bar=True)
        self.epoch_loss.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Look at the dev set."""
        assert self.look is not None
        figures = {f"dev_{name}": value for name, value in self.look(self.model).items()}
        self.log_dict(figures, prog_bar=True, batch_size=1)
        log.info("step %d: %s", self.global_step, ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))

    def configure_optimizers(self) -> Any:
        """AdamW over the adapter's parameters with a schedule by step."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay)
        steps = self.steps or int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(self.recipe.schedule, optimizer, int(self.recipe.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on seed, step and device alone, so that a resumed run draws what an undisturbed one would."""
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 1_009 + self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable part alone."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}


def make_trainer(precision: str = "auto", **options: Any) -> pl.Trainer:
    """A Lightning trainer; `precision="auto"` is bf16-mixed on a GPU that has it, else 32-true.

    On the CPU float32 is the default even where bfloat16 has instructions of its own: the products of a small model on
    a hundred tokens are too small to gain from them (docs/decisions.md has the measurement).

    Raises UserError where a device is asked for that is not there.
    """
    on_gpu = torch.cuda.is_available() and options.get("accelerator") != "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    elif precision.startswith("bf16") and not on_gpu and not bf16_is_native():
        log.warning("this processor has no bfloat16 instructions: %s may be a hundred times slower than 32", precision)
    if options.get("strategy") == "ddp" and launched_processes() < 2:
        options["strategy"] = "ddp_spawn"  # the processes are ours to start, and the command line is not run again
    if options.get("strategy") == "fsdp":
        options["strategy"] = sharding.strategy()
    terminal = sys.stderr.isatty()
    if terminal:
        options["callbacks"] = [*options.get("callbacks", []), RichProgressBar()]
    try:
        return pl.Trainer(precision=precision, enable_progress_bar=terminal, **options)  # type: ignore[arg-type]
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the trainer cannot be had here ({reason}); trainer=cpu works everywhere") from error


def fit(
    module: Debiaser,
    data: SpanData,
    make_trainer: Callable[..., pl.Trainer],
    folder: Path,
    keep: Callable[[], Path] | None = None,
    logger: Any = False,
) -> Spent:
    """Train to the end, the recipe's epochs or `module.steps`, from the folder's checkpoint if there is one.

    Args:
        keep: saves the adapter of a run that diverged, as it was before, and returns where.
        logger: of Lightning, which is told the loss and the learning rate beside train.csv.

    Raises KeyboardInterrupt on Ctrl-C and SIGTERM (Lightning would leave with exit status 1).
    """
    checkpoint, recipe = folder / CHECKPOINT, module.recipe
    watch = recipe.watch if module.look is not None and recipe.watch.every else None
    trainer = make_trainer(
        max_epochs=recipe.epochs if module.steps is None else -1,
        callbacks=[
            LossCurve(folder / "train.csv"),
            StopAfter(module.steps),
            SaveOnSignal(checkpoint),
            Diverged(keep),
            *callbacks_for(module.model),
            ModelCheckpoint(folder, checkpoint.stem, save_top_k=1, every_n_epochs=1, enable_version_counter=False),
            *(_watching(watch, folder) if watch else ()),
        ],
        plugins=[WholeFiles()],
        default_root_dir=str(folder),
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        logger=logger,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"val_check_interval": watch.every, "check_val_every_n_epoch": None} if watch else {}),
    )
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if checkpoint.is_file() else None, weights_only=True)
    except (SystemExit, SIGTERMException) as error:
        raise KeyboardInterrupt from error
    if trainer.is_global_zero:  # of several processes one saves and tidies up
        if (best := folder / BEST).is_file():
            module.load_state_dict(torch.load(best, weights_only=True)["state_dict"], strict=False)  # the adapter alone
            best.unlink()
        checkpoint.unlink(missing_ok=True)
    found = trainer.callback_metrics  # a trainer that ran in other processes knows its steps from here alone
    return Spent(int(found.get("steps", 0)), int(found.get("positions", 0)))


def _watching(watch: Watch, folder: Path) -> list[pl.Callback]:
    """Callbacks that stop at a dev score: overshoot guard and early stopping."""
    callbacks: list[pl.Callback] = []
    if watch.stop_at is not None:
        callbacks.append(
            EarlyStopping("dev_SS", mode="min", stopping_threshold=watch.stop_at, patience=10**9, verbose=False)
        )
    if watch.patience is not None:
        callbacks.append(EarlyStopping("dev_ICAT", mode="max", patience=watch.patience))
        callbacks.append(
            ModelCheckpoint(folder, Path(BEST).stem, monitor="dev_ICAT", mode="max", enable_version_counter=False)
        )
    return callbacks
