"""Triplets -> token ids, with the attribute's tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from debias.records import Encoded, Triplet


def encode(triplets: Sequence[Triplet], tokenizer: Any, start_token: int | None = None) -> list[Encoded]:
    """Tokenise sentences and find the tokens that overlap the attribute's characters (its leading space included).

    Args:
        start_token: id to put in front of every sentence; none when empty.
    """
    encoded = tokenizer(
        [t.sentence for t in triplets],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    front = () if start_token is None else (start_token,)
    texts = []
    for triplet, ids, offsets in zip(triplets, encoded.input_ids, encoded.offset_mapping, strict=True):
        marked = [k for k, (a, b) in enumerate(offsets) if a < triplet.stop and b > triplet.start]
        texts.append(Encoded((*front, *ids), len(front) + marked[0], len(front) + marked[-1] + 1))
    return texts
