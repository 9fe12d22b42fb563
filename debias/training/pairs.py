"""Counterparts of training sentences, for objectives that compare: the same about another group, or the stereotype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from debias.data.swapping import Swapper
from debias.data.word_borders import same_word, whole_words
from debias.records import Triplet, UserError

Texts = tuple[Triplet, ...]  # the training sentence, then its counterpart if there is one


def paired(triplets: Sequence[Triplet], contrast: str | None) -> tuple[list[Texts], Counter[str]]:
    """Each sentence with its counterpart, and how many sentences have none, by reason.

    Args:
        contrast: `group` (the sentence with words for one group swapped for another's), `stereotype` (the sentence
            with the stereotype that its record names), or None (no counterparts).

    Raises UserError if no sentence has a counterpart.
    """
    if contrast is None:
        return [(triplet,) for triplet in triplets], Counter()
    counterpart, remedy = CONTRASTS[contrast]
    pairs: list[Texts] = []
    dropped: Counter[str] = Counter()
    for triplet in triplets:
        other = counterpart(triplet)
        if isinstance(other, str):
            dropped[other] += 1
        else:
            pairs.append((triplet, other))
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(f"this objective compares sentences, but none has a counterpart ({reasons}); {remedy}")
    return pairs, dropped


def other_group(triplet: Triplet) -> Triplet | str:
    """The sentence about another group with the same attribute, or the reason why there is none."""
    swapper = _swapper(triplet.bias)
    swapped = swapper.swap(triplet.sentence) if swapper else None
    if swapped is None:
        return "no swappable word for a group"
    if not triplet.attribute:
        return "plain text without an attribute"
    # Swapping may change the sentence's length: find the attribute again by which of its occurrences it is.
    places = [list(whole_words(triplet.attribute, s)) for s in (triplet.sentence, swapped)]
    if len(places[0]) != len(places[1]) or (triplet.start, triplet.stop) not in places[0]:
        return "the attribute is swapped too"
    start, stop = places[1][places[0].index((triplet.start, triplet.stop))]
    return triplet._replace(sentence=swapped, start=start, stop=stop)


def stereotype(triplet: Triplet) -> Triplet | str:
    """The sentence with the stereotype in the attribute's place, or the reason why there is none."""
    if triplet.stereotype is None:
        return "no stereotype in the record"
    if same_word(triplet.stereotype, triplet.attribute):
        return "the stereotype is the attribute"
    before, after = triplet.sentence[: triplet.start], triplet.sentence[triplet.stop :]
    return triplet._replace(
        sentence=f"{before}{triplet.stereotype}{after}",
        attribute=triplet.stereotype,
        stop=triplet.start + len(triplet.stereotype),
    )


CONTRASTS: dict[str, tuple[Callable[[Triplet], Triplet | str], str]] = {
    "group": (other_group, "choose data about gender, race or religion, or objective=attribute"),
    "stereotype": (
        stereotype,
        'choose data=stereoset, or a file whose records have a "stereotype", the word to put in the attribute\'s place',
    ),
}


@cache
def _swapper(bias: str) -> Swapper | None:
    try:
        return Swapper(bias)
    except UserError:
        return None
