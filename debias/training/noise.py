"""Noise on the word embeddings while an adapter is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn

from debias.scoring.layouts import Batch


@contextmanager
def noisy_embeddings(model: peft.PeftModel, batch: Batch, alpha: float) -> Iterator[None]:
    """In the block, uniform noise is added to the word embeddings wherever gradients are computed (Jain et al. 2024).

    Args:
        alpha: the noise is at most this over the root of (mean length of a text * width); 0: none.
    """
    if not alpha:
        yield
        return
    length = batch.real_BT.sum() / len(batch.num_tokens_S)

    def add(_: nn.Module, __: Any, embedded_BTD: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the base's answers are without noise
            return embedded_BTD
        most = alpha / (length.to(embedded_BTD.device) * embedded_BTD.shape[-1]).sqrt()
        return embedded_BTD + (most * (2 * torch.rand_like(embedded_BTD) - 1)).to(embedded_BTD.dtype)

    base: Any = model.get_base_model()
    handle = base.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
