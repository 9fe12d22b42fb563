"""Counterparts of training sentences, for objectives that compare: another group, or another word for the attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from debias.data.swapping import Swapper
from debias.data.word_borders import same_word, whole_words
from debias.records import Triplet, UserError

_ADD_WORDS = (
    'choose data=targeted, general or stereoset, or a file whose records have a "stereotype" and an "unrelated" word '
    "for the attribute's place (debias generate counterparts=FILE adds them)"
)

Texts = tuple[Triplet, ...]  # the training sentence, then its counterparts


def paired(
    triplets: Sequence[Triplet], contrasts: Sequence[str], compares: Callable[[Triplet], bool] = lambda _: True
) -> tuple[list[Texts], Counter[str]]:
    """Each sentence with its counterparts, and how many sentences lack one, by reason.

    Args:
        contrasts: the counterparts: `group` (the sentence with words for one group swapped for another's),
            `stereotype` or `unrelated` (the sentence with the word that its record names in the attribute's place).
        compares: whether a sentence gets counterparts; otherwise it comes alone.

    Raises UserError if no sentence has all of them.
    """
    texts: list[Texts] = []
    dropped: Counter[str] = Counter()
    remedies: dict[str, None] = {}  # of the contrasts that sentences lack
    for triplet in triplets:
        others: list[Triplet] = []
        for contrast in contrasts if compares(triplet) else ():
            counterpart, remedy = CONTRASTS[contrast]
            other = counterpart(triplet)
            if isinstance(other, str):
                dropped[other] += 1
                remedies[remedy] = None
                break
            others.append(other)
        else:
            texts.append((triplet, *others))
    if not texts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"this objective compares sentences, but none has a counterpart ({reasons}); {'; '.join(remedies)}"
        )
    return texts, dropped


def has_counterparts(triplet: Triplet, contrasts: Sequence[str]) -> bool:
    """Whether a sentence has all of these counterparts."""
    return not any(isinstance(CONTRASTS[contrast][0](triplet), str) for contrast in contrasts)


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
    return _instead(triplet, triplet.stereotype, "stereotype")


def unrelated(triplet: Triplet) -> Triplet | str:
    """The sentence with the unrelated word in the attribute's place, or the reason why there is none."""
    return _instead(triplet, triplet.unrelated, "unrelated word")


def _instead(triplet: Triplet, word: str | None, name: str) -> Triplet | str:
    if word is None:
        return f"no {name} in the record"
    if same_word(word, triplet.attribute):
        return f"the {name} is the attribute"
    before, after = triplet.sentence[: triplet.start], triplet.sentence[triplet.stop :]
    return triplet._replace(sentence=f"{before}{word}{after}", attribute=word, stop=triplet.start + len(word))


CONTRASTS: dict[str, tuple[Callable[[Triplet], Triplet | str], str]] = {
    "group": (other_group, "choose data about gender, race or religion, or objective=bounded"),
    "stereotype": (stereotype, _ADD_WORDS),
    "unrelated": (unrelated, _ADD_WORDS),
}


@cache
def _swapper(bias: str) -> Swapper | None:
    try:
        return Swapper(bias)
    except UserError:
        return None
