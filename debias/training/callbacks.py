"""Lightning callbacks: the loss curve, checkpoints on signals, and when to stop."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from debias import progress
from debias.files import naming, whole_file
from debias.records import UserError
from debias.training.batches import Step


class Row(NamedTuple):
    """A row of train.csv whose losses may still be on the device."""

    step: int
    epoch: int
    lr: float
    tokens_per_second: float
    losses_L: list[Tensor]  # loss, bias loss and KL


class LossCurve(Callback):
    """Writes train.csv, a row per optimiser step.

    The loss (nats) is `bias_loss` + `training.retention` * `kl`.
    """

    columns = ("step", "epoch", "loss", "lr", "tokens_per_second", "bias_loss", "kl")
    every = 10  # steps between two writes: reading a loss waits until the device has nothing left to do

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, os.getpid()
        self.rows: list[Row] = []  # to be written

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows up to the checkpoint: a killed process may have written later ones, which will be repeated."""
        self.step = trainer.global_step
        self.start, self.positions = 0.0, 0
        if not trainer.is_global_zero:
            return
        if os.getpid() != self.process:  # Lightning calls no `on_exception` in processes that it spawned
            Finalize(None, self._write, exitpriority=1)
        kept: list[dict[str, str]] = []
        if trainer.global_step and self.path.is_file():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if _int(row.get("step")) <= trainer.global_step]
        with whole_file(self.path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start timing the step."""
        if not self.positions:
            self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        """Keep a row after the last accumulated batch of a step."""
        self.positions += batch.batch.input_ids_BT.numel()
        if not trainer.is_global_zero or trainer.global_step == self.step:
            return
        speed = self.positions / (time.perf_counter() - self.start)
        self.step, self.positions = trainer.global_step, 0
        metrics = trainer.callback_metrics
        losses = [metrics[name].detach() for name in ("loss", "bias_loss", "kl")]
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(Row(trainer.global_step, trainer.current_epoch, lr, speed, losses))
        if len(self.rows) == self.every:
            self._write()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the rows before the checkpoint: a run that resumes from it does not repeat them."""
        self._write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last rows."""
        self._write()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the rows up to the failure."""
        with contextlib.suppress(RuntimeError):  # the device has failed, and tells no loss
            self._write()

    def _write(self) -> None:
        if not self.rows:
            return
        rows, self.rows = self.rows, []  # even if the disk does not take them: no row may be written twice
        losses_RL = torch.stack([torch.stack(row.losses_L) for row in rows]).tolist()
        with naming(self.path), self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            for row, losses_L in zip(rows, losses_RL, strict=True):
                loss, bias_loss, kl = (f"{value:.6f}" for value in losses_L)
                speed = f"{row.tokens_per_second:.0f}"
                writer.writerow((row.step, row.epoch, loss, f"{row.lr:.3e}", speed, bias_loss, kl))


class ShowProgress(Callback):
    """Shows the step, the epoch and the loss while training lasts.

    Args:
        steps: how many steps there will be; None for the trainer's own estimate.
    """

    every = 1.0  # seconds between two looks at the loss: a look waits until the device has nothing left to do

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.shown: contextlib.ExitStack | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin; a resumed run has only the rest to do."""
        if not trainer.is_global_zero:
            return
        self.before, self.looked = trainer.global_step, -math.inf
        total = (self.steps or int(trainer.estimated_stepping_batches)) - self.before
        self.shown = contextlib.ExitStack()
        self.stage = self.shown.enter_context(progress.stage("training", total, part="train"))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Tell where it is after each step."""
        if self.shown is None or (done := trainer.global_step - self.before) == self.stage.done:
            return
        detail = None
        if (now := time.monotonic()) - self.looked >= self.every:
            self.looked = now
            epochs = f" of {trainer.max_epochs}" if self.steps is None else ""
            loss = float(trainer.callback_metrics["loss"])
            detail = f"epoch {trainer.current_epoch + 1}{epochs}, loss {loss:.2f}"
        progress.report(self.stage, done, detail)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End."""
        self._close()

    def _close(self) -> None:
        if self.shown is not None:
            self.shown.close()
            self.shown = None


class StopAfter(Callback):
    """Ends training after a number of optimiser steps, and keeps a run that has stopped from going on when resumed.

    Lightning's own `max_steps` cannot be used: with it, Lightning 2.6 resumes one epoch too early. Its early stopping
    does not save that it has stopped, so a run that was killed in the gate would train on.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self.stopped = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whether this or another callback has ended training."""
        checkpoint["stopped"] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember it until training starts."""
        self.stopped = checkpoint.get("stopped", False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the checkpoint was written at the end."""
        trainer.should_stop |= self.stopped
        self._stop(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop after the last step."""
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True


class SaveOnSignal(Callback):
    """Saves a checkpoint after the current batch when the process gets SIGTERM, as Slurm and Kubernetes send it.

    Lightning then leaves its loop, and the same command resumes with the next batch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Save if SIGTERM arrived during the batch."""
        if trainer.received_sigterm:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """In the middle of an accumulated step, rewind the saved counters to its start: gradients are not saved."""
        loop = trainer.fit_loop.epoch_loop
        accumulated = loop.batch_progress.current.ready % trainer.accumulate_grad_batches
        if accumulated and not loop.batch_progress.is_last_batch:
            saved = checkpoint["loops"]["fit_loop"]
            for counters in (saved["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
                counters.update({name: count - accumulated for name, count in counters.items()})
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds one at the start of a step


class Diverged(Callback):
    """Stops when the loss is NaN or inf and keeps the last finite adapter.

    It reads one flag per step, between the forward and the backward pass: later, the step would have been taken.

    Args:
        gather: makes a sharded model whole, so that its adapter can be saved.
        keep: saves the adapter and returns where.
        every: steps between the copies of the adapter that are held in memory.
    """

    def __init__(self, gather: Callable[[], None], keep: Callable[[], Path] | None = None, every: int = 10) -> None:
        self.gather, self.keep, self.every = gather, keep, every
        self.good: dict[str, Tensor] = {}  # the adapter's weights at `step`
        self.step = 0

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Raises UserError if the loss of any process is NaN or inf."""
        broken = torch.isfinite(loss.detach()).logical_not().float()
        if trainer.world_size > 1:  # all stop together, or the others would wait for the stopped one forever
            broken = trainer.strategy.reduce(broken, reduce_op="sum")
        if broken == 0:
            if trainer.global_step % self.every == 0:
                self.good = {name: p.detach().clone() for name, p in _trainable(pl_module)}
                self.step = trainer.global_step
            return
        raise UserError(
            f"the loss is NaN or inf at step {trainer.global_step + 1}: training diverged"
            f"{self._kept(trainer, pl_module)}; lower training.lr, raise training.warmup or set "
            "trainer.gradient_clip_val=1, and add overwrite=true"
        )

    def _kept(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        """Save the last finite adapter; returns where, as words. All processes call it: each may hold a shard."""
        if not self.good or self.keep is None:
            return ""
        with torch.no_grad():
            for name, parameter in _trainable(module):
                parameter.copy_(self.good[name])
        self.gather()
        if not trainer.is_global_zero:
            return ""
        return f"; the adapter of step {self.step}, before it diverged, is in {self.keep()}"


def _trainable(module: pl.LightningModule) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints under a temporary name, then renames: a killed process leaves the old or the new one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, then rename."""
        with whole_file(Path(path)) as unfinished:
            super().save_checkpoint(checkpoint, unfinished, storage_options)


def _int(text: str | None) -> float:
    return int(text) if text and text.isdigit() else float("inf")  # drops a half-written row, and a file of others
