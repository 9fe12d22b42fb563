"""The released files of the paper, and a negative control that should not debias."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal

from debias import assets
from debias.data.triplets import Checked, Policy, TripletFile
from debias.records import Triplet, UserError


class PaperFile:
    """A data source: a released file of Han et al. 2024, found below $DEBIAS_DATA or fetched once.

    Args:
        bias: gender, race, religion or general.
        file: `1S`, `2S` or `3S`: which of the three files of 500 sentences.
        policy: `strict`, or `as_published` for the paper's own treatment of records that do not fit.
    """

    def __init__(self, bias: str, file: Literal["1S", "2S", "3S"] = "1S", policy: Policy = "strict") -> None:
        name = f"paper-{bias.capitalize()}_{file}"
        if name not in assets.REMOTE:
            raise UserError(
                f"the paper released no file {file!r} for data.bias={bias!r}; "
                "choose gender, race, religion or general, and data.sources.paper.file=1S, 2S or 3S"
            )
        self.bias, self.policy, self.remote = bias, policy, assets.REMOTE[name]

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return self.remote.sha256

    def load(self, seed: int = 0) -> Checked:
        """Fetch if necessary, read and check."""
        return TripletFile(self.bias, str(assets.fetch(self.remote)), self.policy).load(seed)


class Shuffled:
    """A negative control: a triplet file whose attributes the seed permutes, so that no sentence keeps its own.

    A figure that changes with this data changes because of training on such sentences, not because of their content.

    Args:
        bias, path, policy: those of `TripletFile`.
    """

    def __init__(self, bias: str, path: str | None = None, policy: Policy = "strict") -> None:
        self.file = TripletFile(bias, path, policy)

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return f"{self.file.fingerprint()} shuffled"

    def load(self, seed: int = 0) -> Checked:
        """Read, check and permute. Raises UserError if one attribute fills more than half of the file."""
        checked = self.file.load(seed)
        attributes = deranged([t.attribute for t in checked.triplets], seed)
        triplets = [_with_attribute(t, a) for t, a in zip(checked.triplets, attributes, strict=True)]
        note = "negative control: attributes were permuted between sentences, so they fit their targets only by chance"
        return checked._replace(triplets=triplets, notes=(*checked.notes, note))


def deranged(words: list[str], seed: int) -> list[str]:
    """The words in a random order in which no place keeps its word, ignoring case."""
    keys = [word.lower() for word in words]
    most, count = Counter(keys).most_common(1)[0]
    if 2 * count > len(words):
        raise UserError(f"the attribute {most!r} fills more than half of the file: it cannot be shuffled; add others")
    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    order = list(range(len(words)))
    draw.shuffle(order)
    for i in range(len(words)):  # swap each word that kept its place with one that suits both places
        if keys[order[i]] == keys[i]:
            fits = [j for j in range(len(words)) if keys[order[j]] != keys[i] and keys[order[i]] != keys[j]]
            j = draw.choice(fits)
            order[i], order[j] = order[j], order[i]
    return [words[i] for i in order]


def _with_attribute(triplet: Triplet, attribute: str) -> Triplet:
    before, after = triplet.sentence[: triplet.start], triplet.sentence[triplet.stop :]
    return triplet._replace(
        sentence=f"{before}{attribute}{after}", attribute=attribute, stop=triplet.start + len(attribute),
        stereotype=None, unrelated=None,  # they were words for the other attribute
    )  # fmt: skip
