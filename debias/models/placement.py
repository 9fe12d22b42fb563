"""Which device a model is on outside training. During training, Lightning moves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


def device() -> torch.device:
    """The best device of this machine; under `torchrun` or `srun`, this process's own GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def place(model: nn.Module, where: torch.device | None = None) -> None:
    """Move a model to `where`, by default the best device. Quantised weights stay where they were loaded."""
    if not getattr(model, "is_quantized", False):
        model.to(where or device())


@contextmanager
def placed(model: PreTrainedModel) -> Iterator[None]:
    """Move a model to the best device for the block, then back."""
    before = model.device
    place(model)
    try:
        yield
    finally:
        place(model, before)
