"""What the frozen base says of the training texts: asked once, and read by every step of every run that needs it.

The KL term compares base and model at every position that a text only reads. The base's side of it never changes. Its
logits there would fill a disk (a vocabulary for each position), but they are a product of the output layer, which the
model shares, with the last hidden state. So the hidden states are kept, and the KL term stays exact.

Shapes: S spans, R positions that spans only read, span by span, D width, M distinct ones of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from debias.assets.cache import cached
from debias.files import whole_file
from debias.models.base import LanguageModel
from debias.models.placement import inputs_on
from debias.progress import bar
from debias.records import Scored
from debias.scoring import likelihood
from debias.scoring.layouts import Batch, Layout
from debias.scoring.likelihood import Target, evaluating, with_logits_at


class Said(NamedTuple):
    """What the base says of one span."""

    logprob: float  # nats
    hidden_LD: Tensor  # its last hidden state at each position that the span only reads, in the dtype of its weights


Ask = Callable[[Sequence[Scored]], list[Said]]  # of any spans; see `ask`


def target(batch: Batch, said: Sequence[Said], kl: bool = True) -> tuple[Batch, Target]:
    """A batch with logits where the KL term needs them, and what the base said of its spans.

    Args:
        kl: whether there is a KL term; without it the target holds the spans' log-probabilities alone.
    """
    base_S = torch.tensor([one.logprob for one in said])
    hidden_RD = torch.cat([one.hidden_LD for one in said])
    if not kl:
        none = torch.zeros(0, dtype=torch.long)
        return batch, Target(base_S, none, none.float(), hidden_RD[none])
    # Spans that share a prefix share the position, and the base says the same of it whichever of them is asked.
    position_M, where_M, weight_M = np.unique(batch.context_R.numpy(), return_index=True, return_counts=True)
    batch, row_M = with_logits_at(batch, torch.from_numpy(position_M))
    weight = torch.from_numpy(weight_M).float()
    return batch, Target(base_S, row_M, weight, hidden_RD[torch.from_numpy(where_M)])


def ask(
    base: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout,
    token_budget: int,
    cache: Path | None = None,
    key: str = "",
) -> list[Said]:
    """What a base without adapter says of the spans, from the cache where it was asked before.

    Args:
        key: everything that the answer depends on beside spans and layout.

    Raises ValueError where hidden states do not tell the base's logits (`likelihood.with_last_hidden`).
    """
    first = np.cumsum([0, *(span.num_context for span in spans)]).tolist()
    if cache is None:
        found = _answers(base, spans, first, layout, token_budget)
    else:
        digest = hashlib.sha256(f"{key} {layout.name} {token_budget}".encode())
        for span in spans:
            digest.update(repr(tuple(span)).encode())
        path = cache / "reference" / f"{digest.hexdigest()}.safetensors"

        def make() -> tuple[Tensor, Tensor]:
            return _answers(base, spans, first, layout, token_budget)

        found = cached(path, _kept, make, _keep, "ask the base about the training texts")
    logprob_S, hidden_RD = found
    return [Said(float(logprob_S[i]), hidden_RD[first[i] : first[i + 1]]) for i in range(len(spans))]


def _kept(path: Path) -> tuple[Tensor, Tensor] | None:
    try:
        file = load_file(path)
        return file["logprob_S"], file["hidden_RD"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _keep(path: Path, answers: tuple[Tensor, Tensor]) -> None:
    with whole_file(path) as unfinished:
        save_file(dict(zip(("logprob_S", "hidden_RD"), answers, strict=True)), unfinished)


def _answers(
    base: LanguageModel, spans: Sequence[Scored], first: Sequence[int], layout: Layout, token_budget: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S,) and hidden states (R, D)."""
    parameter = next(p for p in base.parameters() if p.is_floating_point())
    device = inputs_on(base)
    hidden_RD: Tensor | None = None
    logprob_S = torch.zeros(len(spans), dtype=torch.float64)
    batches = list(layout.packs(spans, token_budget))
    with torch.inference_mode(), evaluating(base):
        for numbers in bar("asking the base", part="ask")(batches, len(batches)):
            batch = layout([spans[i] for i in numbers])
            position_M, where_R = np.unique(batch.context_R.numpy(), return_inverse=True)
            row_R = np.concatenate([np.arange(first[i], first[i + 1]) for i in numbers])
            if not len(batch.position_N):  # neutral texts score nothing; the model is asked for one logit all the same
                batch = batch._replace(position_N=torch.zeros(1, dtype=torch.long))
            at = torch.from_numpy(position_M).to(device)
            found_S, hidden_MD = likelihood.with_last_hidden(base, batch.to(device), at)
            if hidden_RD is None:
                hidden_RD = torch.empty(first[-1], hidden_MD.shape[1], dtype=parameter.dtype)
            hidden_RD[torch.from_numpy(row_R)] = hidden_MD.to(parameter.dtype).cpu()[torch.from_numpy(where_R)]
            logprob_S[numbers] = found_S.cpu().double()
    assert hidden_RD is not None
    return logprob_S, hidden_RD.clone()  # outside inference mode, so that training may read it
