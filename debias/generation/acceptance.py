"""Which triplets are accepted into a generated set, and why the others are rejected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from debias.data.quality import NearDuplicates, opening, words
from debias.data.triplets import Record, fault, strict
from debias.generation.wanted import Wanted
from debias.records import Triplet

# Signs that the model wrote about its task, or left a placeholder or markup in the sentence.
_LEAK = re.compile(
    r"\bas an? (?:ai|assistant)\b|language model|\bstereotyp|\btriplets?\b|\b(?:sentence|target|attribute)\b\s*[:=]"
    r"|[\[\]{}<>|*_#\\]|https?:|\.\.\.|^\W*\d+\s*[.):]|^\s*[-•–]",
    re.IGNORECASE,
)
_LOST = re.compile("[\ufffd\ue000-\uf8ff]")  # the replacement character, and those of private use
# Words that say nothing about a person: a model cannot learn from them.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        """
        a an the this that these those and or but nor so as if of in on at to for from with by into about over under
        up down out off he she it they we you i him her his hers its them their theirs us our ours me my mine your
        yours who whom which what is are was were be been being am do does did have has had can could will would shall
        should may might must not no yes very too also just only all any some each every one there here then than when
        while
        """,
    )
)
SHORTEST = 3  # letters of an attribute
LONGEST_BIAS = 30  # characters of a bias named by the model


class Rejection(str):
    """Why a triplet was rejected; `like` is the sentence or word that it repeats or is too close to."""

    like: str = ""

    def __new__(cls, reason: str, like: str = "") -> Rejection:
        rejection = super().__new__(cls, reason)
        rejection.like = like
        return rejection


def form(item: Mapping[str, Any], bias: str, source: str, wanted: Wanted) -> Triplet | Rejection:
    """The triplet, its words spelled as in the sentence, or why it is unusable, whatever else is in the set."""
    texts = {key: item.get(key) for key in ("sentence", "target", "attribute")}
    if not all(isinstance(text, str) and text.strip() for text in texts.values()):
        return Rejection("schema: a field is missing or not text")
    record = {key: str(text).strip() for key, text in texts.items()}
    if hidden := next(filter(None, map(fault, record.values())), None):
        return Rejection(f"schema: a field {hidden}")
    if lost := _LOST.search(" ".join(record.values())):
        return Rejection(f"schema: a field holds U+{ord(lost[0]):04X}, which stands for a lost character")
    if leak := _LEAK.search(record["sentence"]):
        return Rejection("template: markup, numbering or talk about the task", leak[0].strip())
    if not wanted.min_words <= len(words(record["sentence"])) <= wanted.max_words:
        return Rejection("length: too short or too long")
    attribute = record["attribute"]
    if len(words(attribute)) != 1 or len(attribute.split()) != 1:
        return Rejection("attribute of several words")
    if len(attribute) < SHORTEST or attribute.lower() in _EMPTY or not attribute.replace("-", "").isalpha():
        return Rejection("attribute without a meaning of its own")
    if set(words(attribute)) & set(words(record["target"])):
        return Rejection("attribute repeats the target")
    named = item.get("bias")
    label = named.strip().lower() if isinstance(named, str) and 0 < len(named.strip()) <= LONGEST_BIAS else bias
    found = strict(Record(record["sentence"], record["target"], attribute, label, source))
    return _spelled(found) if isinstance(found, Triplet) else Rejection(found)


def _spelled(triplet: Triplet) -> Triplet:
    """The triplet with the case that target and attribute have in the sentence."""
    sentence = triplet.sentence
    start = sentence[: triplet.start].lower().find(triplet.target.lower())
    target = sentence[start : start + len(triplet.target)] if start >= 0 else triplet.target
    return triplet._replace(target=target, attribute=sentence[triplet.start : triplet.stop])


class Acceptance:
    """Accepts triplets one after the other; what is in the set already limits what can still be accepted.

    Args:
        wanted: the limits.
        known: sentences that must not be repeated, by the reason that a repetition is rejected for.
    """

    def __init__(self, wanted: Wanted, known: Mapping[str, NearDuplicates]) -> None:
        self.wanted, self.known = wanted, known
        self.own = NearDuplicates(wanted.similarity)
        self.used = {"target": Counter[str](), "attribute": Counter[str](), "opening": Counter[str]()}

    def judge(self, item: Mapping[str, Any], bias: str, source: str) -> Triplet | Rejection:
        """Accept a triplet into the set, or say why not."""
        triplet = form(item, bias, source, self.wanted)
        if isinstance(triplet, Rejection):
            return triplet
        rejection = self._repeats(triplet.sentence) or self._too_often(triplet)
        if rejection is not None:
            return rejection
        self.own.add(triplet.sentence, triplet.sentence)
        for what, word in _counted(triplet).items():
            self.used[what][word] += 1
        return triplet

    def _repeats(self, sentence: str) -> Rejection | None:
        for reason, sentences in {"repeats a sentence of the set": self.own, **self.known}.items():
            if near := sentences.nearest(sentence):
                nearly = "" if near.similarity == 1 else "nearly "
                return Rejection(f"{nearly}{reason}", near.sentence)
        return None

    def _too_often(self, triplet: Triplet) -> Rejection | None:
        for what, word in _counted(triplet).items():
            if self.used[what][word] >= self.wanted.cap(getattr(self.wanted, f"cap_{what}")):
                return Rejection(f"{what} too often (generate.cap_{what})", word)
        return None


def _counted(triplet: Triplet) -> dict[str, str]:
    return {
        "target": triplet.target.lower(),
        "attribute": triplet.attribute.lower(),
        "opening": opening(triplet.sentence),
    }
