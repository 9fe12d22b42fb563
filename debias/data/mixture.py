"""What a run trains on: one or more sources, mixed in shares, cut to size and matched with other runs."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from debias.data.triplets import Checked, Policy
from debias.records import Count, Positive, Triplet, UserError
from debias.wording import counted, plural

log = logging.getLogger(__name__)

FAR_TOO_FEW = 100  # sentences; the paper trains on 500

Match = Literal["examples", "steps", "tokens"]


class Source(Protocol):
    """Where training sentences come from; a config file in `conf/data/` names its class."""

    def fingerprint(self) -> str:
        """Checksum of everything that `load` depends on besides the seed."""

    def load(self, seed: int) -> Checked:
        """The sentences, the counts of dropped ones, and notes. Raises UserError if no sentence is left."""


@runtime_checkable
class Checking(Protocol):
    """A source with needs that can be checked at once, such as a key for a chat model."""

    def check(self) -> None:
        """Raise UserError for what is missing."""


class Mixture:
    """The data of a run: its sources, one after the other.

    Args:
        bias: the bias that is scored in full and heads the table; the config passes it to the sources too.
        sources: by name.
        n: keep this many sentences, drawn with the seed; all if None.
        match: what runs on different sources have in common: `examples` (draw `match_to` of them), `steps` (as many
            as `match_to` examples take) or `tokens` (as many as `match_to` sentences of our general corpus have).
        match_to: number of sentences that `match` refers to.
        weights: share of each source by name, as in `{targeted: 2, general: 1}`. The seed draws the largest set with
            these shares that repeats no sentence and has at most `n`.
        counterparts: whether the sentences keep their stereotype's and unrelated words, which some objectives need.
        path: file for the sources that read one; not used here, the config passes it on.
        policy: for the sources that check triplets; not used here, the config passes it on.
    """

    def __init__(
        self,
        bias: str,
        sources: Mapping[str, Source],
        n: Count | None = None,
        match: Match | None = None,
        match_to: Count = 500,
        weights: Mapping[str, Positive] | None = None,
        counterparts: bool = True,
        path: str | None = None,
        policy: Policy = "strict",
    ) -> None:
        self.counterparts = counterparts
        self.bias, self.sources, self.n, self.match, self.match_to = bias, dict(sources), n, match, match_to
        self.weights = _checked_weights(weights, self.sources) if weights else None

    def fingerprint(self) -> str:
        """Checksums of the sources. Raises UserError if two of them are the same text."""
        prints = {name: source.fingerprint() for name, source in self.sources.items()}
        names: dict[str, str] = {}
        for name, checksum in prints.items():
            if checksum in names:
                raise UserError(
                    f"data={names[checksum]} and data={name} are the same text: set data.bias=gender or another bias, "
                    "or name another file"
                )
            names[checksum] = name
        return " ".join(prints.values())

    def check(self) -> None:
        """Raise UserError for what a source is missing and can tell without being loaded."""
        for source in self.sources.values():
            if isinstance(source, Checking):
                source.check()

    def load(self, seed: int) -> Checked:
        """All sentences in the given shares, cut to `n` and, with `match=examples`, to `match_to`."""
        parts = {name: source.load(seed) for name, source in self.sources.items()}
        several, warning = len(parts) > 1, ""
        if (count := sum(len(part.triplets) for part in parts.values())) < FAR_TOO_FEW:
            told = counted(count, "sentence is", "sentences are")
            warning = f"{told} far too few to train on: expect no effect, or an erratic one"
            log.warning("%s", warning)
        dropped: Counter[str] = Counter()
        for name, part in parts.items():
            for reason, count in part.dropped.items():
                dropped[f"{reason} ({name})" if several else reason] += count
        notes = [note for part in parts.values() for note in part.notes]
        draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
        wanted = [n for n in (self.n, self.match_to if self.match == "examples" else None) if n is not None]
        most = min(wanted, default=None)
        pairs: list[tuple[str, Triplet]] = []
        sizes = shares({name: len(part.triplets) for name, part in parts.items()}, self.weights, most)
        for name, part in parts.items():
            drawn = draw.sample(part.triplets, sizes[name]) if self.weights else part.triplets
            pairs += [(name, triplet) for triplet in drawn]
        few = self.match == "examples" and self.match_to > min(len(pairs), self.n or len(pairs))
        fewer = self.n is not None and most == self.n and self.n > len(pairs)
        if most is not None and most < len(pairs):
            pairs = draw.sample(pairs, most)
        triplets = [triplet for _, triplet in pairs]
        if not self.counterparts:
            triplets = [triplet._replace(stereotype=None, unrelated=None) for triplet in triplets]
        if several:
            counts = Counter(name for name, _ in pairs)
            notes.append("sentences of each source: " + ", ".join(f"{name} {counts[name]}" for name in parts))
        if few:
            asked = counted(self.match_to, "sentence")
            notes.append(f"data.match=examples asks for {asked}, but there are fewer: all are used")
        plain = sum(not t.attribute for t in triplets)
        if fewer:
            notes.append(f"data.n={self.n} asks for more sentences than there are: {len(triplets)} are used")
        if plain:
            of = counted(len(triplets), "sentence")
            have = plural(plain, "has", "have")
            notes.append(f"plain text: {plain} of {of} {have} no attribute; the loss covers all their tokens")
        spent = next((part.spent for part in parts.values() if part.spent), {})  # at most one source asks a chat model
        return Checked(triplets, dropped, tuple(notes), spent, warning)


def shares(sizes: Mapping[str, int], weights: Mapping[str, Positive] | None, most: int | None = None) -> dict[str, int]:
    """Number of sentences to take from each source: as many as the shares of `weights` allow without repeats.

    Not more than `most`, if given. Raises UserError if a source would get none.
    """
    if weights is None:
        return dict(sizes)
    unit = min(sizes[name] / weight for name, weight in weights.items())  # sentences per unit of weight
    total = sum(weights.values())
    limit = most if most is not None and most < unit * total else None
    unit = unit if limit is None else limit / total
    taken = {name: int(unit * weight + 1e-9) for name, weight in weights.items()}  # 1e-9: 3 * (1 / 3) is 1
    if limit is not None:  # sentences lost by rounding down go to the sources that lost most
        lost = sorted(weights, key=lambda name: taken[name] - unit * weights[name])
        for name in lost[: limit - sum(taken.values())]:
            taken[name] += 1
    for name, size in taken.items():
        if size < 1:
            raise UserError(f"data.weights leave no sentence of {name}; raise data.weights.{name}")
    return taken


def _checked_weights(weights: Mapping[str, Positive], sources: Mapping[str, Source]) -> dict[str, float]:
    if not isinstance(weights, Mapping) or set(weights) != set(sources):
        raise UserError(f"data.weights must name the sources, and no others: {', '.join(sources)}")
    for name, weight in weights.items():
        if not weight > 0:
            raise UserError(f"data.weights.{name}={weight} must be more than 0; leave the source out instead")
    return dict(weights)
