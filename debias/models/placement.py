"""Which device a model is on outside training. During training, Lightning moves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from transformers import PreTrainedModel


def device() -> torch.device:
    """The best device of this machine; under `torchrun` or `srun`, this process's own GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def place(model: nn.Module, where: torch.device | None = None) -> None:
    """Move a model to `where`, by default the best device. Quantised weights and spread ones stay where they are."""
    if not getattr(model, "is_quantized", False) and not is_spread(model):
        model.to(where or device())


def is_spread(model: nn.Module) -> bool:
    """Whether the layers of a model are on several devices (`model.device_map=auto`)."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def inputs_on(model: nn.Module) -> torch.device:
    """The device for what a model reads. Its logits are there too.

    accelerate hands a spread model's logits back on the device of its inputs. From the device of the output layer they
    need not be moved: a row of them is as long as the vocabulary, an input a number.
    """
    head: Any = model.get_output_embeddings() if is_spread(model) else model  # type: ignore[operator]
    return next(head.parameters()).device


def release(model: nn.Module) -> None:
    """Take accelerate's hooks off a spread model, so that it can be moved to one device and works there."""
    for module in model.modules():
        if "_hf_hook" in vars(module):  # PEFT's wrappers pass on the attributes of what they wrap
            remove_hook_from_module(module)
        vars(module).pop("hf_device_map", None)


@contextmanager
def placed(model: PreTrainedModel) -> Iterator[None]:
    """Move a model to the best device for the block, then back."""
    before = model.device
    place(model)
    try:
        yield
    finally:
        place(model, before)
