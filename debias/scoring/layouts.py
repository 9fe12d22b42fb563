"""Spans -> batches: which token goes where, what it sees, and where logits are needed.

A causal model's spans become prefix trees: each distinct prefix is there once, a token sees only its ancestors, and its
position is its depth. Nothing is padded but the ends of rows, and a prefix that several spans share is computed once.
A tree needs an attention mask of its own, which some models ignore; `debias/scoring/layout_trial.py` finds out and
falls back to padded rows. A masked model's texts are always padded rows.

Shapes: B rows, T positions, N positions with logits, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from debias.records import Masked, Scored, Span


class Sight(NamedTuple):
    """How far back the layers of a causal model see, beside the rule that a token sees its ancestors only."""

    layer_types: tuple[str, ...] = ()  # kinds of layers that take a mask each; empty: one mask serves all layers
    window: int | None = None  # a token sees itself and the window - 1 tokens before it
    chunk: int | None = None  # a token sees only the chunk of that many tokens which it is in


class Batch(NamedTuple):
    """Spans laid out for one forward pass. B rows, T positions, N scored positions, E scored tokens.

    Lightning moves a NamedTuple of tensors to the device, but not a dataclass.
    """

    input_ids_BT: Tensor
    real_BT: Tensor  # bool: not padding
    position_ids_BT: Tensor
    end_BT: Tensor | None  # prefix trees: the first position behind a position's descendants, else None
    sight: Sight | None  # prefix trees: what the layers see of them
    context_R: Tensor  # flat positions that a span only reads, span by span; one that several read is there as often
    position_N: Tensor  # flat positions (in B * T) where logits are needed
    source_E: Tensor  # index into N: the position that predicts the token
    token_E: Tensor  # the predicted token's id
    span_E: Tensor  # the span that the token belongs to
    num_tokens_S: Tensor  # scored tokens of each span

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the copy does not wait."""
        moved: list[Any] = [p.to(device, non_blocking=True) if isinstance(p, Tensor) else p for p in self]
        return Batch(*moved)


class Layout(Protocol):
    """A way to turn spans of one kind into batches."""

    name: str

    def packs(self, spans: Sequence[Any], budget: int) -> Iterator[list[int]]:
        """Numbers of the spans of each batch, of at most `budget` positions (a longer span gets its own batch)."""

    def __call__(self, spans: Sequence[Any]) -> Batch:
        """Some spans as one batch."""


ROW = 512  # positions of a tree's row: attention costs grow with its square, matrix products do not


class PrefixTree:
    """Spans as rows that hold each distinct prefix once.

    Neighbours share their prefix, so sort the spans first where the order is free.

    Args:
        sight: what the model's layers see.
        row: positions of a row at most (a longer span gets a row of its own).
    """

    name = "prefix tree"

    def __init__(self, sight: Sight = Sight(), row: int = ROW) -> None:  # noqa: B008 (a NamedTuple is immutable)
        self.sight, self.row = sight, row

    def packs(self, spans: Sequence[Span], budget: int) -> Iterator[list[int]]:
        """Batches in lexicographic order, in which neighbours share the longest prefixes."""
        order = sorted(range(len(spans)), key=lambda i: spans[i].ids)
        row = min(self.row, budget)
        batch: list[int] = []
        rows, width = 0, 0
        for first, last, length in _rows([spans[i] for i in order], row):
            width = max(width, length)
            if batch and (rows + 1) * width > budget:
                yield batch
                batch, rows, width = [], 0, length
            batch += order[first:last]
            rows += 1
        if batch:
            yield batch

    def __call__(self, spans: Sequence[Span]) -> Batch:
        """The spans, in the order given, as rows of at most `row` positions."""
        trees = [_tree(spans[first:last], first) for first, last, _ in _rows(spans, self.row)]
        width = max(len(tree.token) for tree in trees)
        shape = len(trees), width
        ids_BT, depth_BT = (np.zeros(shape, np.int64) for _ in range(2))
        real_BT = np.zeros(shape, bool)
        end_BT = np.tile(np.arange(1, width + 1), (len(trees), 1))  # padding sees itself, so that no softmax is empty
        for row, tree in enumerate(trees):
            size = len(tree.token)
            ids_BT[row, :size], depth_BT[row, :size], end_BT[row, :size] = tree.token, tree.depth, tree.end
            real_BT[row, :size] = True
        position_E, context_R = (
            np.concatenate([width * row + np.array(places, np.int64) for row, places in enumerate(column)])
            for column in ([tree.source for tree in trees], [tree.context for tree in trees])
        )
        token_E = np.concatenate([np.array(tree.answer, np.int64) for tree in trees])
        span_E = np.concatenate([tree.owner for tree in trees])
        return _batch(ids_BT, real_BT, depth_BT, (end_BT, self.sight), context_R, position_E, token_E, span_E, spans)


class _Tree(NamedTuple):
    """One row: nodes in depth-first order, then the scored tokens."""

    token: list[int]
    depth: list[int]
    end: np.ndarray  # the first node behind a node's descendants
    context: list[int]  # nodes that a span only reads, span by span
    source: list[int]  # node that predicts a scored token
    answer: list[int]  # the scored token
    owner: np.ndarray  # its span


def _tree(spans: Sequence[Span], offset: int) -> _Tree:
    token: list[int] = []
    depth: list[int] = []
    source: list[int] = []
    answer: list[int] = []
    context: list[int] = []
    counts: list[int] = []
    path: list[int] = []  # nodes of the previous span's prefix
    closed: list[tuple[int, int]] = []  # node and its end
    previous: tuple[int, ...] = ()
    for ids, start in spans:
        prefix = ids[:-1]  # the last token predicts nothing
        shared = common_prefix(previous, prefix)
        # A node that the new span does not share has all its descendants by now: whatever follows is not below it.
        closed += [(node, len(token)) for node in path[shared:]]
        del path[shared:]
        path += range(len(token), len(token) + len(prefix) - shared)
        token += prefix[shared:]
        depth += range(shared, len(prefix))
        context += path[: start - 1]
        source += path[start - 1 :]
        answer += ids[start:]
        counts.append(len(ids) - start)
        previous = prefix
    closed += [(node, len(token)) for node in path]
    end = np.empty(len(token), np.int64)
    node_M, end_M = np.array(closed, np.int64).reshape(-1, 2).T
    end[node_M] = end_M
    owner = np.repeat(np.arange(offset, offset + len(spans)), counts)
    return _Tree(token, depth, end, context, source, answer, owner)


def _rows(spans: Sequence[Span], row: int) -> Iterator[tuple[int, int, int]]:
    """First span, last span + 1 and positions of each row."""
    first, length = 0, 0
    previous: tuple[int, ...] = ()
    for i, (ids, _) in enumerate(spans):
        prefix = ids[:-1]
        more = len(prefix) - common_prefix(previous, prefix)
        if i > first and length + more > row:
            yield first, i, length
            first, length, more = i, 0, len(prefix)
        length += more
        previous = prefix
    if spans:
        yield first, len(spans), length


def visible(batch: Batch, layer_type: str = "full_attention") -> Tensor:
    """Which position (row of the matrix) of a prefix tree sees which (column), bool, shape (B, T, T)."""
    assert batch.end_BT is not None
    assert batch.sight is not None
    at_T = torch.arange(batch.end_BT.shape[1], device=batch.end_BT.device)
    # Nodes are in depth-first order: j is an ancestor of i if i lies between j and the end of j's descendants.
    sees_BTT = (at_T[None, None, :] <= at_T[None, :, None]) & (at_T[None, :, None] < batch.end_BT[:, None, :])
    depth_BT, sight = batch.position_ids_BT, batch.sight
    windowed = layer_type == "sliding_attention" or not sight.layer_types
    if windowed and sight.window:
        sees_BTT &= depth_BT[:, :, None] - depth_BT[:, None, :] < sight.window
    if (layer_type == "chunked_attention" or not sight.layer_types) and sight.chunk:
        sees_BTT &= depth_BT[:, :, None] // sight.chunk == depth_BT[:, None, :] // sight.chunk
    return sees_BTT


class PaddedRows:
    """Spans as the rows of a right-padded matrix, for causal models that ignore a mask or positions of our own."""

    name = "padded rows"

    def packs(self, spans: Sequence[Span], budget: int) -> Iterator[list[int]]:
        """Batches of about equal length, longest first."""
        return _by_length(spans, budget)

    def __call__(self, spans: Sequence[Span]) -> Batch:
        """One span a row."""
        width = max(len(ids) for ids, _ in spans) - 1
        ids_BT, real_BT = _matrix([ids[:-1] for ids, _ in spans], width)
        position_E = [i * width + k - 1 for i, (ids, start) in enumerate(spans) for k in range(start, len(ids))]
        token_E = [token for ids, start in spans for token in ids[start:]]
        context_R = [i * width + k for i, (_, start) in enumerate(spans) for k in range(start - 1)]
        return _padded(ids_BT, real_BT, context_R, position_E, token_E, spans)


class MaskedRows:
    """Masked texts as the rows of a right-padded matrix: the masked positions of many texts share a forward pass."""

    name = "masked rows"

    def packs(self, spans: Sequence[Masked], budget: int) -> Iterator[list[int]]:
        """Batches of about equal length, longest first."""
        return _by_length(spans, budget)

    def __call__(self, spans: Sequence[Masked]) -> Batch:
        """One text a row."""
        width = max(len(span.ids) for span in spans)
        ids_BT, real_BT = _matrix([span.ids for span in spans], width)
        position_E = [i * width + k for i, span in enumerate(spans) for k in span.at]
        token_E = [token for span in spans for token in span.tokens]
        context_R = [i * width + k for i, span in enumerate(spans) for k in range(len(span.ids)) if k not in span.at]
        return _padded(ids_BT, real_BT, context_R, position_E, token_E, spans)


prefix_tree, padded, masked_rows = PrefixTree(), PaddedRows(), MaskedRows()


def _matrix(texts: Sequence[tuple[int, ...]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and which of them are real."""
    ids_BT = np.zeros((len(texts), width), np.int64)
    real_BT = np.zeros((len(texts), width), bool)
    for row, ids in enumerate(texts):
        ids_BT[row, : len(ids)], real_BT[row, : len(ids)] = ids, True
    return ids_BT, real_BT


def _by_length(spans: Sequence[Scored], budget: int) -> Iterator[list[int]]:
    """Longest first: rows of a batch are about as long, and memory runs out at once or never."""
    batch: list[int] = []
    for i in sorted(range(len(spans)), key=lambda i: -spans[i].num_positions):
        if batch and (len(batch) + 1) * spans[batch[0]].num_positions > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(
    ids_BT: np.ndarray,
    real_BT: np.ndarray,
    context_R: list[int],
    position_E: list[int],
    token_E: list[int],
    spans: Sequence[Scored],
) -> Batch:
    at_BT = np.tile(np.arange(ids_BT.shape[1]), (len(ids_BT), 1))
    span_E = np.repeat(np.arange(len(spans)), [span.num_tokens for span in spans])
    context, position, token = (np.array(column, np.int64) for column in (context_R, position_E, token_E))
    return _batch(ids_BT, real_BT, at_BT, (None, None), context, position, token, span_E, spans)


def _batch(
    ids_BT: np.ndarray,
    real_BT: np.ndarray,
    at_BT: np.ndarray,
    tree: tuple[np.ndarray | None, Sight | None],
    context_R: np.ndarray,
    position_E: np.ndarray,
    token_E: np.ndarray,
    span_E: np.ndarray,
    spans: Sequence[Scored],
) -> Batch:
    position_N, source_E = np.unique(position_E, return_inverse=True)
    num_tokens_S = np.array([span.num_tokens for span in spans], np.int64)
    end_BT, sight = tree
    return Batch(
        torch.from_numpy(ids_BT), torch.from_numpy(real_BT), torch.from_numpy(at_BT),
        None if end_BT is None else torch.from_numpy(end_BT), sight, torch.from_numpy(context_R),
        torch.from_numpy(position_N), torch.from_numpy(source_E.reshape(-1)), torch.from_numpy(token_E),
        torch.from_numpy(span_E), torch.from_numpy(num_tokens_S),
    )  # fmt: skip


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of equal tokens at the front."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
