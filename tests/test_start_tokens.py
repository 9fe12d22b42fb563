"""Which token stands before a text: never two of them, and the user is told where the model was trained otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_base import tokenizer
from tokenizers import processors

from debias.benchmarks.glue import _encoded
from debias.records import Candidate, Cloze, Tokens, Triplet
from debias.scoring.encoding import encode
from debias.scoring.protocols import BiasBench, Conditional, Continuation, NoStart, start_of
from debias.scoring.spans import start_id

GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
TEXTS = ["<bos>ab", "<bos><bos>ab", "ab", "<bos>"]


def of_gemma() -> Tokens:
    """A tokenizer that begins every text with BOS by itself."""
    made: Any = tokenizer(**GEMMA)
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.bos_token_id)]
    )
    return Tokens(made, "causal")


@pytest.mark.parametrize("protocol", [BiasBench(), Conditional(), Continuation()], ids=lambda p: p.name)
def test_no_span_holds_two_start_tokens(protocol: Any) -> None:
    """Whether the text brings one, two or none, the same tokens are scored after the same start token."""
    tokens = of_gemma()
    candidates = [Candidate(str(i), "x", "", "", t, Cloze(t[:-1], t[-1:], "")) for i, t in enumerate(TEXTS)]
    spans = protocol.reading(tokens).spans(candidates, tokens.tokenizer)
    start = start_id(tokens.tokenizer)
    assert all(span.ids.count(start) <= 1 for several in spans[:3] for span in several)
    assert spans[0] == spans[1] == spans[2]
    assert spans[0][0].ids[0] == start


def test_a_start_token_alone_is_not_a_text() -> None:
    tokens = of_gemma()
    for protocol in (BiasBench(), Conditional()):
        assert protocol.reading(tokens).spans([Candidate("", "", "", "", "<bos>")], tokens.tokenizer) == [[]]


def test_training_texts_hold_one_start_token() -> None:
    """The attribute stays marked where the text brings the start token itself."""
    tokens = of_gemma()
    plain, begun = (
        encode([Triplet(text, "a", "b", "", "", text.index("b", 5 * (len(text) > 2)), len(text))], tokens)[0]
        for text in ("ab", "<bos>ab")
    )
    assert plain == begun
    assert plain.ids[plain.start : plain.stop] == tuple(tokens.tokenizer("b", add_special_tokens=False).input_ids)
    assert _encoded(["ab"], tokens) == _encoded(["<bos>ab"], tokens)


@pytest.mark.parametrize(
    ("tokens", "protocol", "token", "note"),
    [
        (of_gemma, BiasBench(), "<bos>, before the first token alone", "set protocol=conditional"),
        (of_gemma, NoStart(), "none", "set protocol=conditional"),
        (of_gemma, Conditional(), "<bos>", None),
        (lambda: Tokens(tokenizer(**GEMMA), "causal"), BiasBench(), "<bos>, before the first token alone", None),
        (lambda: Tokens(tokenizer(eos_token="<|im_end|>"), "causal"), Conditional(), "<|im_end|>",
         "the tokenizer has no BOS token: <|im_end|> stands in its place"),
    ],
    ids=["Gemma", "Gemma, no start", "Gemma, conditional", "GPT-2", "Qwen"],
)  # fmt: skip
def test_the_start_token_is_told(tokens: Callable[[], Tokens], protocol: Any, token: str, note: str | None) -> None:
    made = tokens()
    start = start_of(protocol, protocol.reading(made), made)
    assert start is not None
    assert start.token == token
    assert start.note is None if note is None else note in str(start.note)


def test_a_masked_model_has_no_start_token() -> None:
    tokens = Tokens(tokenizer(mask_token="[MASK]"), "masked")
    assert start_of(Conditional(), Conditional().reading(tokens), tokens) is None
