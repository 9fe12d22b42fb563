"""What the frozen base says of the training texts: asked once, and read by every step of every run that needs it.

The KL term compares base and model at every position that a text only reads. The base's side of it never changes. Its
logits there would fill a disk (a vocabulary for each position), but they are a product of the output layer, which the
model shares, with the last hidden state. So the hidden states are kept, and the KL term stays exact.

Shapes: S spans, R positions that spans only read, span by span, D width, M distinct ones of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from debias.progress import bar
from debias.records import Scored
from debias.results import whole_file
from debias.scoring import likelihood
from debias.scoring.layouts import Batch, Layout
from debias.scoring.likelihood import Target, evaluating, with_logits_at


class Reference(NamedTuple):
    """The base's log-probabilities of spans, and its hidden states where they only read."""

    logprob_S: np.ndarray  # nats
    hidden_RD: Tensor  # the base's last hidden state at each position, in the dtype of its weights
    first_S: np.ndarray  # the first row (R) of each span

    def target(self, batch: Batch, spans: Sequence[int]) -> tuple[Batch, Target]:
        """A batch of these spans (their numbers), with logits where the KL term needs them, and the base's side."""
        rows = [np.arange(self.first_S[i], self.first_S[i + 1]) for i in spans]
        # Spans that share a prefix share the position, and the base says the same of it whichever of them is asked.
        position_M, where_M, weight_M = np.unique(batch.context_R.numpy(), return_index=True, return_counts=True)
        row_M = np.concatenate(rows)[where_M]
        batch, logits_M = with_logits_at(batch, torch.from_numpy(position_M))
        return batch, Target(
            torch.from_numpy(self.logprob_S[list(spans)]).float(),
            logits_M,
            torch.from_numpy(weight_M).float(),
            self.hidden_RD[torch.from_numpy(row_M)],
        )


def ask(
    base: Any, spans: Sequence[Scored], layout: Layout, token_budget: int, cache: Path | None = None, key: str = ""
) -> Reference:
    """What a base without adapter says of the spans, from the cache where it was asked before.

    Args:
        key: everything that the answer depends on beside spans and layout.

    Raises ValueError where hidden states do not tell the base's logits (`likelihood.with_last_hidden`).
    """
    if cache is None:
        return _answers(base, spans, layout, token_budget)
    digest = hashlib.sha256(f"{key} {layout.name} {token_budget}".encode())
    for span in spans:
        digest.update(repr(tuple(span)).encode())
    path = cache / "reference" / f"{digest.hexdigest()}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # of jobs that start together one asks and the others wait
        found = _kept(path)
        if found is None:
            found = _answers(base, spans, layout, token_budget)
            with whole_file(path) as half:
                save_file({"hidden_RD": found.hidden_RD, **_numbers(found)}, half)
    return found


def _numbers(found: Reference) -> dict[str, Tensor]:
    return {"logprob_S": torch.from_numpy(found.logprob_S), "first_S": torch.from_numpy(found.first_S)}


def _kept(path: Path) -> Reference | None:
    try:
        file = load_file(path)
        return Reference(file["logprob_S"].numpy(), file["hidden_RD"], file["first_S"].numpy())
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _answers(base: Any, spans: Sequence[Scored], layout: Layout, token_budget: int) -> Reference:
    first_S = np.cumsum([0, *(span.num_context for span in spans)])
    parameter = next(p for p in base.parameters() if p.is_floating_point())
    hidden_RD: Tensor | None = None
    logprob_S = np.zeros(len(spans))
    batches = list(layout.packs(spans, token_budget))
    with torch.inference_mode(), evaluating(base):
        for numbers in bar("asking the base")(batches, len(batches)):
            batch = layout([spans[i] for i in numbers])
            position_M, where_R = np.unique(batch.context_R.numpy(), return_inverse=True)
            row_R = np.concatenate([np.arange(first_S[i], first_S[i + 1]) for i in numbers])
            if not len(batch.position_N):  # neutral texts score nothing; the model is asked for one logit all the same
                batch = batch._replace(position_N=torch.zeros(1, dtype=torch.long))
            at = torch.from_numpy(position_M).to(parameter.device)
            found_S, hidden_MD = likelihood.with_last_hidden(base, batch.to(parameter.device), at)
            if hidden_RD is None:
                hidden_RD = torch.empty(int(first_S[-1]), hidden_MD.shape[1], dtype=parameter.dtype)
            hidden_RD[torch.from_numpy(row_R)] = hidden_MD.to(parameter.dtype).cpu()[torch.from_numpy(where_R)]
            logprob_S[numbers] = found_S.cpu().numpy()
    assert hidden_RD is not None
    return Reference(logprob_S, hidden_RD, first_S)
