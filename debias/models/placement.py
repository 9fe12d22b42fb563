"""Where a model computes outside training, in which Lightning moves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def device() -> torch.device:
    """The best device there is, of several GPUs the one of this process (`torchrun`, `srun`)."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def place(model: Any, where: torch.device | None = None) -> None:
    """Move a model to a device, the best one unless told otherwise; quantised weights are where they were loaded."""
    if not getattr(model, "is_quantized", False):
        model.to(where or device())


@contextmanager
def placed(model: Any) -> Iterator[None]:
    """On the best device inside the block, and where it was afterwards."""
    before = model.device
    place(model)
    try:
        yield
    finally:
        place(model, before)
