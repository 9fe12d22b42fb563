"""Where tokens meet a model: log-probabilities of token spans, in nats.

Every objective and every likelihood benchmark asks for the same thing, log p(ids[start:] | ids[:start]), so training
and scoring share this file, and a causal model is known nowhere else.

Spans are laid out as a prefix tree in one row: each distinct prefix stands there once, a token sees its ancestors only
(a boolean attention mask), and its position is its depth. There is no padding, and a prefix shared by several spans is
computed once. Logits are computed at the positions that predict a scored token and nowhere else.

Shapes: B rows, T positions, N positions with logits, V vocabulary, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor, nn

from debias.records import Batch, Span, UserError

Layout = Callable[[Sequence[Span]], Batch]


# ---------------------------------------------------------------- protocols: a text's ids -> the spans to score


class Protocol(Interface):
    """One published way to turn a text into a log-likelihood; its name stands in `metrics.jsonl`.

    Args of the implementations:
        start_token: the token that stands before a text; when empty the protocol's own choice.
    """

    name: str

    def start_id(self, tokenizer: Any) -> int:
        """Id of the start token. Raises UserError when the vocabulary lacks it."""

    def spans(self, ids: Sequence[int], start: int) -> list[Span]:
        """Spans whose log-probabilities add up to the text's."""


class BiasBench:
    """Meade et al. 2022 (bias-bench): the first token given `<|endoftext|>`, the others *without* a start token."""

    name = "bias_bench"

    def __init__(self, start_token: str | None = None) -> None:
        self.start_token = start_token

    def start_id(self, tokenizer: Any) -> int:
        """`<|endoftext|>`, as the published code has it, or BOS in a vocabulary without it."""
        return _token_id(tokenizer, self.start_token, "<|endoftext|>", tokenizer.bos_token, tokenizer.eos_token)

    def spans(self, ids: Sequence[int], start: int) -> list[Span]:
        """Two spans: the first token after the start token; the others after the first."""
        first = Span((start, ids[0]), 1)
        return [first, Span(tuple(ids), 1)] if len(ids) > 1 else [first]


class Conditional:
    """Every token given the start token and all that precedes it: the likelihood the model was trained for."""

    name = "conditional"

    def __init__(self, start_token: str | None = None) -> None:
        self.start_token = start_token

    def start_id(self, tokenizer: Any) -> int:
        """BOS, or EOS in a vocabulary without it (GPT-2's are one)."""
        return _token_id(tokenizer, self.start_token, tokenizer.bos_token, tokenizer.eos_token)

    def spans(self, ids: Sequence[int], start: int) -> list[Span]:
        """One span."""
        return [Span((start, *ids), 1)]


def _token_id(tokenizer: Any, wanted: str | None, *others: str | None) -> int:
    vocabulary = tokenizer.get_vocab()
    for token in (wanted,) if wanted else others:
        if token in vocabulary:
            return vocabulary[token]
    raise UserError(
        f"start token {wanted or others} is not in the vocabulary; choose one with protocol.start_token=TOKEN"
    )


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


def _batch(
    ids_BT: Tensor, mask: Tensor, at_BT: Tensor, edges: list[tuple[int, int, int]], spans: Sequence[Span]
) -> Batch:
    position_E, token_E, span_E = torch.tensor(edges).unbind(1)
    position_N, source_E = torch.unique(position_E, return_inverse=True)
    num_tokens_S = torch.tensor([len(ids) - start for ids, start in spans])
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


def _of_spans(logits_NV: Tensor, batch: Batch, rows: int = 64) -> Tensor:
    """Log-probabilities of spans from logits.

    The softmax is taken in float32 over `rows` positions at a time: the logits of one batch are the largest thing in
    memory, and their float32 copy is never held as a whole.
    """
    logz_N = torch.cat([chunk_NV.float().logsumexp(-1) for chunk_NV in logits_NV.split(rows)])
    logprob_E = logits_NV[batch.source_E, batch.token_E].float() - logz_N[batch.source_E]
    return logprob_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, logprob_E)


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


def choose_layout(model: Any) -> Layout:
    """`prefix_tree` where the model gives the same answer as for each text alone, else `padded`."""
    texts = [(3, 14, 15, 92, 65), (3, 14, 15, 92, 6, 53), (3, 14, 9), (2, 71, 82, 81)]
    size = _head(model).weight.shape[0]
    spans = [Span(tuple(i % size for i in ids), 1) for ids in texts]
    with torch.inference_mode(), _evaluating(model):
        try:
            together_S = _run(model, prefix_tree(spans))
        except (TypeError, ValueError, RuntimeError):
            return padded
        alone_S = torch.cat([_run(model, padded([span])) for span in spans])
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


def _run(model: Any, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    return span_logprobs(model, Batch(*(tensor.to(device) for tensor in batch)))


# ---------------------------------------------------------------- scoring many spans


def score(
    model: Any,
    spans: Sequence[Span],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Callable[[Iterable[list[int]], int], Iterable[list[int]]] | None = None,
) -> np.ndarray:
    """Log-probability of every span in nats, float64, in the order given; it does not depend on the batching.

    Args:
        token_budget: positions of one forward pass; with the vocabulary it bounds the memory (N * V logits).
        progress: wraps the batches (lists of span numbers) and their number, to show how far it is.
    """
    order, growth = _tree_order(spans) if layout is prefix_tree else _length_order(spans)
    batches = list(_packs(order, growth, token_budget))
    logprob_S = np.empty(len(spans))
    with torch.inference_mode(), _evaluating(model):
        for batch in progress(batches, len(batches)) if progress else batches:
            logprob_S[batch] = _run(model, layout([spans[i] for i in batch])).double().cpu().numpy()
    return logprob_S


Growth = Callable[[list[int], int], int]  # positions that span i adds to a batch


def _tree_order(spans: Sequence[Span]) -> tuple[list[int], Growth]:
    """Lexicographic order, in which neighbours share the longest prefixes."""

    def growth(batch: list[int], i: int) -> int:
        prefix = spans[i].ids[:-1]
        return len(prefix) - (_common_prefix(spans[batch[-1]].ids[:-1], prefix) if batch else 0)

    return sorted(range(len(spans)), key=lambda i: spans[i].ids), growth


def _length_order(spans: Sequence[Span]) -> tuple[list[int], Growth]:
    """By length, longest first: rows of one batch are about as long, and memory runs out at once or never."""

    def growth(batch: list[int], i: int) -> int:
        return len(spans[batch[0] if batch else i].ids) - 1

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
