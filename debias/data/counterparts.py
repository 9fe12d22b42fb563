"""Counterparts of an attribute: the stereotype's word, and an unrelated one, and whether they fit in its place."""

from __future__ import annotations

import re

from debias.data.quality import words
from debias.records import Triplet

COUNTERPARTS = ("stereotype", "unrelated")  # the columns
# Endings that show the form of a word: of what has one in the attribute's place, the counterpart has it too.
_ENDINGS = ("ing", "ed", "ly", "est", "s")
_NO_PLURAL = ("ss", "us", "is", "ous")
_SHORTEST_STEM = 3  # letters before an ending, one of them a vowel: `king`, `red` and `thing` have no ending
_VOWEL_SOUND = re.compile(r"(?!(?:u[nst]i|use|euro|one|once|ewe))[aeiou]|hour|honest|honou?r|heir", re.IGNORECASE)


def misfit(triplet: Triplet, word: str) -> str | None:
    """Why a word cannot take the attribute's place in its sentence, as far as its shape tells; None if it can."""
    attribute = triplet.attribute
    if words(word) == words(attribute):
        return "is the attribute"
    if len(word.split()) != len(attribute.split()) or len(words(word)) != len(words(attribute)):
        return "another number of words than the attribute"
    if set(words(word)) & set(words(triplet.target)):
        return "repeats the target"
    if not re.sub(r"[\s'’-]", "", word).isalpha():
        return "not a word"
    if word[0].isupper() != attribute[0].isupper() and not attribute.isupper():
        return "another capitalisation than the attribute"
    if ending(word) != ending(attribute):
        return "another ending than the attribute"
    article = re.search(r"\b(an?)\s+$", triplet.sentence[: triplet.start], re.IGNORECASE)
    if article and (article[1].lower() == "an") != bool(_VOWEL_SOUND.match(word)):
        return f"does not follow the article {article[1]!r}"
    return None


def misfits(triplet: Triplet) -> list[str]:
    """What is wrong with the counterparts that a triplet has; empty if they fit."""
    found = [(name, word) for name in COUNTERPARTS if (word := getattr(triplet, name)) is not None]
    wrong = [f"{name} {why}" for name, word in found if (why := misfit(triplet, word))]
    if len(found) == len(COUNTERPARTS) and words(found[0][1]) == words(found[1][1]):
        wrong.append("stereotype and unrelated are the same word")
    return wrong


def ending(word: str) -> str:
    """The ending that shows the form of the last word, such as `ing`; empty if it has none."""
    last = word.lower().replace("’", "'").removesuffix("'s")
    for end in _ENDINGS:
        stem = last.removesuffix(end)
        if stem == last or (end == "s" and last.endswith(_NO_PLURAL)):
            continue
        if len(stem) >= _SHORTEST_STEM and re.search("[aeiouy]", stem):
            return end
    return ""
