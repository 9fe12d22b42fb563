"""Training from start to end, or from a checkpoint: which callbacks run, what is kept, what is removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import peft
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from debias.records import Watch
from debias.training.batches import SpanData
from debias.training.callbacks import Diverged, LossCurve, SaveOnSignal, ShowProgress, StopAfter, WholeFiles
from debias.training.module import Debiaser
from debias.training.rank_allocation import RankAllocation
from debias.training.spawned import lines_brought

CHECKPOINT = "checkpoint.ckpt"  # the state to resume from
BEST = "best.ckpt"  # the best adapter on the dev set, for early stopping


class Spent(NamedTuple):
    """What made the adapter: optimiser steps, and the positions that this process computed for them.

    Neutral text and padding count too. Both include what was done before the checkpoint that a run resumes from.
    """

    steps: int
    tokens: int


def fit(
    module: Debiaser,
    data: SpanData,
    make_trainer: Callable[..., pl.Trainer],
    folder: Path,
    keep: Callable[[], Path] | None = None,
    logger: Logger | bool = False,
) -> Spent:
    """Train the adapter, from the folder's checkpoint if there is one. Call `remove_checkpoints` once it is safe.

    Args:
        keep: saves the last finite adapter if the loss becomes NaN or inf, and returns where.
        logger: gets the loss and the learning rate, which also go to train.csv.

    Raises KeyboardInterrupt on Ctrl-C and SIGTERM (Lightning would exit with status 1).
    """
    checkpoint, recipe, tuner = folder / CHECKPOINT, module.recipe, module.model.base_model
    watch = recipe.watch if module.dev_scores is not None and recipe.watch.every else None
    # Lightning counts batches, of which a step may accumulate several.
    batches = int(getattr(make_trainer, "keywords", {}).get("accumulate_grad_batches") or 1)
    restores_best = watch is not None and watch.patience is not None
    trainer = make_trainer(
        max_epochs=recipe.epochs if module.steps is None else -1,
        callbacks=[
            LossCurve(folder / "train.csv"),
            ShowProgress(module.steps),
            StopAfter(module.steps),
            SaveOnSignal(checkpoint),
            Diverged(module.gather, keep),
            *([RankAllocation(tuner, module.steps, restores_best)] if isinstance(tuner, peft.AdaLoraModel) else ()),
            ModelCheckpoint(folder, checkpoint.stem, save_on_train_epoch_end=True, enable_version_counter=False),
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
        **({"val_check_interval": batches * (watch.every or 1), "check_val_every_n_epoch": None} if watch else {}),
    )
    last = str(checkpoint) if checkpoint.is_file() else None
    try:
        with lines_brought(trainer):
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except (SystemExit, SIGTERMException) as error:
        raise KeyboardInterrupt from error
    module.gather()  # Lightning skips `on_train_end` if the checkpoint was written after the last epoch
    if trainer.is_global_zero and (best := folder / BEST).is_file():
        module.load_state_dict(torch.load(best, weights_only=True)["state_dict"], strict=False)  # adapter only
    found = trainer.callback_metrics  # under ddp_spawn, the only counters that come back from the processes
    return Spent(int(found.get("steps", trainer.global_step)), int(found.get("positions", module.read)))


def remove_checkpoints(folder: Path) -> None:
    """Forget a run's training state: the next `fit` in this folder starts from scratch."""
    for name in (CHECKPOINT, BEST):
        (folder / name).unlink(missing_ok=True)


def _watching(watch: Watch, folder: Path) -> list[pl.Callback]:
    """Callbacks that stop training by dev scores."""
    callbacks: list[pl.Callback] = []
    if watch.stop_at is not None:  # stop at the threshold; the patience is never reached
        callbacks.append(
            EarlyStopping("dev_SS", mode="min", stopping_threshold=watch.stop_at, patience=10**9, verbose=False)
        )
    if watch.patience is not None:
        callbacks.append(EarlyStopping("dev_ICAT", mode="max", patience=watch.patience))
        callbacks.append(
            ModelCheckpoint(folder, Path(BEST).stem, monitor="dev_ICAT", mode="max", enable_version_counter=False)
        )
    return callbacks
