"""Counterfactual swaps: the same sentence about another group, with our own word lists (`debias/data/swaps/`)."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from debias.data.pronouns import Token, feminine_of_his, is_noun, masculine_of_her, tagged
from debias.records import UserError

LISTS = Path(__file__).resolve().parent / "swaps"

_PRONOUNS = {"he": "she", "she": "he", "him": "her", "himself": "herself", "herself": "himself", "hers": "his"}
_BY_SENTENCE = {"her": masculine_of_her, "his": feminine_of_his}
_FEMININE = ("she", "her", "herself", "hers")
# Prefixes after which a word is swapped: ex-wife, but not hatchet-man.
_PREFIXES = frozenset(("ex", "step", "half", "great", "co", "non", "pre", "anti", "pro"))
_VOWEL_SOUND = re.compile(r"(?!eu|uganda|uni|one)(?:[aeiou]|heir|hour|honou?r)", re.IGNORECASE)


class Form(NamedTuple):
    """A word of a list, and what it becomes when moved by 1, 2, ... columns."""

    word: str
    others: tuple[str, ...]
    is_name: bool
    is_noun: bool
    column: int | None  # the group that it belongs to; None: the list does not say


class Swapper:
    """Moves the words of a sentence from one group to another.

    Gender has two groups, race and religion have five: the columns of the word list. All words of a sentence move by
    the same number of columns, so a sentence about one group becomes a sentence about one other group.

    Args:
        bias: gender, race or religion.
    """

    def __init__(self, bias: str) -> None:
        known = sorted(path.stem for path in LISTS.glob("*.txt"))
        if bias not in known:
            raise UserError(f"there are no words to swap for data.bias={bias!r}; choose one of: {', '.join(known)}")
        self.bias = bias
        self._text = (LISTS / f"{bias}.txt").read_text(encoding="utf-8")

    def fingerprint(self) -> str:
        """SHA-256 of the word list."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def swap(self, sentence: str, shift: int | None = None) -> str | None:
        """The counterfactual, or None if the sentence has no word of the list.

        Args:
            shift: number of columns to move by, not a multiple of `groups`; drawn from the sentence's checksum if
                None. A swap by -shift reverses it.
        """
        tokens = cache(lambda: tagged(sentence))  # takes a millisecond, which few sentences need
        if shift is None:
            shift = 1 + hashlib.sha256(sentence.encode()).digest()[0] % (self.groups - 1)
        parts: list[str] = []
        end = 0
        for match, form in self._words(sentence, tokens):
            other = form.others[0 if len(form.others) == 1 else shift % self.groups - 1]
            if match.group().lower() in _BY_SENTENCE and self.bias == "gender":
                other = _BY_SENTENCE[match.group().lower()](tokens(), _index(tokens(), match.start()))
            parts.append(_article(sentence[end : match.start()], match.group(), other))
            parts.append(
                _cased(match.group(), form.word, other, begins=not re.search(r"\w", sentence[: match.start()]))
            )
            end = match.end()
        return "".join([*parts, sentence[end:]]) if parts else None

    def group(self, sentence: str) -> int | None:
        """The column that all words of a sentence belong to; None without such words, or if they belong to several."""
        columns = {form.column for _, form in self._words(sentence, cache(lambda: tagged(sentence)))}
        return columns.pop() if len(columns) == 1 else None

    def _words(self, sentence: str, tokens: Callable[[], list[Token]]) -> Iterator[tuple[re.Match[str], Form]]:
        """The words of the list in a sentence."""
        name_end = -1  # end of the last first name: a name right after it is a surname
        for match in self._pattern.finditer(sentence):
            if not _stands_alone(sentence, match):
                continue
            form = self._form(match, tokens)
            if form is None or (form.is_name and _is_surname(sentence, match.start(), name_end, self._titles)):
                continue
            name_end = match.end() if form.is_name else name_end
            yield match, form

    @cached_property
    def groups(self) -> int:
        """Number of columns of the list."""
        return 1 + max(len(form.others) for forms in self._forms.values() for form in forms)

    @cached_property
    def _forms(self) -> dict[str, list[Form]]:
        """Forms by lower-case word, those with the most capitals first."""
        forms: dict[str, list[Form]] = defaultdict(list)
        for form in read_forms(self._text, self.bias):
            forms[form.word.lower()].append(form)
        for same in forms.values():
            same.sort(key=lambda f: -sum(map(str.isupper, f.word)))
        return forms

    @cached_property
    def _titles(self) -> frozenset[str]:
        return frozenset(word for word, forms in self._forms.items() if not any(f.is_name for f in forms))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._forms, key=lambda word: (-len(word), word))
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?![\w-]| @-@)", re.IGNORECASE)

    def _form(self, match: re.Match[str], tokens: Callable[[], list[Token]]) -> Form | None:
        """The form that fits the capitals and the part of speech of the matched text."""
        found = match.group()
        fitting = [f for f in self._forms[found.lower()] if _capitals_fit(f.word, found)]
        if len({f.is_noun for f in fitting}) > 1:
            noun = is_noun(tokens(), _index(tokens(), match.start()), len(found.split()))
            fitting = [f for f in fitting if f.is_noun == noun]
        return fitting[0] if fitting else None


def read_forms(text: str, bias: str) -> Iterator[Form]:
    """The forms of a word list; the comments at the top of each list explain its format."""
    if bias == "gender":
        pronouns = _PRONOUNS | dict.fromkeys(_BY_SENTENCE, "")
        yield from (Form(word, (other,), False, False, int(word in _FEMININE)) for word, other in pronouns.items())
    macros: dict[str, list[str]] = {}
    names = False
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line == "[names]":
            names = True
        elif line.startswith("<") and "," in line:
            macro, _, words = line.partition(" = ")
            macros[macro] = words.split(", ")
        elif " > " in line:
            word, *others = line.split(" > ")
            yield Form(word, tuple(others), names, False, None)
        else:
            macro = next((m for m in macros if m in line), "")
            for person in macros.get(macro, [""]):
                yield from _row(line.replace(macro, person) if macro else line, names)


def _row(line: str, names: bool) -> Iterator[Form]:
    words = line.split(" = ")
    plain = [word.removesuffix("/noun") for word in words]
    for i, word in enumerate(words):
        yield Form(plain[i], tuple(plain[i + 1 :] + plain[:i]), names, word.endswith("/noun"), i)


def _index(tokens: list[Token], start: int) -> int:
    """Index of the token that begins at a character or contains it (`ex-wife`)."""
    return max(i for i, token in enumerate(tokens) if token.start <= start)


def _stands_alone(sentence: str, match: re.Match[str]) -> bool:
    before = re.search(r"(\w+)(?:-| @-@ )$", sentence[: match.start()])
    return before is None or before[1].lower() in _PREFIXES


def _capitals_fit(word: str, found: str) -> bool:
    return all(b.isupper() for a, b in zip(word, found, strict=True) if a.isupper())


def _is_surname(sentence: str, start: int, name_end: int, titles: frozenset[str]) -> bool:
    """Whether a name follows a capitalised word other than a title: Henry James, Port Elizabeth, Gary O. Thomas."""
    before = re.search(r"([^\W\d_][\w'’]*\.?) $", sentence[:start])
    if before is None or not before[1][0].isupper() or before[1].rstrip(".").lower() in titles:
        return False
    first_word = not re.search(r"\w", sentence[: before.start()])
    return name_end == start - 1 or not first_word


def _cased(found: str, word: str, other: str, begins: bool) -> str:
    """`other` with the capitals of `found`: HER -> HIS, Her -> His, her -> his."""
    letters = [c for c in found if c.isalpha()]
    if len(letters) > 1 and all(map(str.isupper, letters)) and not word.isupper():
        return other.upper()
    if found[0].isupper() and (word[0].islower() or begins):
        return other[0].upper() + other[1:]
    return other


def _article(before: str, old: str, new: str) -> str:
    """The text before a swapped word, with `a` or `an` changed to fit the new word."""
    found = re.search(r"\b(an?)( +)$", before, re.IGNORECASE)
    if found is None or bool(_VOWEL_SOUND.match(old)) == bool(_VOWEL_SOUND.match(new)):
        return before
    article = found[1][0] + ("n" if _VOWEL_SOUND.match(new) else "")
    return f"{before[: found.start()]}{article}{found[2]}"
