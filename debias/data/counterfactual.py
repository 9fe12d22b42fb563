"""Counterfactual data augmentation (Zhao et al. 2018; Lu et al. 2020), and the same text without swaps as a control."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from debias.data.plaintext import Text, split_sentences, usable, whole
from debias.data.swapping import Swapper
from debias.data.triplets import Checked
from debias.records import UserError

Sides = Literal["two", "one", "none"]


class Counterfactual:
    """A data source: sentences with words for groups swapped. Sentences without such words are left out.

    Args:
        bias: gender, race or religion.
        text: `gap`, `bold` or a file; if None, `gap` for gender and `bold` for race and religion.
        sides: `two` (each sentence and its counterfactual), `one` (the counterfactual alone) or `none` (the sentence
            alone: the effect of training on this text without swaps).
    """

    def __init__(self, bias: str, text: str | None = None, sides: Sides = "two") -> None:
        self.bias, self.sides = bias, sides
        self.swapper = Swapper(bias)
        self.text = Text(text, bias)

    def fingerprint(self) -> str:
        """Checksums of text and word list."""
        return f"{self.text.fingerprint()} {self.swapper.fingerprint()} {self.sides}"

    def load(self, seed: int = 0) -> Checked:
        """Read, split and swap; the seed has no effect. Raises UserError if no sentence has a word to swap."""
        dropped: Counter[str] = Counter()
        triplets = []
        sentences = (s for passage in self.text.passages() for s in split_sentences(passage))
        for sentence in usable(sentences, dropped):
            swapped = self.swapper.swap(sentence)
            if swapped is None:
                dropped["no word to swap"] += 1
                continue
            chosen = {"two": (sentence, swapped), "one": (swapped,), "none": (sentence,)}[self.sides]
            triplets += [whole(text, self.bias, self.text.name) for text in chosen]
        if not triplets:
            raise UserError(f"{self.text.name}: no sentence has a word to swap for {self.bias}; choose another text")
        return Checked(triplets, dropped)
