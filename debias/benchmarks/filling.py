"""Which part of a sentence fills the blank of its context."""

from __future__ import annotations

import difflib
import itertools
from typing import NamedTuple

import regex

from debias.data.word_borders import Span, anywhere, composed, is_border
from debias.scoring.spans import BLANK


def filling(context: str, sentence: str) -> Span | None:
    """Where the filling is, found by the text around the first blank; None if the sentence does not show it.

    The filling may have several words, and the words around it other forms or another order, as in translations.
    """
    span = _between(context, sentence) or _between_words(context, sentence)
    return span and _without_signs(sentence, span)


def _between(context: str, sentence: str) -> Span | None:
    """What is left of the sentence without the text before and behind the blank."""
    blank = context.index(BLANK)
    before, after = context[:blank].lstrip(), context[blank + len(BLANK) :].rstrip()
    first = len(sentence) - len(sentence.lstrip())
    head = anywhere(before).match(sentence, first)
    end = len(sentence.rstrip())
    tail = next((m for m in anywhere(after).finditer(sentence, overlapped=True) if m.end() == end), None)
    if head is None or tail is None or head.end() >= tail.start():
        return None
    # Where the blank is a whole word, its filling must not begin or end inside one: "un BLANK" and "une amie".
    for place, cut in ((blank, head.end()), (blank + len(BLANK), tail.start())):
        if is_border(context, place) and not is_border(sentence, cut):
            return None
    return head.end(), tail.start()


class _Word(NamedTuple):
    """A word or sign, for comparison, and where it is."""

    text: str
    span: Span


def _between_words(context: str, sentence: str) -> Span | None:
    """What stands between the words around the blank.

    Where the nearest words that both have are further away, those between must be as many as in the context.
    """
    wanted, words = _words(context), _words(sentence)
    blank = next((i for i, word in enumerate(wanted) if word.text == BLANK.casefold()), None)
    if blank is None:
        return None
    matcher = difflib.SequenceMatcher(None, [w.text for w in wanted], [w.text for w in words], autojunk=False)
    same = {m.a + k: m.b + k for m in matcher.get_matching_blocks() for k in range(m.size)} | {len(wanted): len(words)}
    left = max((i for i in same if i < blank), default=-1)
    right = min(i for i in same if i > blank)
    begin, end = same.get(left, -1) + 1, same[right]
    skipped = (blank - left - 1, right - blank - 1)  # words of the context that the sentence has in another form
    if any(skipped):
        if end - begin != sum(skipped) + 1:
            return None
        begin, end = begin + skipped[0], end - skipped[1]
    return (words[begin].span[0], words[end - 1].span[1]) if begin < end else None


def _words(text: str) -> list[_Word]:
    """Words and signs; in scripts without blanks, each character."""
    borders = [m.start() for m in regex.finditer(r"\b", text, regex.WORD | regex.VERSION1)]
    spans = [(a, b) for a, b in itertools.pairwise(borders) if not text[a:b].isspace()]
    return [_Word(composed(text[a:b]).casefold(), (a, b)) for a, b in spans]


def _without_signs(sentence: str, span: Span) -> Span | None:
    """The span without blanks and punctuation at its ends, unless it has nothing else."""
    text = sentence[slice(*span)]
    found = regex.search(r"\w.*[\w\p{M}]|\w\p{M}*", text, regex.DOTALL) or regex.search(
        r"\S.*\S|\S", text, regex.DOTALL
    )
    return None if found is None else (span[0] + found.start(), span[0] + found.end())
