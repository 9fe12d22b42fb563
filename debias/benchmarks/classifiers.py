"""Classifiers on top of a language model: a probe of frozen features, or a fine-tuned copy of the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from transformers import get_scheduler

from debias.benchmarks.probe import tuned
from debias.models.placement import is_spread
from debias.progress import Stage, bar, report, stage
from debias.records import Count, Positive, Seed, UserError
from debias.run_identity import code_sha256
from debias.scoring import batched, likelihood
from debias.scoring.layouts import Batch, masked_rows
from debias.scoring.scorer import Scorer
from debias.wording import counted

log = logging.getLogger(__name__)

Ids = tuple[int, ...]


class Texts(NamedTuple):
    """One or two texts as token ids with their start token, and whether their label is the positive one."""

    ids: tuple[Ids, ...]
    label: bool


class Classifier(Protocol):
    """A way to learn a task from a model."""

    name: str

    def predict(self, scorer: Scorer, label: str, train: Sequence[Texts], dev: Sequence[Texts]) -> np.ndarray:
        """Learn from `train`; whether the active model gives each example of `dev` the positive label, shape (N,)."""


class FrozenProbe:
    """A logistic regression on the model's frozen features.

    A text's features are the mean of its last hidden layer. A pair has the features |u - v| and u * v (Conneau & Kiela
    2018).
    """

    name = "frozen_probe"

    def predict(self, scorer: Scorer, label: str, train: Sequence[Texts], dev: Sequence[Texts]) -> np.ndarray:
        """Fit the probe on `train` and apply it to `dev`."""
        texts = list(dict.fromkeys(ids for e in [*train, *dev] for ids in e.ids))

        def fresh() -> np.ndarray:
            scorer.positions += sum(map(len, texts))
            return batched.mean_hidden(
                scorer.model, texts, scorer.token_budget, bar(f"scoring {label}, {scorer.active} model"), skip=1
            )

        mean_SD = scorer.cached([b"mean_hidden", *map(_content, texts)], fresh)
        if not np.isfinite(mean_SD).all():
            raise UserError(f"features of the {scorer.active} model are NaN or inf; lower training.lr")
        row = dict(zip(texts, mean_SD, strict=True))
        feature_ND = np.stack([_of_pair(*(row[ids] for ids in e.ids)) for e in [*train, *dev]])
        probe = tuned(feature_ND[: len(train)], np.array([e.label for e in train]))
        return probe.predict(feature_ND[len(train) :])


class FineTuned:
    """A copy of the model with a linear layer on top; all weights learn the task, with the debiasing adapter on or off.

    This is how GLUE is usually run (Devlin et al. 2019), with two differences. The layer reads the mean of the last
    hidden states, which causal and masked models both have, and a pair is two consecutive texts without segment
    embeddings.

    Args:
        epochs: passes over the training examples.
        lr: peak learning rate of AdamW, with linear warm-up over 6% of the steps and linear decay to zero.
        batch_size: examples per step.
        seed: of the layer's initial weights and the order of examples.
    """

    name = "fine_tuned"

    def __init__(self, epochs: Count = 3, lr: Positive = 2e-5, batch_size: Count = 16, seed: Seed = 1) -> None:
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed

    def predict(self, scorer: Scorer, label: str, train: Sequence[Texts], dev: Sequence[Texts]) -> np.ndarray:
        """Fine-tune on `train` and apply to `dev`. Raises UserError for a model whose layers are on several devices."""
        if is_spread(scorer.model):
            raise UserError("fine-tuning copies the model to one device; leave glue_finetuned out, or model.device_map")
        code = code_sha256("benchmarks/classifiers.py")
        options = repr((code, self.name, self.epochs, self.lr, self.batch_size, self.seed, len(train)))
        content = [options.encode(), *(part for e in [*train, *dev] for part in _example(e, scorer.max_positions))]
        return scorer.cached(content, lambda: self._learned(scorer, label, train, dev)) > 0

    def _learned(self, scorer: Scorer, label: str, train: Sequence[Texts], dev: Sequence[Texts]) -> np.ndarray:
        """Logits of the positive label on `dev`. Raises UserError if training diverges."""
        log.info("%s: fine-tuning the %s model on %s", label, scorer.active, counted(len(train), "example"))
        limit = scorer.max_positions
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            # A copy learns: the scorer's own model is needed again for the next task.
            module = _Classifier(copy.deepcopy(scorer.model).float(), self.lr)
            examples: Any = [_joint(e, limit) for e in train]
            order: Any = DataLoader(examples, self.batch_size, shuffle=True, collate_fn=_collate)
            trainer = pl.Trainer(
                max_epochs=self.epochs, accelerator="cpu" if scorer.device.type == "cpu" else "auto", devices=1,
                logger=False, enable_checkpointing=False, enable_model_summary=False, gradient_clip_val=1.0,
                enable_progress_bar=False,
            )  # fmt: skip
            off = hasattr(module.model, "disable_adapter") and scorer.active == "base"
            with module.model.disable_adapter() if off else nullcontext():
                with stage(f"fine-tuning on {label}, {scorer.active} model", self.epochs * len(order)) as module.shown:
                    trainer.fit(module, order)
                logits = self._logits(module.to(scorer.device), [_joint(e, limit) for e in dev])
        if not np.isfinite(logits).all():
            raise UserError(f"{label}: fine-tuning diverged; lower eval.glue_finetuned.classifier.lr")
        return logits

    @torch.inference_mode()
    def _logits(self, module: _Classifier, dev: Sequence[tuple[Ids, bool]]) -> np.ndarray:
        found = [
            module(likelihood.on_device(module.model, _collate(dev[k : k + self.batch_size])[0]))
            for k in range(0, len(dev), self.batch_size)
        ]
        return torch.cat(found).cpu().numpy()


class _Classifier(pl.LightningModule):
    """A language model with a linear layer over the mean of its last hidden states."""

    def __init__(self, model: Any, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model.requires_grad_(True), lr
        self.layer = nn.Linear(likelihood.width(model), 1)
        self.shown: Stage

    def forward(self, batch: Batch) -> Tensor:
        """Logit of the positive label of each text."""
        return self.layer(likelihood.mean_hidden_of(self.model, batch, skip=1))[:, 0]

    def training_step(self, batch: tuple[Batch, Tensor]) -> Tensor:
        """Mean log-loss."""
        loss = binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Show how far it is."""
        report(self.shown, self.global_step)

    def configure_optimizers(self) -> Any:
        """AdamW with a linear schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler("linear", optimizer, int(0.06 * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _of_pair(first_D: np.ndarray, second_D: np.ndarray | None = None) -> np.ndarray:
    return first_D if second_D is None else np.concatenate([np.abs(first_D - second_D), first_D * second_D])


def _joint(example: Texts, limit: int | None) -> tuple[Ids, bool]:
    """Texts joined into one, without the second one's start token and cut to the model's limit, and the label."""
    first, *rest = example.ids
    return (*first, *(token for ids in rest for token in ids[1:]))[:limit], example.label


def _collate(examples: Sequence[tuple[Ids, bool]]) -> tuple[Batch, Tensor]:
    rows = likelihood.rows_of([ids for ids, _ in examples])
    return masked_rows(rows), torch.tensor([float(label) for _, label in examples])


def _content(ids: Ids) -> bytes:
    return np.array([len(ids), *ids]).tobytes()


def _example(example: Texts, limit: int | None) -> tuple[bytes, bytes]:
    ids, label = _joint(example, limit)
    return _content(ids), bytes([label])
