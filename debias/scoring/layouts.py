"""Spans -> one batch: which token stands where, what it sees, and where logits are needed.

A causal model's spans are laid out as a prefix tree in one row: each distinct prefix stands there once, a token sees
its ancestors only (a boolean attention mask), and its position is its depth. There is no padding, and a prefix shared
by several spans is computed once. A masked model's texts are the rows of a matrix.

Shapes: B rows, T positions, N positions with logits, E scored tokens, S spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debias.records import Batch, Masked, Scored, Span

Layout = Callable[[Sequence[Any]], Batch]  # of spans of one kind


def prefix_tree(spans: Sequence[Span]) -> Batch:
    """Spans as one row that holds each distinct prefix once; sharing is found between neighbours, so sort first."""
    token: list[int] = []
    depth: list[int] = []
    parent: list[int] = []
    edges: list[tuple[int, int, int]] = []
    readers: list[int] = []  # how many spans have a node in their prefix
    path: list[int] = []  # nodes of the previous span's prefix
    previous: tuple[int, ...] = ()
    for i, (ids, start) in enumerate(spans):
        shared = common_prefix(previous, ids[:-1])
        del path[shared:]
        for k in range(shared, len(ids) - 1):  # the last token predicts nothing
            parent.append(path[-1] if path else -1)
            path.append(len(token))
            token.append(ids[k])
            depth.append(k)
            readers.append(0)
        for node in path:
            readers[node] += 1
        previous = ids[:-1]
        edges.extend((path[k - 1], ids[k], i) for k in range(start, len(ids)))

    sees = np.zeros((len(token), len(token)), dtype=bool)
    for node, up in enumerate(parent):
        if up >= 0:
            sees[node] = sees[up]
        sees[node, node] = True
    return _batch(
        torch.tensor([token]), torch.from_numpy(sees)[None, None], torch.tensor([depth]), torch.tensor([readers]),
        edges, spans,
    )  # fmt: skip


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
    return _batch(ids_BT, real_BT, torch.arange(width).expand(len(spans), width), real_BT.long(), edges, spans)


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
    return _batch(ids_BT, real_BT, torch.arange(width).expand(len(spans), width), real_BT.long(), edges, spans)


def _batch(
    ids_BT: Tensor,
    mask: Tensor,
    at_BT: Tensor,
    readers_BT: Tensor,
    edges: list[tuple[int, int, int]],
    spans: Sequence[Scored],
) -> Batch:
    position_E, token_E, span_E = torch.tensor(edges, dtype=torch.long).reshape(-1, 3).unbind(1)
    position_N, source_E = torch.unique(position_E, return_inverse=True)
    free_BT = readers_BT - torch.bincount(position_E, minlength=readers_BT.numel()).reshape(readers_BT.shape)
    num_tokens_S = torch.tensor([span.num_tokens for span in spans])
    return Batch(ids_BT, mask, at_BT, free_BT, position_N, source_E, token_E, span_E, num_tokens_S)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
