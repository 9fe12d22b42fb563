"""The LightningModule that trains an adapter on a frozen base, and the trainer made for it.

Only the adapter is trained; every weight of the base is frozen. The loss of a batch is

    objective(scored tokens) + retention * KL(base || model) per unscored token + balance * mean over pairs

The first term is what debiases. The second, retention, keeps the model close to its base by the KL term wherever
nothing is to be learned: on the other tokens of the training sentences and on neutral text. The base's predictions come
from the same model with its adapter switched off. The third, balance, gives two words the same odds after every
role (`debias.training.balance`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_scheduler

from debias.models.base import bf16_is_native
from debias.models.placement import inputs_on, is_spread
from debias.models.ranks import ignores_slurm, in_slurm_step, launched_processes
from debias.records import Count, Positive, Recipe, UserError
from debias.scoring.likelihood import beside_base, beside_target, span_logprobs
from debias.training import balance, sharding
from debias.training.balance import of_pairs
from debias.training.batches import Step
from debias.training.noise import noisy_embeddings
from debias.training.objectives import Objective

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")  # those that leave the base's weights as they are

DevScores = Callable[[peft.PeftModel], dict[str, float]]  # figures of a model on a dev set, by name


class Debiaser(pl.LightningModule):
    """Trains the adapter of a PEFT model.

    Args:
        model: a frozen base with a trainable adapter.
        objective: the loss on the scored tokens.
        recipe: optimiser, schedule, retention and when to look at the dev set.
        seed: of the adapter's dropout.
        steps: number of optimiser steps; None trains for the recipe's epochs.
        dev_scores: scores the model on a dev set, as often as `recipe.watch` says.
    """

    def __init__(
        self,
        model: peft.PeftModel,
        objective: Objective,
        recipe: Recipe,
        seed: int,
        steps: int | None = None,
        dev_scores: DevScores | None = None,
    ) -> None:
        super().__init__()
        # Hugging Face loads models in eval mode and Lightning leaves the mode alone, so the base's own dropout stays
        # off, and base predictions are the same in every step. The adapter's new modules are in training mode.
        self.model, self.objective, self.recipe, self.seed, self.steps = model, objective, recipe, seed, steps
        self.dev_scores = dev_scores
        self.epoch_loss = MeanMetric(nan_strategy="disable")  # a look for NaN would wait for the device
        self.step_losses: list[Tensor] = []  # loss, bias loss and KL of the current step's batches on this device
        self.read = 0  # positions computed so far
        self.begun = (-1, 0)  # the current step, and the positions computed before it
        self.strict_loading = False  # checkpoints hold the adapter only
        self._gathered: Callable[[], peft.PeftModel] | None = None

    def configure_model(self) -> None:
        """Under trainer=fsdp, replace the model by a sharded copy."""
        if self.device_mesh is not None and self._gathered is None:
            whole, self.model = self.model, sharding.sharded(self.model, self.device_mesh["data_parallel"])
            self._gathered = partial(sharding.gathered, self.model, whole)

    def gather(self) -> None:
        """Replace a sharded model by the whole one with the trained weights. All processes must call this together."""
        if self._gathered is not None:
            self.model, self._gathered = self._gathered(), None

    def on_train_start(self) -> None:
        """Bring the restored state of the optimiser, which Lightning moves to one device, to its parameters."""
        for optimizer in self.trainer.optimizers if is_spread(self.model) else ():
            for parameter, state in optimizer.state.items():
                state.update({k: v.to(parameter.device) for k, v in state.items() if k != "step"})

    def on_train_end(self) -> None:
        """The gate and the evaluation need the whole model."""
        self.gather()

    def cpu(self) -> Debiaser:
        """Stay: Lightning moves a module to the CPU after training; gate and scoring need it where it is."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Debiaser:
        """Move as usual, but leave a spread model where its layers are."""
        if not is_spread(self.model):
            return super().to(*args, **kwargs)
        self.epoch_loss.to(inputs_on(self.model))
        return self

    def training_step(self, step: Step) -> Tensor:
        """Loss of one part of a step, such that the mean over the parts is the step's loss."""
        if is_spread(self.model):  # Lightning has brought the step to the first GPU
            step = move_data_to_device(step, inputs_on(self.model))
        seed = (self.seed, self.global_step)
        with noisy_embeddings(self.model, step.batch, self.recipe.noise, step.length, seed):
            return self._loss(step)

    def _loss(self, step: Step) -> Tensor:
        batch, retention, pairs = step.batch, self.recipe.retention, len(step.aim_P)
        if retention or self.objective.needs_base or pairs:
            beside = (
                beside_base(self.model, batch, drift=bool(retention))
                if step.target is None
                else beside_target(self.model, batch, step.target)
            )
            loss_B = self._losses(step, beside.logprob_S, beside.base_S)
            kl = _mean(beside.drift, step.num_context, step.parts)
            bias_loss = _mean(loss_B, step.weight, step.parts)
            loss = bias_loss + retention * kl
            if pairs:
                logprob_P2, base_P2 = (of_pairs(t[step.scored_I], pairs) for t in (beside.logprob_S, beside.base_S))
                loss_P = balance.losses(logprob_P2, base_P2, step.aim_P)
                balanced = self.recipe.balance * _mean(loss_P, step.num_pairs, step.parts)
                loss, bias_loss = loss + balanced, bias_loss + balanced
        else:
            logprob_S = span_logprobs(self.model, batch)
            loss_B = self._losses(step, logprob_S, logprob_S.detach())
            loss = bias_loss = _mean(loss_B, step.weight, step.parts)
            kl = torch.zeros_like(loss)
        self.read += batch.input_ids_BT.numel()
        self.step_losses.append(torch.stack([loss.detach(), bias_loss.detach(), kl.detach()]))
        # Each part takes its share of the step's weight, so that the epoch's mean weights steps by their examples.
        self.epoch_loss.update(loss.detach(), step.weight / step.parts)
        mean, of_bias, of_kl = torch.stack(self.step_losses).mean(0)
        self.log("loss", mean, batch_size=len(loss_B), sync_dist=True)
        self.log_dict({"bias_loss": of_bias, "kl": of_kl}, batch_size=len(loss_B), sync_dist=True)
        done = {"steps": self.global_step + 1.0, "positions": float(self.read)}  # read by `fit`
        self.log_dict(done, batch_size=1, logger=False)
        # Lightning divides by the number of accumulated batches, DDP by the number of devices. Only an epoch's single
        # short step has fewer parts than that.
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size / step.parts)

    def _losses(self, step: Step, logprob_S: Tensor, base_S: Tensor) -> Tensor:
        """Loss of each example. Neutral texts have no scored tokens and belong to no example; pairs come last."""
        logprob_BK, base_BK = (t[step.scored_I][step.text_BK] for t in (logprob_S, base_S))
        return self.objective.losses(logprob_BK, base_BK, step.num_tokens_BK)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        self.log("epoch_loss", self.epoch_loss.compute())
        self.epoch_loss.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the model on the dev set."""
        assert self.dev_scores is not None
        figures = {f"dev_{name}": value for name, value in self.dev_scores(self.model).items()}
        self.log_dict(figures, batch_size=1)
        log.info("step %d: %s", self.global_step, ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))

    def configure_optimizers(self) -> Any:
        """AdamW on the adapter's parameters; the learning rate changes with every step."""
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay)
        steps = self.steps or int(self.trainer.estimated_stepping_batches)
        scheduler = get_scheduler(self.recipe.schedule, optimizer, int(self.recipe.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        """Seed dropout from seed, step and part alone, so that a resumed run draws what an uninterrupted one would."""
        accumulated = batch_idx % self.trainer.accumulate_grad_batches  # batches of this step so far
        if accumulated == 0:
            self.step_losses.clear()
            self.begun = (self.global_step, self.read)
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 1_009 + self.global_rank + (accumulated << 40))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the frozen base: it is the same before and after, and would make every checkpoint as large as itself."""
        trainable = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}
        # A step that is cut short between its batches is taken again.
        step, read = self.begun
        checkpoint["positions"] = read if step == self.global_step else self.read

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.read = checkpoint.get("positions", 0)


def _mean(total: Tensor, weight: Tensor, parts: int) -> Tensor:
    """A part's contribution to a weighted mean over a whole step: the mean over the parts is sum / weight."""
    # Gradients are averaged over devices and accumulated batches, so divide by the mean weight of a part.
    return total.sum() / (weight.clamp(min=1) / parts)


def make_trainer(
    precision: str = "auto",
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    accumulate_grad_batches: Count = 1,
    gradient_clip_val: Positive | None = None,
    **options: Any,
) -> pl.Trainer:
    """A Lightning trainer. Raises UserError for a precision that would change the base, or devices that are not there.

    Args:
        precision: `32-true`, `bf16-mixed`, `16-mixed` or `auto`: bf16-mixed on a GPU with bfloat16, else 32-true. On a
            CPU the stage asks for bf16-mixed where that pays (`arithmetic.bf16_pays`).
        accelerator, devices, strategy, accumulate_grad_batches, gradient_clip_val, options: as in Lightning's Trainer.
    """
    on_gpu = torch.cuda.is_available() and accelerator != "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    elif precision not in PRECISIONS:
        # Lightning's other precisions convert the whole module: the adapter would belong to another base than the one
        # on disk, and the gate would fail after all the training.
        raise UserError(
            f"trainer.precision={precision} converts the base's weights, which must stay as they are; "
            "choose 32-true, bf16-mixed or 16-mixed"
        )
    elif precision.startswith("bf16") and not on_gpu and not bf16_is_native():
        log.warning("this CPU has no bfloat16 instructions: %s may be a hundred times slower than 32-true", precision)
    placed: Any = strategy
    if strategy == "ddp" and launched_processes() < 2:
        placed = "ddp_spawn"  # Lightning's `ddp` would run the command line again in each process
    if strategy == "fsdp":
        placed = sharding.strategy()
    if ignores_slurm():  # Lightning would wait for the other tasks that the variables promise, or refuse them
        options["plugins"] = [*options.get("plugins", []), LightningEnvironment()]
    try:
        return pl.Trainer(
            precision=precision,  # type: ignore[arg-type]
            accelerator=accelerator,
            devices=devices,
            strategy=placed,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            enable_progress_bar=False,
            **options,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "trainer=cpu works everywhere"
        if in_slurm_step():
            remedy = "start it with srun --ntasks-per-node=N in place of --ntasks=N, or in one task"
        elif accelerator == "cpu":
            remedy = "leave out the trainer's other settings"
        raise UserError(f"this trainer does not work here ({reason}); {remedy}") from error


def check_spread(trainer: pl.Trainer, device_map: str | None) -> None:
    """Raise UserError for a trainer that cannot train a model whose layers are on several GPUs."""
    if device_map and trainer.world_size > 1:
        raise UserError(
            f"model.device_map={device_map} gives all GPUs to one model, and trainer.devices={trainer.world_size} "
            "wants a copy on each; set trainer=auto, or remove model.device_map"
        )
    if device_map and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError(f"model.device_map={device_map} needs GPUs, and trainer=cpu trains on none; remove one of them")
