"""Finding a word in a sentence: where words begin and end in any script, whatever the text's case and Unicode form."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import regex

Span = tuple[int, int]  # characters: the first, and the one behind the last

# What continues a word: letters, digits, the marks and invisible joiners that belong to them, and hyphens. An
# apostrophe does not: `woman` is a word of "the woman's coat".
_JOINED = r"\w\p{Word_Break=Extend}\p{Word_Break=Format}\p{Word_Break=ZWJ}"
# Scripts without blanks: Unicode (UAX 29) has a border between two characters that are part of words.
_BETWEEN = rf"(?<=[{_JOINED}])\b(?=\w)"
# The letters that are not each other's capitals in every language: in Turkish `kız` is a girl and `kiz` is nothing.
_DOTTED = {
    "i": "(?:I\u0307|i\u0307|(?-i:[iI\u0130]))",
    "I": "(?-i:[iI])",
    "\u0130": "(?:I\u0307|i\u0307|(?-i:[i\u0130]))",
    "\u0131": "(?-i:[\u0131I])",
}
# Korean writes particles together with the noun before them.
_KOREAN = """
은 는 이 가 을 를 의 에 에서 에게 에게서 께 께서 한테 한테서 로 으로 로서 으로서 로써 으로써 와 과 랑 이랑 하고 도 만
까지 부터 마다 조차 마저 밖에 처럼 보다 나 이나 라도 이라도 든지 이든지 며 이며 라는 이라는 라고 이라고 야 이야 들
다 이다 였다 이었다 입니다 였습니다 이었습니다 인 이고
"""
_PARTICLES = frozenset(unicodedata.normalize(form, particle) for form in ("NFC", "NFD") for particle in _KOREAN.split())
_FLAGS = regex.IGNORECASE | regex.WORD | regex.VERSION1


class _Borders(NamedTuple):
    """Patterns of a place where a word can begin, and of one where it can end."""

    begin: regex.Pattern[str]
    end: regex.Pattern[str]


def _borders(joined: str) -> _Borders:
    # Compiled once: with these classes in it, the pattern of each word would take milliseconds.
    begin = rf"(?<!{joined})|{_BETWEEN}"
    end = rf"(?!{joined})|{_BETWEEN}|(?=\L<particles>{{1,3}}(?!{joined}))"
    return _Borders(regex.compile(begin, _FLAGS), regex.compile(end, _FLAGS, particles=_PARTICLES))


_HYPHEN_JOINS = {True: _borders(rf"[{_JOINED}\-]"), False: _borders(f"[{_JOINED}]")}


def whole_words(word: str, text: str, start: int = 0, hyphen_joins: bool = True) -> Iterator[Span]:
    """Where `word` is a whole word of a text, in any case and in composed or decomposed form.

    Args:
        start: the first character to look at.
        hyphen_joins: whether a hyphen continues a word, so that `self` is not a word of `self-made`.
    """
    begin, end = _HYPHEN_JOINS[hyphen_joins]
    for match in anywhere(word).finditer(text, start, overlapped=True):
        if begin.match(text, match.start()) and end.match(text, match.end()):
            yield match.span()


def whole_word(word: str, text: str, start: int = 0, hyphen_joins: bool = True) -> Span | None:
    """The first of `whole_words`, or None."""
    return next(whole_words(word, text, start, hyphen_joins), None)


def is_border(text: str, place: int) -> bool:
    """Whether no word goes on across this place of a text."""
    begin, end = _HYPHEN_JOINS[False]
    return begin.match(text, place) is not None or end.match(text, place) is not None


@functools.lru_cache(maxsize=4096)
def anywhere(word: str) -> regex.Pattern[str]:
    """Pattern of `word`, also inside a longer one, in any case and in composed or decomposed form."""
    return regex.compile("".join(map(_letter, composed(word))), _FLAGS)


def composed(text: str) -> str:
    """The text in Unicode's form C, in which an accented letter is one character."""
    return unicodedata.normalize("NFC", text)


def same_word(one: str, other: str) -> bool:
    """Whether two words differ in nothing but case and Unicode form."""
    return anywhere(other).fullmatch(one) is not None


def _letter(letter: str) -> str:
    if letter in _DOTTED:
        return _DOTTED[letter]
    apart = unicodedata.normalize("NFD", letter)
    return regex.escape(letter) if apart == letter else f"(?:{regex.escape(letter)}|{regex.escape(apart)})"
