"""Finds triplets and terms in a model's answer: JSON of any shape, anywhere in the text, even cut off. Never raises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

FIELDS = ("sentence", "target", "attribute")
SHORT = {"s": "sentence", "t": "target", "a": "attribute"}

_DECODER = json.JSONDecoder(strict=False)  # accepts a bare line break inside a string
_OPENING = re.compile(r"[\[{]")
# Typographic or single quotes in the place of JSON's: after an opening or a comma, before a closing or a comma.
_QUOTE_BEFORE = re.compile(r"(?<=[\[{,:])(\s*)[“”„«‘’'](?=\S)")
_QUOTE_AFTER = re.compile(r"(?<=\S)[“”»‘’'](?=\s*[\]},:])")
_TRAILING_COMMA = re.compile(r",(?=\s*[\]}])")
_UNQUOTED = re.compile(r"\[([^\[\]{}\"\n]+),\s*([^,\[\]{}\"\n]+),\s*([^,\[\]{}\"\n]+)\]")  # [A sentence., target, word]
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.+?)\s*$", re.MULTILINE)

Item = dict[str, Any]


def triplets(text: str) -> list[Item]:
    """Every complete item that has the shape of a triplet, in the order of the text.

    Items have some of the keys sentence, target, attribute and bias. Their content is not checked here.
    """
    return [item for value in _values(text) for item in _triplets_in(value)]


def terms(text: str) -> dict[str, list[str]]:
    """Terms in the order of the text and without repeats, each with its stereotypes (may be empty)."""
    found: dict[str, tuple[str, list[str]]] = {}
    values = list(_values(text)) or _BULLET.findall(text)
    for value in values:
        for name, stereotypes in _terms_in(value):
            if name and name.lower() not in found:
                found[name.lower()] = (name, stereotypes)
    return dict(found.values())


def objects(text: str) -> list[Item]:
    """Every complete JSON object in the text, at any depth."""
    return [item for value in _values(text) for item in _objects_in(value)]


# ---------------------------------------------------------------- JSON anywhere in a text


def _values(text: str) -> Iterator[Any]:
    """JSON objects and lists in a text; the text between them is searched again after fixing quotes and commas."""
    text = without_halves(text)
    done = 0
    for start, stop, value in _decoded(text):
        yield from _repaired(text[done:start])
        yield value
        done = stop
    yield from _repaired(text[done:])


def _decoded(text: str) -> Iterator[tuple[int, int, Any]]:
    """Start, stop and value of the outermost complete JSON values."""
    place = 0
    while match := _OPENING.search(text, place):
        try:
            value, place = _DECODER.raw_decode(text, match.start())
            yield match.start(), place, value
        except ValueError:
            place = match.start() + 1  # a value inside it may be complete
        except RecursionError:
            place = match.start() + 500  # hundreds of opening brackets are not an answer


def _repaired(text: str) -> Iterator[Any]:
    if not _OPENING.search(text):
        return
    quoted = _QUOTE_AFTER.sub('"', _QUOTE_BEFORE.sub(r'\1"', text))
    values = [value for _, _, value in _decoded(_TRAILING_COMMA.sub("", quoted))]
    yield from values or [[part.strip() for part in match.groups()] for match in _UNQUOTED.finditer(text)]


# ---------------------------------------------------------------- shapes


def _triplets_in(value: Any) -> Iterator[Item]:
    """Triplets at any depth of a decoded value: objects with one of the keys, and lists of three or four strings."""
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


def _objects_in(value: Any) -> Iterator[Item]:
    if isinstance(value, dict):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield from (item for part in parts for item in _objects_in(part))


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
    return " ".join(without_halves(value).split()) if isinstance(value, str) else value


def without_halves(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which cannot be written to a file."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
