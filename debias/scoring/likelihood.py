"""Where tokens meet a model: log-probabilities of token spans, in nats.

Every objective and every likelihood benchmark asks for the same thing: the log-probability of marked tokens given
others, which are those before them (`Span`, causal models) or all the rest of a text (`Masked`, masked models). So
training and scoring share this file.

Logits are computed at the positions that predict a scored token and nowhere else (`debias/scoring/layouts.py`).

Shapes: B rows, T positions, N positions with logits, V vocabulary, D width, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from debias.records import Batch, Masked, Scored, Span, UserError
from debias.scoring.layouts import Layout, common_prefix, masked_rows, padded, prefix_tree

# ---------------------------------------------------------------- the forward pass


def span_logprobs(model: Any, batch: Batch) -> Tensor:
    """Log-probability of each span of a batch, in nats, shape (S,); differentiable."""
    return _of_spans(_logits(model, batch), batch)


class Beside(NamedTuple):
    """A model beside its base, which is the same model with its adapter off."""

    logprob_S: Tensor  # log-probability of each span in nats, differentiable
    base_S: Tensor  # the same of the base
    drift: Tensor  # sum of KL(base || model) in nats over the free positions, differentiable
    num_free: Tensor  # how many there are; a position counts once for each span that reads it


def beside_base(model: Any, batch: Batch, drift: bool) -> Beside:
    """Log-probability of each span under model and base, and how far the model has drifted where nothing is scored.

    Args:
        drift: needs logits at every position; without it the drift is 0.
    """
    if drift:  # logits everywhere
        everywhere_N = torch.arange(batch.input_ids_BT.numel(), device=batch.position_N.device)
        batch = batch._replace(position_N=everywhere_N, source_E=batch.position_N[batch.source_E])
    logits_NV = _logits(model, batch)
    logprob_S = _of_spans(logits_NV, batch)
    with torch.no_grad(), model.disable_adapter():
        base_NV = _logits(model, batch)
    base_S = _of_spans(base_NV, batch)
    free_N = batch.free_BT.flatten()
    if not drift:
        return Beside(logprob_S, base_S, logprob_S.new_zeros(()), free_N.sum())
    chosen_N = free_N > 0
    base_MV, model_MV = (logits[chosen_N].float().log_softmax(-1) for logits in (base_NV, logits_NV))
    kl_M = torch.nn.functional.kl_div(model_MV, base_MV, log_target=True, reduction="none").sum(-1)
    return Beside(logprob_S, base_S, (kl_M * free_N[chosen_N]).sum(), free_N.sum())


def _logits(model: Any, batch: Batch) -> Tensor:
    """Logits at the batch's N positions, shape (N, V)."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask, "use_cache": False}
    if batch.attention_mask.ndim == 4:
        hidden = ~batch.attention_mask
        # Additive, the one form that every attention implementation takes, in the dtype of the queries.
        mask = torch.zeros(hidden.shape, dtype=_dtype(model), device=hidden.device)
        inputs["attention_mask"] = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
        inputs["position_ids"] = batch.position_ids_BT
    with _logits_only_at(_head(model), batch):
        return model(**inputs).logits[0]


ROWS = 64  # positions whose softmax is taken at a time: the float32 copy of the logits is never held as a whole


def _of_spans(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities of spans from logits; the softmax is taken in float32."""
    logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in logits_NV.split(ROWS)])
    logprob_E = logits_NV[batch.source_E, batch.token_E].float() - logz_N[batch.source_E]
    return logprob_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, logprob_E)


def _greedy(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Whether every scored token of a span is the likeliest one at its place, shape (S,)."""
    best_N = torch.cat([chunk_NV.amax(-1) for chunk_NV in logits_NV.split(ROWS)])
    missed_E = (logits_NV[batch.source_E, batch.token_E] < best_N[batch.source_E]).long()
    return missed_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, missed_E) == 0


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _head(model: Any) -> Any:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UserError(f"{type(model).__name__} has no output embeddings; debias needs a model that predicts tokens")
    return head


@contextmanager
def _logits_only_at(head: nn.Module, batch: Batch) -> Iterator[None]:
    """Let the output layer see the N wanted positions only, so that logits are (1, N, V) and not (B, T, V)."""
    width = batch.input_ids_BT.shape[1]

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0][:, -width:]  # prompt tuning puts virtual tokens in front
        return (hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[batch.position_N][None], *args[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def choose_layout(model: Any, kind: str = "causal") -> Layout:
    """`masked_rows` for a masked model; for a causal one `prefix_tree` where it answers as it should, else `padded`."""
    if kind == "masked":
        return masked_rows
    texts = [(3, 14, 15, 92, 65), (3, 14, 15, 92, 6, 53), (3, 14, 9), (2, 71, 82, 81)]
    size = _head(model).weight.shape[0]
    spans = [Span(tuple(i % size for i in ids), 1) for ids in texts]
    with torch.inference_mode(), _evaluating(model):
        try:
            together_S = span_logprobs(model, on_device(model, prefix_tree(spans)))
        except (TypeError, ValueError, RuntimeError):
            return padded
        alone_S = torch.cat([span_logprobs(model, on_device(model, padded([span]))) for span in spans])
    tolerance = 1e-3 if _dtype(model) == torch.float32 else 0.3
    return prefix_tree if torch.allclose(together_S, alone_S, atol=tolerance, rtol=tolerance) else padded


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and afterwards every module as it was: a frozen base and its adapter may be in different modes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def on_device(model: Any, batch: Batch) -> Batch:
    """A batch where the model is."""
    device = next(model.parameters()).device
    return Batch(*(tensor.to(device) for tensor in batch))


# ---------------------------------------------------------------- scoring many spans


Progress = Callable[[Iterable[list[int]], int], Iterable[list[int]]]


def score(
    model: Any,
    spans: Sequence[Scored],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """Log-probability of every span in nats, float64, in the order given; it does not depend on the batching.

    Args:
        token_budget: positions of one forward pass; with the vocabulary it bounds the memory (N * V logits).
        progress: wraps the batches (lists of span numbers) and their number, to show how far it is.
    """
    return score_and_greedy(model, spans, layout, token_budget, progress)[:, 0]


def score_and_greedy(
    model: Any,
    spans: Sequence[Scored],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `score`, shape (S, 2): the log-probability, and 1 where every scored token is the likeliest at its place."""

    def answer(batch: Batch) -> Tensor:
        logits_NV = _logits(model, batch)
        return torch.stack([_of_spans(logits_NV, batch), _greedy(logits_NV, batch).float()], dim=1).double()

    return _per_span(model, spans, layout, token_budget, progress, answer)


def likeliest(
    model: Any,
    spans: Sequence[Scored],
    k: int,
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    allowed: np.ndarray | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """The k likeliest tokens, likeliest first, at the one scored place of each span, shape (S, k).

    Args:
        allowed: which tokens of the vocabulary may be chosen; all when empty.
    """

    def answer(batch: Batch) -> Tensor:
        logits_SV = _logits(model, batch)[batch.source_E].float()
        if allowed is not None:
            logits_SV[:, ~torch.from_numpy(allowed).to(logits_SV.device)] = -torch.inf
        return logits_SV.topk(k).indices

    return _per_span(model, spans, layout, token_budget, progress, answer)


def vocabulary(model: Any) -> int:
    """Tokens that a model tells apart."""
    return _head(model).weight.shape[0]


def width(model: Any) -> int:
    """Width of the hidden states."""
    return model.config.hidden_size


def mean_hidden(
    model: Any,
    texts: Sequence[tuple[int, ...]],
    token_budget: int = 512,
    progress: Progress | None = None,
    skip: int = 0,
) -> np.ndarray:
    """`mean_hidden_of` for any number of texts, shape (texts, width), float32, without gradients."""
    return _per_span(
        model, rows_of(texts), masked_rows, token_budget, progress, lambda batch: mean_hidden_of(model, batch, skip)
    )


def rows_of(texts: Sequence[tuple[int, ...]]) -> list[Masked]:
    """Texts of which hidden states are wanted: one logit each, so that the output layer costs nothing."""
    return [Masked(ids, (0,), (0,)) for ids in texts]


def mean_hidden_of(model: Any, batch: Batch, skip: int = 0) -> Tensor:
    """Mean of the last layer's hidden states over the tokens of each row, shape (B, width), float32.

    Args:
        batch: of `rows_of` in the layout `masked_rows`.
        skip: tokens at the front, such as a start token, that are read but left out of the mean.
    """
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask, "use_cache": False}
    with _logits_only_at(_head(model), batch):
        output = model(**inputs, output_hidden_states=True)
    length = batch.input_ids_BT.shape[1]
    hidden_BTD = output.hidden_states[-1][:, -length:].float()  # prompt tuning puts virtual tokens in front
    counted_BT1 = batch.attention_mask.clone()[..., None]
    counted_BT1[:, :skip] = False
    return (hidden_BTD * counted_BT1).sum(1) / counted_BT1.sum(1).clamp(min=1)


def _per_span(
    model: Any,
    spans: Sequence[Scored],
    layout: Layout,
    token_budget: int,
    progress: Progress | None,
    answer: Callable[[Batch], Tensor],
) -> np.ndarray:
    """What `answer` makes of each batch, a row per span, in the order of the spans."""
    order, growth = _tree_order(spans) if layout is prefix_tree else _length_order(spans)
    batches = list(_packs(order, growth, token_budget))
    rows: list[Any] = [None] * len(spans)
    with torch.inference_mode(), _evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            found = answer(on_device(model, layout([spans[i] for i in numbers]))).cpu().numpy()
            for i, row in zip(numbers, found, strict=True):
                rows[i] = row
    return np.stack(rows)


Growth = Callable[[list[int], int], int]  # positions that span i adds to a batch


def _tree_order(spans: Sequence[Any]) -> tuple[list[int], Growth]:
    """Lexicographic order, in which neighbours share the longest prefixes."""

    def growth(batch: list[int], i: int) -> int:
        prefix = spans[i].ids[:-1]
        return len(prefix) - (common_prefix(spans[batch[-1]].ids[:-1], prefix) if batch else 0)

    return sorted(range(len(spans)), key=lambda i: spans[i].ids), growth


def _length_order(spans: Sequence[Scored]) -> tuple[list[int], Growth]:
    """By length, longest first: rows of one batch are about as long, and memory runs out at once or never."""

    def growth(batch: list[int], i: int) -> int:
        return spans[batch[0] if batch else i].num_positions

    return sorted(range(len(spans)), key=lambda i: -len(spans[i].ids)), growth


def _packs(order: Sequence[int], growth: Growth, budget: int) -> Iterator[list[int]]:
    """Consecutive spans in batches of at most `budget` positions (a longer span stands alone)."""
    batch: list[int] = []
    size = 0
    for i in order:
        more = growth(batch, i)
        if batch and size + more > budget:
            yield batch
            batch, size, more = [], 0, growth([], i)
        batch.append(i)
        size += more
    if batch:
        yield batch
