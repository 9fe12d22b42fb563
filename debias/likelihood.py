"""Where tokens meet a model: log-probabilities of token spans, in nats.

Every objective and every likelihood benchmark asks for the same thing: the log-probability of marked tokens given
others, which are those before them (`Span`, causal models) or all the rest of a text (`Masked`, masked models). So
training and scoring share this file.

A causal model's spans are laid out as a prefix tree in one row: each distinct prefix stands there once, a token sees
its ancestors only (a boolean attention mask), and its position is its depth. There is no padding, and a prefix shared
by several spans is computed once. A masked model's texts are the rows of a matrix. Logits are computed at the positions
that predict a scored token and nowhere else.

Shapes: B rows, T positions, N positions with logits, V vocabulary, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debias.records import Batch, Masked, Scored, Span, UserError

Layout = Callable[[Sequence[Any]], Batch]  # of spans of one kind


# ---------------------------------------------------------------- layouts: spans -> one batch


def prefix_tree(spans: Sequence[Span]) -> Batch:
    """Spans as one row that holds each distinct prefix once; sharing is found between neighbours, so sort first."""
    token: list[int] = []
    depth: list[int] = []
    parent: list[int] = []
    edges: list[tuple[int, int, int]] = []
    path: list[int] = []  # nodes of the previous span's prefix
    previous: tuple[int, ...] = ()
    for i, (ids, start) in enumerate(spans):
        shared = _common_prefix(previous, ids[:-1])
        del path[shared:]
        for k in range(shared, len(ids) - 1):  # the last token predicts nothing
            parent.append(path[-1] if path else -1)
            path.append(len(token))
            token.append(ids[k])
            depth.append(k)
        previous = ids[:-1]
        edges.extend((path[k - 1], ids[k], i) for k in range(start, len(ids)))

    sees = np.zeros((len(token), len(token)), dtype=bool)
    for node, up in enumerate(parent):
        if up >= 0:
            sees[node] = sees[up]
        sees[node, node] = True
    return _batch(torch.tensor([token]), torch.from_numpy(sees)[None, None], torch.tensor([depth]), edges, spans)


def padded(spans: Sequence[Span]) -> Batch:
    """Spans as the rows of a right-padded matrix: for models that take no mask of their own (ALiBi, recurrent ones)."""
    width = max(len(ids) for ids, _ in spans) - 1
    ids_BT = torch.zeros(len(spans), width, dtype=torch.long)
    real_BT = torch.zeros(len(spans), width, dtype=torch.bool)
    edges: list[tuple[int, int, int]] = []
    for i, (ids, start) in enumerate(spans):
        ids_BT[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        real_BT[i, : len(ids) - 1] = True
        edges.extend((i * width + k - 1, ids[k], i) for k in range(start, len(ids)))
    return _batch(ids_BT, real_BT, torch.arange(width).expand(len(spans), width), edges, spans)


def masked_rows(spans: Sequence[Masked]) -> Batch:
    """Masked texts as the rows of a right-padded matrix; many masked positions of many texts share a forward pass."""
    width = max(len(span.ids) for span in spans)
    ids_BT = torch.zeros(len(spans), width, dtype=torch.long)
    real_BT = torch.zeros(len(spans), width, dtype=torch.bool)
    edges: list[tuple[int, int, int]] = []
    for i, (ids, at, tokens) in enumerate(spans):
        ids_BT[i, : len(ids)] = torch.tensor(ids)
        real_BT[i, : len(ids)] = True
        edges.extend((i * width + k, token, i) for k, token in zip(at, tokens, strict=True))
    return _batch(ids_BT, real_BT, torch.arange(width).expand(len(spans), width), edges, spans)


def _batch(
    ids_BT: Tensor, mask: Tensor, at_BT: Tensor, edges: list[tuple[int, int, int]], spans: Sequence[Scored]
) -> Batch:
    position_E, token_E, span_E = torch.tensor(edges).unbind(1)
    position_N, source_E = torch.unique(position_E, return_inverse=True)
    num_tokens_S = torch.tensor([span.num_tokens for span in spans])
    return Batch(ids_BT, mask, at_BT, position_N, source_E, token_E, span_E, num_tokens_S)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


# ---------------------------------------------------------------- the forward pass


def span_logprobs(model: Any, batch: Batch) -> Tensor:
    """Log-probability of each span of a batch, in nats, shape (S,); differentiable."""
    return _of_spans(_logits(model, batch), batch)


def span_logprobs_and_drift(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each span, and how far the model has drifted from its base where nothing is scored.

    The drift is KL(base || model) in nats, averaged over the positions that predict no scored token; the base is the
    same model with its adapter off. Shapes (S,) and (); both are differentiable.
    """
    size = batch.input_ids_BT.numel()
    everywhere = batch._replace(
        position_N=torch.arange(size, device=batch.position_N.device), source_E=batch.position_N[batch.source_E]
    )
    free_N = batch.attention_mask.flatten().clone() if batch.attention_mask.ndim == 2 else _ones(size, batch)
    free_N[batch.position_N] = False
    logits_NV = _logits(model, everywhere)
    logprob_S = _of_spans(logits_NV, everywhere)
    if not free_N.any():
        return logprob_S, logprob_S.new_zeros(())
    with torch.no_grad(), model.disable_adapter():
        base_MV = _logits(model, everywhere)[free_N].float().log_softmax(-1)
    model_MV = logits_NV[free_N].float().log_softmax(-1)
    drift = torch.nn.functional.kl_div(model_MV, base_MV, log_target=True, reduction="sum") / len(base_MV)
    return logprob_S, drift


def _ones(size: int, batch: Batch) -> Tensor:
    return torch.ones(size, dtype=torch.bool, device=batch.position_N.device)


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
            together_S = span_logprobs(model, _on_device(model, prefix_tree(spans)))
        except (TypeError, ValueError, RuntimeError):
            return padded
        alone_S = torch.cat([span_logprobs(model, _on_device(model, padded([span]))) for span in spans])
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


def _on_device(model: Any, batch: Batch) -> Batch:
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
    order, growth = _tree_order(spans) if layout is prefix_tree else _length_order(spans)
    batches = list(_packs(order, growth, token_budget))
    answer_S2 = np.empty((len(spans), 2))
    with torch.inference_mode(), _evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            batch = _on_device(model, layout([spans[i] for i in numbers]))
            logits_NV = _logits(model, batch)
            answer_S2[numbers, 0] = _of_spans(logits_NV, batch).double().cpu().numpy()
            answer_S2[numbers, 1] = _greedy(logits_NV, batch).cpu().numpy()
    return answer_S2


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
    order, growth = _tree_order(spans) if layout is prefix_tree else _length_order(spans)
    batches = list(_packs(order, growth, token_budget))
    token_SK = np.empty((len(spans), k), dtype=np.int64)
    with torch.inference_mode(), _evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            batch = _on_device(model, layout([spans[i] for i in numbers]))
            logits_SV = _logits(model, batch)[batch.source_E].float()
            if allowed is not None:
                logits_SV[:, ~torch.from_numpy(allowed).to(logits_SV.device)] = -torch.inf
            token_SK[numbers] = logits_SV.topk(k).indices.cpu().numpy()
    return token_SK


def vocabulary(model: Any) -> int:
    """Tokens that a model tells apart."""
    return _head(model).weight.shape[0]


def mean_hidden(
    model: Any,
    texts: Sequence[tuple[int, ...]],
    token_budget: int = 512,
    progress: Progress | None = None,
    skip: int = 0,
) -> np.ndarray:
    """Mean of the last layer's hidden states over the tokens of each text, shape (texts, width), float32.

    Args:
        skip: tokens at the front, such as a start token, that are read but left out of the mean.
    """
    rows = [Masked(ids, (0,), (0,)) for ids in texts]  # one logit per text, so that the output layer costs nothing
    batches = list(_packs(*_length_order(rows), token_budget))
    mean_ND: list[Any] = [None] * len(texts)
    with torch.inference_mode(), _evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            batch = _on_device(model, masked_rows([rows[i] for i in numbers]))
            with _logits_only_at(_head(model), batch):
                output = model(
                    input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask, use_cache=False,
                    output_hidden_states=True,
                )  # fmt: skip
            width = batch.input_ids_BT.shape[1]
            hidden_BTD = output.hidden_states[-1][:, -width:].float()  # prompt tuning puts virtual tokens in front
            counted_BT1 = batch.attention_mask.clone()[..., None]
            counted_BT1[:, :skip] = False
            mean_BD = (hidden_BTD * counted_BT1).sum(1) / counted_BT1.sum(1).clamp(min=1)
            for i, mean_D in zip(numbers, mean_BD.cpu().numpy(), strict=True):
                mean_ND[i] = mean_D
    return np.stack(mean_ND)


Growth = Callable[[list[int], int], int]  # positions that span i adds to a batch


def _tree_order(spans: Sequence[Any]) -> tuple[list[int], Growth]:
    """Lexicographic order, in which neighbours share the longest prefixes."""

    def growth(batch: list[int], i: int) -> int:
        prefix = spans[i].ids[:-1]
        return len(prefix) - (_common_prefix(spans[batch[-1]].ids[:-1], prefix) if batch else 0)

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
