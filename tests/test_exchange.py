"""What is sent to a chat model, and which settings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import question, settings

from debias.generation.exchange import Request, body_of, bound_of, question_of
from debias.records import UserError


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "out.ledger.jsonl"


def test_body_holds_what_the_settings_say() -> None:
    llm = settings(
        "http://x", system_prompt="Be brief.", top_p=0.9, seed=5, extra_body={"min_p": 0.1},
        max_tokens_name="max_completion_tokens", schema_drops=["maxLength"],
    )  # fmt: skip
    schema = {"type": "object", "properties": {"maxLength": {"type": "string", "maxLength": 9}}}
    body = body_of(Request(question("hello").messages, schema, 70, sample=2), llm)
    assert body == {
        "model": "mock",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "temperature": 1.0,
        "top_p": 0.9,
        "seed": 7,  # 5 + sample 2
        "max_completion_tokens": 70,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": {"type": "object", "properties": {"maxLength": {"type": "string"}}},
            },
        },
        "min_p": 0.1,
    }


@pytest.mark.parametrize(("structured", "sent"), [("json_object", {"type": "json_object"}), ("text", None)])
def test_servers_without_schemas(structured: str, sent: object) -> None:
    assert body_of(question("x"), settings("http://x", structured=structured)).get("response_format") == sent


def test_key_is_content_and_sample_but_not_the_address() -> None:
    here, there = settings("http://a:1/v1", seed=None), settings("http://user:pw@b/v1", seed=None)
    assert question_of(question("x"), here).key == question_of(question("x"), there).key
    assert len({question_of(question("x", sample), here).key for sample in range(3)}) == 3
    assert question_of(question("x"), settings("http://a", temperature=0.5)).key != question_of(question("x"), here).key


def test_bound_is_a_token_per_byte_and_the_limit() -> None:
    llm = settings("http://x", batch=True)  # half of 2 and 10 dollars
    body = body_of(question("é" * 100), llm)
    bound = bound_of(body, llm)
    assert bound.prompt_tokens == len(json.dumps(body, ensure_ascii=False).encode()) > 200
    assert bound.worst == pytest.approx((bound.prompt_tokens * 1 + 100 * 5) / 1e6)


def test_prices_are_those_of_the_model_or_unknown() -> None:
    """The list is by model; a price of one's own goes before it."""
    unknown = {"price_prompt": None, "price_completion": None, "priced_on": None}
    listed = {"mock": {"prompt": 1, "completion": 4, "date": "2026-02-03"}}
    known = settings("http://x", prices=listed, **unknown)
    assert (known.price_prompt, known.price_completion, known.priced_on) == (1.0, 4.0, "2026-02-03")
    assert not settings("http://x", prices=listed, model="mock-2", **unknown).priced
    assert settings("http://x", prices=listed).price_prompt == 2.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"prices": {"mock": {"prompt": 1}}, "price_prompt": None, "price_completion": None},
            "llm.prices.mock.completion must be set",
        ),
        ({"structured": "xml"}, "llm.structured='xml'"),
        ({"concurrency": 0}, "llm.concurrency=0"),
        ({"max_cost_usd": 1.0, "price_prompt": None}, "the price of mock is unknown"),
        ({"extra_body": {"stream": True}}, "llm.extra_body.stream"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings("http://x", **changes)
