"""Fixed samples of a benchmark: the same examples on every machine and in every run, whatever the file's order."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

Example = TypeVar("Example")


def per_bias(
    examples: Iterable[Example],
    bias: Callable[[Example], str],
    identity: Callable[[Example], str],
    limit: int | None,
    whole: Iterable[str],
) -> list[Example]:
    """All examples of the biases in `whole`, and `limit` examples of every other bias."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[bias(example)].append(example)
    kept = []
    for name, group in groups.items():
        # The lowest hashes of the ids are a random sample that needs no seed and grows without changing what it holds.
        ranked = sorted(group, key=lambda e: hashlib.sha256(identity(e).encode()).digest())
        kept.extend(group if name in whole or limit is None else ranked[:limit])
    return kept


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\x00")
    return digest.hexdigest()
