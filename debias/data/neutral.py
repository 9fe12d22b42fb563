"""Neutral text: sentences on which a model is held to its base, and which are never a target of the loss."""

from __future__ import annotations

import json

from debias import assets
from debias.records import Masked, Scored, Span, Tokens
from debias.spans import start_id


def neutral_spans(tokens: Tokens, start_token: bool, longest: int = 32) -> list[Scored]:
    """Wikipedia sentences about professions (BOLD, Dhamala et al. 2021), at most `longest` tokens, nothing scored."""
    articles = json.loads(assets.locate("bold-professions").read_text(encoding="utf-8"))
    sentences = [sentence for people in articles.values() for texts in people.values() for sentence in texts]
    if tokens.kind == "masked":
        texts = tokens.tokenizer(sentences, truncation=True, max_length=longest).input_ids
        return [Masked(tuple(ids), (), ()) for ids in texts]
    front = (start_id(tokens.tokenizer),) if start_token else ()
    texts = tokens.tokenizer(sentences, add_special_tokens=False).input_ids
    return [Span((*front, *ids[:longest]), len(front) + len(ids[:longest])) for ids in texts if len(ids) > 1]
