"""AdaLoRA's part of the training loop (Zhang et al. 2023).

AdaLoRA writes each weight change as P diag(lambda) Q and zeroes the lambdas that matter least, so that important layers
keep more ranks. PEFT leaves two things to the training loop: calling `update_and_allocate` after every optimiser step,
and the penalty that keeps P and Q orthogonal (PEFT adds it only to a loss that the model itself computes; ours is
computed outside).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from peft import AdaLoraModel
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from debias.records import UserError
from debias.wording import counted


class RankAllocation(Callback):
    """Moves AdaLoRA's rank budget along its schedule, which the config gives in shares of the run's steps.

    Args:
        model: the AdaLoRA model.
        steps: optimiser steps of the run; None: those that the trainer estimates.
        restores_best: whether the run will go back to its best adapter at the end.
    """

    averages = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # importance of each weight, its running mean and uncertainty

    def __init__(self, model: AdaLoraModel, steps: int | None, restores_best: bool) -> None:
        self.model, self.allocator = model, model.rankallocator
        self.steps, self.restores_best = steps, restores_best
        self.config: Any = model.peft_config[model.trainable_adapter_name]
        self.done = 0  # optimiser steps that the allocator has seen

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn the schedule's shares into steps. Raises UserError if it does not fit into the run."""
        if pl_module.device_mesh is not None:
            raise UserError("adapter=adalora compares ranks across whole layers and cannot be sharded; use trainer=ddp")
        total = int(self.steps or trainer.estimated_stepping_batches)
        first, last = (_steps(share, total) for share in (self.config.tinit, self.config.tfinal))
        if first + last >= total or last > total - 2:  # the allocator knows no rank's importance before the second step
            raise UserError(
                f"adapter.tinit and adapter.tfinal take {first} and {last} of the run's {counted(total, 'step')}, "
                "which leaves none for moving ranks; lower them, or train longer"
            )
        if self.restores_best:
            raise UserError(
                "adapter=adalora cannot go back to its best adapter, because its ranks have moved since; "
                "remove training.watch.patience (training.watch.stop_at may stay)"
            )
        self.config.total_step, self.config.tinit, self.config.tfinal = total, first, last
        self.done = trainer.global_step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Add the gradient of the orthogonality penalty, once per step. The loss curve does not include it."""
        penalty = self.config.orth_reg_weight * self._distance()
        if penalty.requires_grad:
            penalty.backward()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Move ranks after an optimiser step, before the gradients are cleared: importance is |weight * gradient|."""
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            self.model.update_and_allocate(self.done)

    def _distance(self) -> Tensor:
        """Mean of |P^T P - I| and |Q Q^T - I| over all factors, Frobenius norms (eq. 4 squares them; PEFT does not)."""
        factors = [p if "lora_A" in n else p.T for n, p in self.model.named_parameters() if _is_factor(n)]
        return torch.stack([torch.norm(f @ f.T - torch.eye(len(f), device=f.device)) for f in factors]).mean()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: the running means and the ranks that are left."""
        return {name: getattr(self.allocator, name) for name in self.averages} | {"ranks": self.config.rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name in self.averages:
            setattr(self.allocator, name, state_dict[name])
        self.config.rank_pattern = state_dict["ranks"]


def _steps(share: float, total: int) -> int:
    return int(share * total) if share < 1 else int(share)


def _is_factor(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name
