"""The recipe that training data allows: some objectives need words that only some sentences have.

`auto` in a config is one of these classes, and what it chooses takes its place once the data has been read
(`Tuning.settled`). A run's status.json keeps the choice (`debias.results.settled`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from debias.records import SomeShare, Tokens, Triplet, UserError
from debias.training.balance import Balance
from debias.training.objectives import Objective
from debias.training.pairs import has_counterparts

log = logging.getLogger(__name__)


class ObjectiveOfData:
    """One objective for data with sentences about gender that have counterparts, another for all other data.

    Args:
        compared: needs counterparts of the sentences that it compares, and leaves out those that lack one.
        alone: needs only the sentences.
        share: `compared` needs all its counterparts for at least this share of the sentences that it compares,
        gender: and at least this share of all sentences about gender, with a stereotype.
    """

    def __init__(self, compared: Objective, alone: Objective, share: SomeShare = 0.9, gender: SomeShare = 0.1) -> None:
        self.compared, self.alone, self.share, self.gender = compared, alone, share, gender

    def choice(self, triplets: Sequence[Triplet]) -> str:
        """`compared` or `alone`."""
        compared = [triplet for triplet in triplets if self.compared.compares(triplet)]
        number = sum(has_counterparts(triplet, self.compared.contrasts) for triplet in compared)
        whole = number >= self.share * len(compared)
        return "compared" if whole and about_gender(triplets, self.gender) else "alone"


class BalanceOfData:
    """Pairs where sentences with counterparts are about gender, and none otherwise, so that controls stay controls.

    Args:
        gender: the pairs.
        other: what is balanced otherwise.
        share: `gender` is chosen if at least this share of the sentences is about gender and names a stereotype.
    """

    def __init__(self, gender: Balance, other: Balance, share: SomeShare = 0.1) -> None:
        self.gender, self.other, self.share = gender, other, share

    def choice(self, triplets: Sequence[Triplet]) -> str:
        """`gender` or `other`."""
        return "gender" if about_gender(triplets, self.share) else "other"

    def usable(self, tokens: Tokens) -> bool:
        """Whether the pairs can be asked of this model; if not, the log says why."""
        try:
            self.gender.pairs(tokens)
        except UserError as error:
            log.warning("trained without pairs: %s", error)
            return False
        return True


def about_gender(triplets: Sequence[Triplet], share: float) -> bool:
    """Whether at least this share of the sentences is about gender and names a stereotype."""
    number = sum(t.bias == "gender" and has_counterparts(t, ("stereotype",)) for t in triplets)
    return number >= share * len(triplets)


def choices(parts: Mapping[str, Any], triplets: Sequence[Triplet], tokens: Tokens) -> dict[str, str]:
    """What each part of the recipe that depends on the data chooses, by its name in the config."""
    of_data = {key: part for key, part in parts.items() if isinstance(part, ObjectiveOfData | BalanceOfData)}
    chosen = {key: part.choice(triplets) for key, part in of_data.items()}
    for key, part in of_data.items():
        if isinstance(part, BalanceOfData) and chosen[key] == "gender" and not part.usable(tokens):
            chosen[key] = "other"
    return chosen
