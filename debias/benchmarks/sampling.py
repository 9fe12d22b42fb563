"""The examples of a benchmark: what is left out of a file, and fixed samples, the same on every machine."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from debias.benchmarks.statistics import Strata
from debias.records import UserError
from debias.schema import nearest
from debias.wording import counted, plural

WHOLE = "overall"  # the bias under which all examples together are reported; no bias of a file may be called so

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


def strata(labels_N: np.ndarray, limit: int | None, population: Callable[[], Mapping[str, int]]) -> Strata | None:
    """The groups of a sample whose groups were drawn at different rates, with the inverse rates as weights.

    None for a whole benchmark, a single group, or equal rates: then every example counts the same.

    Args:
        labels_N: the group of each example in the sample.
        population: counts the examples of each group in the whole benchmark. It is called only for a sample.

    Raises UserError if the benchmark has fewer examples of a group than the sample.
    """
    names_G, group_N, count_G = np.unique(np.asarray(labels_N, dtype=str), return_inverse=True, return_counts=True)
    if limit is None or len(names_G) < 2:
        return None
    sizes = population()
    for name, count in zip(names_G, count_G, strict=True):
        if sizes.get(name, 0) < count:
            found = f"{counted(count, 'record')} of {name}, but {counted(sizes.get(name, 0), 'example')} in the file"
            raise UserError(f"{found}; evaluate again")
    weight_G = np.array([sizes[name] for name in names_G]) / count_G
    if np.allclose(weight_G, weight_G[0]):
        return None
    weights_N = weight_G[group_N]
    return Strata(names_G[group_N], weights_N / weights_N.mean())


def same_texts(texts: Sequence[str]) -> bool:
    """Whether two of the texts are the same, which makes their comparison no evidence of anything."""
    return len({unicodedata.normalize("NFC", text.strip()) for text in texts}) < len(texts)


def left_out(name: str, reasons: Counter[str], total: int) -> list[str]:
    """The note that says how many of a file's examples are left out and why; none if all are used."""
    why = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    out, of = reasons.total(), counted(total, "example")
    return [f"{name}: {out:,} of {of} {plural(out, 'is', 'are')} left out: {why}"] if reasons else []


def check_biases(whole: Sequence[str] | str, known: Iterable[str], place: str) -> None:
    """Raise UserError for a bias in a list that the examples do not have. A single name may be missing from them."""
    names = sorted(set(known))
    for name in () if isinstance(whole, str) else whole:
        if name not in names:
            hint = nearest(name, names)
            raise UserError(f"{place}: there is no bias {name!r}{hint}; choose from: {', '.join(names)}")


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\x00")
    return digest.hexdigest()
