"""Any number of spans or texts, scored in batches without gradients; no answer depends on the batching.

Shapes: N positions with logits, V vocabulary, E scored tokens, S spans, R places where two distributions meet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from debias.models.base import LanguageModel
from debias.models.placement import inputs_on
from debias.records import Scored
from debias.scoring.layouts import ROW, Batch, Layout, masked_rows, prefix_tree
from debias.scoring.likelihood import (
    dtype,
    evaluating,
    logits_of,
    mean_hidden_of,
    rows_of,
    span_sums,
    token_logprobs,
    vocabulary,
)
from debias.scoring.softmax import in_chunks, rows_at_once

Progress = Callable[[Iterable[list[int]], int], Iterable[list[int]]]


def score(
    model: LanguageModel,
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
    model: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `score`, shape (S, 2): the log-probability, and 1 where every scored token is the likeliest at its place."""

    def answer(batch: Batch) -> Tensor:
        logits_NV = logits_of(model, batch)
        logprob_S = span_sums(token_logprobs(logits_NV, batch), batch)
        return torch.stack([logprob_S, _greedy(logits_NV, batch).float()], dim=1)

    # Apple's GPUs know no float64: the conversion happens on the host.
    return _per_span(model, spans, layout, token_budget, progress, answer).astype(np.float64)


def _greedy(logits_NV: Tensor, batch: Batch) -> Tensor:
    """Whether every scored token of a span is the likeliest one at its place, shape (S,)."""
    best_N = torch.cat([chunk_NV.amax(-1) for chunk_NV in in_chunks(logits_NV)])
    missed_E = (logits_NV[batch.source_E, batch.token_E] < best_N[batch.source_E]).long()
    return missed_E.new_zeros(len(batch.num_tokens_S)).index_add(0, batch.span_E, missed_E) == 0


def score_of_two(
    model: LanguageModel,
    spans: Sequence[Scored],
    others: Sequence[Scored],
    combine: Callable[[Tensor, Tensor], Tensor],
    layout: Layout = prefix_tree,
    token_budget: int = 512,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `score_and_greedy`, under a distribution that is made of two at each place.

    Args:
        others: for each span, the same scored tokens behind another context.
        combine: logits behind both contexts -> log-probabilities, all of shape (places, V).
    """
    batches = list(layout.packs(others, token_budget))
    device = inputs_on(model)
    result = np.empty((len(spans), 2))
    with torch.inference_mode(), evaluating(model):
        for numbers in progress(batches, len(batches)) if progress else batches:
            batch, other = (layout([of[i] for i in numbers]).to(device) for of in (spans, others))
            result[numbers] = _of_two(logits_of(model, batch), batch, logits_of(model, other), other, combine)
    return result


def _of_two(
    logits_NV: Tensor, batch: Batch, other_NV: Tensor, other: Batch, combine: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """Log-probability of each span, and 1 where every token is the likeliest one, shape (S, 2)."""
    # Spans that share a prefix share its distributions: they are combined once, in R places.
    place_2R, place_E = torch.stack([batch.source_E, other.source_E]).unique(dim=1, return_inverse=True)
    logprob_E = logits_NV.new_empty(len(place_E), dtype=torch.float32)
    missed_E = torch.zeros_like(place_E)
    size, first = rows_at_once(logits_NV), 0
    for own_R, other_R in zip(*(places.split(size) for places in place_2R), strict=True):
        logprob_RV = combine(logits_NV[own_R].float(), other_NV[other_R].float())
        here_E = (place_E >= first) & (place_E < first + size)
        row_E = place_E[here_E] - first
        logprob_E[here_E] = found_E = logprob_RV[row_E, batch.token_E[here_E]]
        missed_E[here_E] = (found_E < logprob_RV.amax(-1)[row_E]).long()
        first += size
    # The sums are in float64, which Apple's GPUs lack: they are taken on the host.
    span_E, number = batch.span_E.cpu().numpy(), len(batch.num_tokens_S)
    logprob_S, missed_S = (np.bincount(span_E, x_E.cpu().numpy(), number) for x_E in (logprob_E, missed_E))
    return np.stack([logprob_S, missed_S == 0], axis=1)


def likeliest(
    model: LanguageModel,
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
        logits_SV = logits_of(model, batch)[batch.source_E].float()
        if allowed is not None:
            logits_SV[:, ~torch.from_numpy(allowed).to(logits_SV.device)] = -torch.inf
        return logits_SV.topk(k).indices

    return _per_span(model, spans, layout, token_budget, progress, answer)


def mean_hidden(
    model: LanguageModel,
    texts: Sequence[tuple[int, ...]],
    token_budget: int = 512,
    progress: Progress | None = None,
    skip: int = 0,
    layer: int = -1,
) -> np.ndarray:
    """`mean_hidden_of` for any number of texts, shape (texts, width), float32, without gradients."""

    def answer(batch: Batch) -> Tensor:
        return mean_hidden_of(model, batch, skip, layer)

    return _per_span(model, rows_of(texts), masked_rows, token_budget, progress, answer)


def budget(model: LanguageModel) -> int:
    """Positions of one forward pass that keep a device busy and leave memory for the rest.

    A CPU works from its cache: 512 is best there. A GPU wants thousands. They are bounded by the memory of the logits,
    at most 4 GB, and where the GPU is small or shared by half of what is free on it.
    """
    if inputs_on(model).type == "cpu":
        return 512
    bytes_each = torch.finfo(dtype(model)).bits // 8
    wanted = int(min(32_768, 4e9 // (vocabulary(model) * bytes_each)))
    free = min(map(_free, {parameter.device for parameter in model.parameters()}))
    possible = free / 2 / (_numbers_each(model) * bytes_each)
    if possible < wanted:
        # Cached scores are found again by this number: a power of two hides small differences in what is free.
        wanted = 2 ** math.floor(math.log2(max(1, possible)))
    return max(512, wanted)


def _free(device: torch.device) -> float:
    """Bytes of a device that this process could still use, also what its own allocator keeps unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return math.inf


def _numbers_each(model: LanguageModel) -> int:
    """How many numbers a forward pass holds at a time for each position, at most.

    The logits; every layer's hidden state, which some baselines read; and inside a layer the attention over a row and
    three feed-forward activations.
    """
    config = model.config.get_text_config()

    def size(key: str, otherwise: int) -> int:
        try:
            found = getattr(config, key, None)  # Mamba has no heads; some models list a number for each layer
        except RuntimeError:  # transformers refuses to name one where the layers differ
            found = None
        return max(found) if isinstance(found, (list, tuple)) else found or otherwise

    hidden = size("hidden_size", 0)
    attention = size("num_attention_heads", 0) * ROW
    return (
        vocabulary(model)
        + (size("num_hidden_layers", 0) + 4) * hidden
        + attention
        + 3 * size("intermediate_size", 4 * hidden)
    )


def _per_span(
    model: LanguageModel,
    spans: Sequence[Scored],
    layout: Layout,
    token_budget: int,
    progress: Progress | None,
    answer: Callable[[Batch], Tensor],
) -> np.ndarray:
    """What `answer` makes of each batch, a row per span, in the order of the spans."""
    batches = list(layout.packs(spans, token_budget))
    device = inputs_on(model)
    found: list[Tensor] = []
    with torch.inference_mode(), evaluating(model):
        laid = _ahead(lambda numbers: layout([spans[i] for i in numbers]), batches)
        for batch, _ in zip(laid, progress(batches, len(batches)) if progress else batches, strict=True):
            found.append(answer(batch.to(device)))
        # One transfer at the end: the GPU never waits for an answer to be read.
        row_SK = torch.cat(found).cpu().numpy() if found else np.empty((0, 2))
    result = np.empty_like(row_SK)
    result[[i for numbers in batches for i in numbers]] = row_SK
    return result


def _ahead(make: Callable[[list[int]], Batch], batches: Sequence[list[int]], depth: int = 2) -> Iterator[Batch]:
    """Batches made in a thread while the model works on earlier ones."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Batch]] = deque()
        for numbers in batches:
            waiting.append(thread.submit(make, numbers))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
