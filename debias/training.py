"""The LightningModule around a frozen base with an adapter, and the batches it is trained on."""

from __future__ import annotations

import csv
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import get_scheduler
from transformers.trainer_pt_utils import LengthGroupedSampler

from debias.layouts import Layout
from debias.likelihood import span_logprobs, span_logprobs_and_drift
from debias.records import Batch, Scored

CHECKPOINT = "checkpoint.ckpt"


class Spent(NamedTuple):
    """What training took: optimiser steps, and tokens read by this process (neutral text included)."""

    steps: int
    tokens: int


class Debiaser(pl.LightningModule):
    """Trains the adapter of a PEFT model on the log-probabilities of spans.

    The base stays in eval mode, as Hugging Face loads it, so its own dropout is off; the adapter's dropout is on.

    Args:
        model: a frozen base with a trainable adapter.
        loss: an objective's `loss(logprob_S, num_tokens_S)`.
        lr: peak learning rate of AdamW.
        seed: of dropout.
        schedule: name of a `transformers` schedule (`linear`, `constant`, `cosine`, ...).
        warmup: share of the steps in which the learning rate rises from zero.
        weight_decay: of AdamW.
        retention: weight of the drift from the base, KL(base || model) where nothing is scored.
        steps: train for exactly that many optimiser steps; the trainer's epochs decide when empty.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        lr: float,
        seed: int,
        schedule: str = "linear",
        warmup: float = 0.05,
        weight_decay: float = 0.0,
        retention: float = 0.0,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.lr, self.seed = lr, seed
        self.schedule, self.warmup, self.weight_decay = schedule, warmup, weight_decay
        self.retention, self.steps = retention, steps
        self.epoch_loss = MeanMetric()
        self.strict_loading = False  # checkpoints hold the trainable part alone

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch; the epoch's mean is weighted by scored tokens."""
        if self.retention:
            logprob_S, drift = span_logprobs_and_drift(self.model, batch)
            loss = self.loss(logprob_S, batch.num_tokens_S) + self.retention * drift
        else:
            loss = self.loss(span_logprobs(self.model, batch), batch.num_tokens_S)
        self.epoch_loss.update(loss.detach(), batch.num_tokens_S.sum())
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.num_tokens_S))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        self.log("epoch_loss", self.epoch_loss.compute(), prog_bar=True)
        self.epoch_loss.reset()

    def configure_optimizers(self) -> Any:
        """AdamW over the adapter's parameters with a schedule by step."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.lr, weight_decay=self.weight_decay)
        steps = self.steps or int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(self.schedule, optimizer, int(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on seed, step and device alone, so that a resumed run draws what an undisturbed one would."""
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 1_009 + self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable part alone."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}


class SpanData(pl.LightningDataModule):
    """Batches of spans, grouped by length and shuffled anew in every epoch; batch k of epoch e is always the same.

    Args:
        spans: what the objective wants scored, one per sentence.
        layout: how spans become a batch.
        batch_size: sentences per step and device.
        seed: of the order.
        neutral: spans with nothing scored, on which the model is held to its base.
        num_neutral: how many of them join each batch.
        mix_lengths: take the batches of an epoch in random order: the grouping begins with long sentences, which would
            be all that a run sees that ends early in an epoch.
    """

    def __init__(
        self,
        spans: Sequence[Scored],
        layout: Layout,
        batch_size: int,
        seed: int,
        neutral: Sequence[Scored] = (),
        num_neutral: int = 0,
        mix_lengths: bool = False,
    ) -> None:
        super().__init__()
        self.spans, self.layout, self.batch_size, self.seed = list(spans), layout, batch_size, seed
        self.neutral, self.num_neutral, self.mix_lengths = list(neutral), num_neutral, mix_lengths

    def batches(self, epoch: int) -> list[list[int]]:
        """Numbers of the spans in each batch of an epoch; those from `len(spans)` on are neutral."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        lengths = [len(span.ids) for span in self.spans]
        order = list(LengthGroupedSampler(self.batch_size, lengths=lengths, generator=generator))
        batches = [order[k : k + self.batch_size] for k in range(0, len(order), self.batch_size)]
        if self.mix_lengths:
            batches = [batches[k] for k in torch.randperm(len(batches), generator=generator)]
        if self.num_neutral:
            drawn = torch.randint(len(self.neutral), (len(batches), self.num_neutral), generator=generator)
            batches = [b + (len(order) + d).tolist() for b, d in zip(batches, drawn, strict=True)]
        return batches

    def tokens_per_step(self, devices: int = 1, accumulated: int = 1) -> Iterator[int]:
        """Tokens of the sentences read in step after step, without end; neutral spans do not count."""
        for epoch in itertools.count():
            batches = self.batches(epoch)
            read = [sum(len(self.spans[i].ids) for i in b if i < len(self.spans)) for b in batches]
            even = len(read) - len(read) % devices
            for k in range(0, even, devices * accumulated):
                yield sum(read[k : min(k + devices * accumulated, even)])

    def train_dataloader(self) -> DataLoader[Scored]:
        """The current epoch's batches, shared out among the devices (`reload_dataloaders_every_n_epochs=1`)."""
        trainer = self.trainer
        batches = self.batches(trainer.current_epoch if trainer else 0)
        if trainer and trainer.world_size > 1:
            even = len(batches) - len(batches) % trainer.world_size  # every device takes as many steps
            batches = batches[trainer.global_rank : even : trainer.world_size]
        return DataLoader(self.spans + self.neutral, batch_sampler=batches, collate_fn=self.layout)  # type: ignore[arg-type]


class LossCurve(Callback):
    """Writes train.csv: step, epoch, loss (nats per scored token), learning rate, tokens per second."""

    columns = ("step", "epoch", "loss", "lr", "tokens_per_second")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows up to the checkpoint, drop what a killed process wrote after it."""
        kept: list[dict[str, str]] = []
        if trainer.global_step and self.path.is_file():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if _int(row["step"]) <= trainer.global_step]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Append one row."""
        seconds = time.perf_counter() - self.start
        self.tokens += batch.input_ids_BT.numel()
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        row = (
            trainer.global_step,
            trainer.current_epoch,
            f"{float(outputs['loss']):.6f}",
            f"{lr:.3e}",
            f"{batch.input_ids_BT.numel() / seconds:.0f}",
        )
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)


class StopAfter(Callback):
    """Ends training after so many optimiser steps.

    Not by `max_steps`: with that Lightning 2.6 resumes in the epoch before the one that a checkpoint belongs to.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A process that died after the last step has nothing left to do."""
        self._stop(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop in time."""
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True


def _int(text: str | None) -> float:
    return int(text) if text and text.isdigit() else float("inf")  # a half-written last row is dropped


class WholeFiles(TorchCheckpointIO):
    """Checkpoints under a temporary name first: a killed process leaves the old one or the new one, never a torso."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, then rename."""
        super().save_checkpoint(checkpoint, f"{path}.tmp", storage_options)
        Path(f"{path}.tmp").replace(path)


def make_trainer(precision: str = "auto", **options: Any) -> pl.Trainer:
    """A Lightning trainer; `precision="auto"` is bf16-mixed on a GPU that has it, else 32-true.

    On the CPU float32 is the default even where bfloat16 has instructions of its own: the products of a small model on
    a hundred tokens are too small to gain from them (docs/decisions.md has the measurement).
    """
    if precision == "auto":
        gpu = torch.cuda.is_available() and options.get("accelerator") != "cpu"
        precision = "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"
    terminal = sys.stderr.isatty()
    if terminal:
        options["callbacks"] = [*options.get("callbacks", []), RichProgressBar()]
    return pl.Trainer(precision=precision, enable_progress_bar=terminal, **options)  # type: ignore[arg-type]


def fit(
    module: Debiaser,
    data: SpanData,
    make_trainer: Callable[..., pl.Trainer],
    folder: Path,
    epochs: int,
) -> Spent:
    """Train to the end, `epochs` or `module.steps`, from the folder's checkpoint if there is one.

    Raises KeyboardInterrupt on Ctrl-C (Lightning would leave with exit status 1).
    """
    checkpoint = folder / CHECKPOINT
    curve = LossCurve(folder / "train.csv")
    trainer = make_trainer(
        max_epochs=epochs if module.steps is None else -1,
        callbacks=[
            curve,
            StopAfter(module.steps),
            ModelCheckpoint(folder, checkpoint.stem, save_top_k=1, every_n_epochs=1, enable_version_counter=False),
        ],
        plugins=[WholeFiles()],
        default_root_dir=str(folder),
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, data, ckpt_path=str(checkpoint) if checkpoint.is_file() else None, weights_only=True)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    checkpoint.unlink(missing_ok=True)
    return Spent(trainer.global_step, curve.tokens)
