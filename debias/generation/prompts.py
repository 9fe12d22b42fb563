"""Prompt templates and JSON schemas. A template is filled once: data in it is never read as a template."""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from debias.generation.exchange import Message
from debias.records import UserError

Item = TypeVar("Item")
ONE_WORD = "^[A-Za-zÀ-ÿ-]{3,30}$"  # not a negated class: some servers let that match the closing quote
LONGEST_SENTENCE, LONGEST_WORD = 240, 40  # characters; without limits a weak model writes until its tokens run out


class Prompt:
    """A template with `$names` in it; `$$` is a dollar sign. Raises UserError for an unknown name."""

    def __init__(self, where: str, text: str, names: Collection[str]) -> None:
        self.template = string.Template(text)
        unknown = sorted(set(self.template.get_identifiers()) - set(names))
        if not self.template.is_valid() or unknown:
            what = f"${unknown[0]} is unknown" if unknown else "a $ has no name; write $$ for a dollar sign"
            raise UserError(f"{where}: {what}; the names are {', '.join(f'${name}' for name in sorted(names))}")

    def fill(self, **values: object) -> str:
        """The text with names replaced by their values."""
        return self.template.substitute({name: str(value) for name, value in values.items()}).strip()


def listed(items: Sequence[str]) -> str:
    """Items as a list with dashes."""
    return "\n".join(f"- {item}" for item in items)


def as_json(rows: Sequence[Sequence[str]]) -> str:
    """Triplets in the form of the answer, one JSON object per line; a fourth value is the bias."""
    keys = ("sentence", "target", "attribute", "bias")
    return "\n".join(json.dumps(dict(zip(keys, row, strict=False)), ensure_ascii=False) for row in rows)


def quoted(data: Mapping[str, object]) -> str:
    """Text that a model wrote, as one line of JSON for another model to read: it cannot end its own quotation."""
    # A tag or a fence of ours could be closed by the data; without these characters it can imitate neither.
    text = json.dumps(data, ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if c in "<>`\u2028\u2029\x85" else c for c in text)


def triplet_schema(most: int, labelled: bool) -> dict[str, Any]:
    """JSON schema of an answer with triplets, which name their bias if `labelled`."""
    lengths = {"sentence": LONGEST_SENTENCE, "target": LONGEST_WORD, "attribute": LONGEST_WORD}
    schema = _listing("triplets", most, lengths | ({"bias": LONGEST_WORD} if labelled else {}))
    schema["properties"]["triplets"]["items"]["properties"]["attribute"] = {"type": "string", "pattern": ONE_WORD}
    return schema


def term_schema(most: int) -> dict[str, Any]:
    """JSON schema of an answer with terms."""
    schema = _listing("terms", most, {"term": LONGEST_WORD})
    item = schema["properties"]["terms"]["items"]
    said = {"type": "string", "minLength": 1, "maxLength": LONGEST_WORD}
    item["properties"]["stereotypes"] = {"type": "array", "maxItems": 3, "items": said}
    item["required"].append("stereotypes")
    return schema


def _listing(name: str, most: int, lengths: Mapping[str, int]) -> dict[str, Any]:
    texts = {key: {"type": "string", "minLength": 1, "maxLength": length} for key, length in lengths.items()}
    item = {"type": "object", "properties": texts, "required": list(texts), "additionalProperties": False}
    many = {"type": "array", "maxItems": most, "items": item}
    return {"type": "object", "properties": {name: many}, "required": [name], "additionalProperties": False}


def turn(items: Sequence[Item], size: int, call: int, seed: int) -> list[Item]:
    """Items for call number `call`: every item is used once, in random order, before any is used again."""
    rounds: dict[int, list[Item]] = {}
    drawn: list[Item] = []
    for place in range(call * size, (call + 1) * size):
        number, rest = divmod(place, len(items))
        if number not in rounds:
            shuffle = random.Random(f"{seed} {number}")  # noqa: S311 (no secret)
            rounds[number] = shuffle.sample(list(items), len(items))
        if rounds[number][rest] not in drawn:
            drawn.append(rounds[number][rest])
    return drawn


def prompt_sha256(messages: Sequence[Message]) -> str:
    """Checksum of a prompt as sent."""
    return hashlib.sha256(json.dumps(messages, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
