"""What a causal model writes after beginnings: sampled tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from debias.models.base import LanguageModel


def end_tokens(model: Any) -> set[int]:
    """Ids of the tokens with which the model ends a text."""
    ends = model.generation_config.eos_token_id
    return {token for token in (ends if isinstance(ends, list) else [ends]) if token is not None}


@torch.inference_mode()
def drawn(
    model: LanguageModel, begin_NT: Tensor, longest: int, top_p: float, real_NT: Tensor | None = None
) -> list[list[int]]:
    """At most `longest` tokens drawn after each beginning; where a text has ended, padding follows its end token.

    Args:
        begin_NT: token ids, on the device of the model.
        top_p: nucleus sampling: draw from the likeliest tokens that hold this share of the probability.
        real_NT: which tokens of the beginnings are real, where some are padding on the left; None: all of them.
    """
    writer: Any = model  # transformers does not type `generate` for PreTrainedModel
    # Temperature and top-k are stated because the model's own generation config may set others.
    answer_NT = writer.generate(
        input_ids=begin_NT, attention_mask=torch.ones_like(begin_NT) if real_NT is None else real_NT, do_sample=True,
        temperature=1.0, top_k=0, top_p=top_p, max_new_tokens=longest, pad_token_id=min(end_tokens(model), default=0),
    )  # fmt: skip
    return answer_NT[:, begin_NT.shape[1] :].tolist()
