"""Neutral text: sentences on which a model is held to its base, and which are never a target of the loss."""

from __future__ import annotations

import json
from typing import Any

from debias import assets
from debias.records import Span


def neutral_spans(tokenizer: Any, start_token: int | None, longest: int = 32) -> list[Span]:
    """Wikipedia sentences about professions (BOLD, Dhamala et al. 2021), at most `longest` tokens, nothing scored."""
    articles = json.loads(assets.locate("bold-professions").read_text(encoding="utf-8"))
    sentences = [sentence for people in articles.values() for texts in people.values() for sentence in texts]
    front = () if start_token is None else (start_token,)
    ids = tokenizer(sentences, add_special_tokens=False).input_ids
    return [Span((*front, *i[:longest]), len(front) + len(i[:longest])) for i in ids if len(i) > 1]
