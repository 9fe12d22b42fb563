"""A model's answer -> what it holds: JSON wherever it stands, of any shape, cut off or not. Nothing here raises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

FIELDS = ("sentence", "target", "attribute")
SHORT = {"s": "sentence", "t": "target", "a": "attribute"}

_DECODER = json.JSONDecoder(strict=False)  # a bare line break inside a text is no reason to lose it
_OPENING = re.compile(r"[\[{]")
# Typographic or single quotes where JSON wants its own: after an opening or a comma, before a closing or a comma.
_QUOTE_BEFORE = re.compile(r"(?<=[\[{,:])(\s*)[“”„«‘’'](?=\S)")
_QUOTE_AFTER = re.compile(r"(?<=\S)[“”»‘’'](?=\s*[\]},:])")
_TRAILING_COMMA = re.compile(r",(?=\s*[\]}])")
_UNQUOTED = re.compile(r"\[([^\[\]{}\"\n]+),\s*([^,\[\]{}\"\n]+),\s*([^,\[\]{}\"\n]+)\]")  # [A sentence., target, word]
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.+?)\s*$", re.MULTILINE)

Item = dict[str, Any]


def triplets(text: str) -> list[Item]:
    """Everything in the text that has the shape of a triplet, in its order; of a cut-off answer, what is complete.

    Items have some of the keys sentence, target, attribute and bias; whether they are any good is not asked here.
    """
    return [item for value in _values(text) for item in _triplets_in(value)]


def terms(text: str) -> dict[str, list[str]]:
    """Terms that the text lists, each with what is said about it (may be empty), in its order and without repeats."""
    found: dict[str, tuple[str, list[str]]] = {}
    values = list(_values(text)) or _BULLET.findall(text)
    for value in values:
        for name, stereotypes in _terms_in(value):
            if name and name.lower() not in found:
                found[name.lower()] = (name, stereotypes)
    return dict(found.values())


# ---------------------------------------------------------------- JSON, wherever it stands


def _values(text: str) -> Iterator[Any]:
    """JSON objects and lists in a text; between them, what becomes one with its quotes and commas mended."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair could not be written to a file
    done = 0
    for start, stop, value in _decoded(text):
        yield from _mended(text[done:start])
        yield value
        done = stop
    yield from _mended(text[done:])


def _decoded(text: str) -> Iterator[tuple[int, int, Any]]:
    """Start, stop and value of the outermost JSON values that are complete."""
    place = 0
    while match := _OPENING.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, match.start())
            yield match.start(), place, value
        except ValueError:
            place = match.start() + 1  # perhaps something inside is complete
        except RecursionError:
            place = match.start() + 500  # hundreds of opening brackets: nothing in them is an answer


def _mended(text: str) -> Iterator[Any]:
    if not _OPENING.search(text):
        return
    mended = _QUOTE_AFTER.sub('"', _QUOTE_BEFORE.sub(r'\1"', text))
    values = [value for _, _, value in _decoded(_TRAILING_COMMA.sub("", mended))]
    yield from values or [[part.strip() for part in match.groups()] for match in _UNQUOTED.finditer(text)]


# ---------------------------------------------------------------- shapes


def _triplets_in(value: Any) -> Iterator[Item]:
    """Triplets in a decoded value: objects with one of the keys, lists of three or four texts, and what holds them."""
    if isinstance(value, list):
        if len(value) in (3, 4) and all(isinstance(part, str) for part in value):
            yield dict(zip((*FIELDS, "bias"), map(_clean, value), strict=False))
        else:
            yield from (item for part in value for item in _triplets_in(part))
    elif isinstance(value, dict):
        item = {SHORT.get(key.lower(), key.lower()): part for key, part in value.items()}
        if any(field in item for field in FIELDS):
            yield {key: _clean(item[key]) for key in (*FIELDS, "bias") if key in item}
        else:
            yield from (inner for part in value.values() for inner in _triplets_in(part))


def _terms_in(value: Any) -> Iterator[tuple[str, list[str]]]:
    if isinstance(value, str):
        yield _clean(value), []
    elif isinstance(value, list):
        yield from (term for part in value for term in _terms_in(part))
    elif isinstance(value, dict) and isinstance(value.get("term"), str):
        said = value.get("stereotypes")
        yield _clean(value["term"]), [_clean(s) for s in said if isinstance(s, str)] if isinstance(said, list) else []
    elif isinstance(value, dict):
        yield from (term for part in value.values() for term in _terms_in(part))


def _clean(value: Any) -> Any:
    """A text on one line."""
    return " ".join(value.encode("utf-8", "replace").decode("utf-8").split()) if isinstance(value, str) else value
