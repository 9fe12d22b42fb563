"""Noise on the word embeddings while an adapter is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn

from debias.scoring.layouts import Batch

DRAWN = 1021  # vectors of noise a step; a prime, so that neighbouring tokens and places take different ones
STRIDE = 31


@contextmanager
def noisy_embeddings(
    model: peft.PeftModel, batch: Batch, alpha: float, length: Tensor, seed: tuple[int, int]
) -> Iterator[None]:
    """In the block, uniform noise is added to the word embeddings wherever gradients are computed (Jain et al. 2024).

    Within a step, a token at a place in its text always gets the same noise. So a step is the same however it is
    divided among batches and processes, and texts that share a prefix may share a row.

    Args:
        alpha: the noise is at most this over the root of (length * width); 0: none.
        length: mean tokens of the step's texts.
        seed: of the run, and number of the step.
    """
    if not alpha:
        yield
        return
    base: Any = model.get_base_model()
    embeddings = base.get_input_embeddings()

    def add(_: nn.Module, read: tuple[Tensor, ...], embedded_BTD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the base's answers are without noise
            return embedded_BTD
        device, width = embedded_BTD.device, embedded_BTD.shape[-1]
        generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])  # the same numbers for every device
        drawn_ND = 2 * torch.rand(DRAWN, width, generator=generator).to(device) - 1
        which_BT = (read[0] * STRIDE + batch.position_ids_BT.to(device)) % DRAWN
        most = alpha / (length.to(device) * width).sqrt()
        return embedded_BTD + (most * drawn_ND[which_BT]).to(embedded_BTD.dtype)

    handle = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
