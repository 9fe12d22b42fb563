"""AdaLoRA's share in training: after each optimiser step it decides which ranks stay, and its factors stay orthogonal.

PEFT leaves the first to the training loop, and adds the second to a loss that is computed inside the model only.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from peft import AdaLoraModel
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from debias.records import UserError


def callbacks_for(model: Any) -> list[Callback]:
    """What the adapter on a model needs to be told while it trains."""
    return [RankAllocation(model.base_model)] if isinstance(model.base_model, AdaLoraModel) else []


class RankAllocation(Callback):
    """Moves the rank budget of an AdaLoRA model along its schedule, which is given in shares of the run's steps."""

    averages = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # importance of each number, its running mean and uncertainty

    def __init__(self, model: AdaLoraModel) -> None:
        self.model, self.allocator = model, model.rankallocator
        self.config: Any = model.peft_config[model.trainable_adapter_name]
        self.done = 0  # steps that were told

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Now the number of steps is known. Raises UserError where the schedule does not fit into it."""
        if pl_module.device_mesh is not None:
            raise UserError("adapter=adalora moves ranks between layers and needs them whole; choose trainer=ddp")
        total = int(pl_module.steps or trainer.estimated_stepping_batches)
        first, last = (_steps(share, total) for share in (self.config.tinit, self.config.tfinal))
        if first + last >= total or last > total - 2:  # the importance of ranks is not known before the second step
            raise UserError(
                f"adapter.tinit and adapter.tfinal take {first} and {last} of the run's {total} steps, which leaves "
                "none to move ranks in; lower them, or train longer"
            )
        if pl_module.look is not None and pl_module.recipe.watch.patience is not None:
            raise UserError(
                "adapter=adalora cannot go back to its best adapter, for its ranks have moved since; "
                "leave training.watch.patience out (stop_at may stay)"
            )
        self.config.total_step, self.config.tinit, self.config.tfinal = total, first, last
        self.done = trainer.global_step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add the gradient of the penalty; the loss curve does not show it."""
        penalty = self.config.orth_reg_weight * self._distance() / trainer.accumulate_grad_batches
        if penalty.requires_grad:
            penalty.backward()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """After an optimiser step, while the gradients are still there."""
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            self.model.update_and_allocate(self.done)

    def _distance(self) -> Tensor:
        """Mean Frobenius distance of the factors' products with themselves from the identity (eq. 4)."""
        factors = [p if "lora_A" in n else p.T for n, p in self.model.named_parameters() if _is_factor(n)]
        return torch.stack([torch.norm(f @ f.T - torch.eye(len(f), device=f.device)) for f in factors]).mean()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know beside the weights."""
        return {name: getattr(self.allocator, name) for name in self.averages} | {"ranks": self.config.rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint was written."""
        for name in self.averages:
            setattr(self.allocator, name, state_dict[name])
        self.config.rank_pattern = state_dict["ranks"]


def _steps(share: float, total: int) -> int:
    return int(share * total) if share < 1 else int(share)


def _is_factor(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name
