"""Benchmarks as training text: an upper bound on what in-distribution data can do, never a fair comparison."""

from __future__ import annotations

import csv
import json
from collections import Counter
from typing import Any, Literal

from debias import assets
from debias.data.plaintext import whole
from debias.data.triplets import Checked
from debias.data.word_borders import whole_word
from debias.records import Triplet, UserError


class StereoSetSentences:
    """A data source: the anti-stereotype sentences of StereoSet (Nadeem et al. 2021), the filling as attribute.

    Args:
        bias: gender, race, religion or profession; `general` for all.
        split: `dev` or `test`.
    """

    def __init__(self, bias: str, split: Literal["dev", "test"] = "dev") -> None:
        self.bias, self.split = bias, split
        self._asset = f"stereoset-{split}"

    def fingerprint(self) -> str:
        """SHA-256 of the file, and the bias."""
        return f"{assets.ASSETS[self._asset].sha256} {self.bias}"

    def load(self, seed: int = 0) -> Checked:
        """All sentences whose filling follows the target; the seed has no effect."""
        examples = json.loads(assets.locate(self._asset).read_text(encoding="utf-8"))["data"]["intrasentence"]
        chosen = [e for e in examples if self.bias in ("general", e["bias_type"])]
        if not chosen:
            names = ", ".join(sorted({e["bias_type"] for e in examples}))
            raise UserError(f"StereoSet has no sentences on data.bias={self.bias!r}; choose one of: {names}, general")
        triplets: list[Triplet] = []
        dropped: Counter[str] = Counter()
        for example in chosen:
            found = _filled(example)
            if isinstance(found, str):
                dropped[found] += 1
            else:
                triplets.append(found)
        note = (
            f"in-distribution: trained on anti-stereotype sentences of StereoSet {self.split}, which resemble those it "
            "is scored on; its StereoSet score does not show that bias fell elsewhere"
        )
        return Checked(triplets, dropped, (note,))


def _filled(example: dict[str, Any]) -> Triplet | str:
    """The anti-stereotype sentence with its filling and the other two, or the reason why it cannot be used."""
    triplet, *others = (_located(example, label) for label in ("anti-stereotype", "stereotype", "unrelated"))
    if isinstance(triplet, str):
        return triplet
    # A filling that cannot be found is missing; the sentence is used all the same.
    stereotype, unrelated = (None if isinstance(other, str) else other.attribute for other in others)
    return triplet._replace(stereotype=stereotype, unrelated=unrelated)


def _located(example: dict[str, Any], label: str) -> Triplet | str:
    (sentence,) = (s["sentence"].strip() for s in example["sentences"] if s["gold_label"] == label)
    before, _, after = example["context"].strip().partition("BLANK")
    after = after.rstrip()
    fits = sentence.lower().startswith(before.lower()) and sentence.lower().endswith(after.lower())
    start, stop = len(before), len(sentence) - len(after)
    if not fits or not sentence[start:stop].strip():
        return "filling not found in the sentence"
    target = whole_word(example["target"], sentence)
    if target is None:
        return "target not in the sentence"
    if target[1] > start:
        return "filling before the target"
    return Triplet(sentence, example["target"], sentence[start:stop], example["bias_type"], "stereoset", start, stop)


class CrowsPairsSentences:
    """A data source: the less stereotyping sentence of each CrowS-Pairs pair (Nangia et al. 2020).

    Args:
        bias: one of the nine biases of the file (`race` is short for `race-color`); `general` for all.
    """

    def __init__(self, bias: str) -> None:
        self.bias = bias

    def fingerprint(self) -> str:
        """SHA-256 of the file, and the bias."""
        return f"{assets.ASSETS['crows_pairs'].sha256} {self.bias}"

    def load(self, seed: int = 0) -> Checked:
        """All sentences of the bias; the seed has no effect."""
        with assets.locate("crows_pairs").open(newline="", encoding="utf-8") as file:
            pairs = list(csv.DictReader(file))
        bias = "race-color" if self.bias == "race" else self.bias
        chosen = [p for p in pairs if bias in ("general", p["bias_type"])]
        if not chosen:
            names = ", ".join(sorted({p["bias_type"] for p in pairs}))
            raise UserError(f"CrowS-Pairs has no pairs on data.bias={self.bias!r}; choose one of: {names}, general")
        note = (
            "in-distribution: trained on the less stereotyping sentences of CrowS-Pairs, whose authors ask not to "
            "train on them; a control, not a model to publish"
        )
        texts = dict.fromkeys(p["sent_less"].strip() for p in chosen)
        dropped = Counter({"repeats a sentence": len(chosen) - len(texts)})
        return Checked([whole(text, self.bias, "crows_pairs") for text in texts], +dropped, (note,))
