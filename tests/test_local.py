"""The server of our own: a real language model behind the real protocol, from packages alone."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from chat_server import ask, settings

from debias.generation.client import Chat
from debias.generation.exchange import Message, Request
from debias.generation.ledger import Ledger
from debias.generation.local import LlamaServer
from debias.records import UserError

SCHEMA = {
    "type": "object",
    "properties": {
        "words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 2}
    },
    "required": ["words"],
    "additionalProperties": False,
}


def server(model: str = "smollm2") -> LlamaServer:
    return LlamaServer(model, threads=1, context=1024, parallel=1)


@pytest.mark.assets
def test_a_real_model_answers_within_the_schema_and_the_port_closes(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    request = Request((Message("user", "Name two trades."),), SCHEMA, 60)
    with server() as base_url:
        llm = settings(base_url, timeout=60, concurrency=1)
        outcome, _, spent = ask(llm, tmp_path / "ledger", [request])
    answer = outcome.answers[0]
    assert answer is not None
    assert len(json.loads(answer.text)["words"]) == 2
    assert 0 < spent.completion_tokens <= 60
    assert spent.prompt_tokens < len(json.dumps(SCHEMA)) + 500  # as the bound has it: a token per byte at most
    assert spent.bounded == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(base_url, timeout=2)


@pytest.mark.assets
def test_chat_asks_it_while_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")

    async def run() -> tuple[str, str]:
        llm = settings(None, timeout=60, structured="text")
        with server() as address, Ledger(tmp_path / "ledger") as ledger:
            async with Chat(llm, ledger, address) as chat:
                outcome = await chat.ask([Request((Message("user", "Say yes."),), None, 8)], lambda _: None)
                assert outcome.answers[0] is not None
                return outcome.answers[0].text, address

    text, address = asyncio.run(run())
    assert text
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=2)


def test_without_the_package_the_install_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UserError, match=r"pip install xllamacpp==2026\.10\.11549"), server():
        pass


def test_a_model_that_is_not_a_file() -> None:
    pytest.importorskip("xllamacpp")
    with pytest.raises(UserError, match=r"llm\.server\.model=nowhere\.gguf is not a file"), server("nowhere.gguf"):
        pass


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "x.gguf").write_text("no model")
    with pytest.raises(UserError, match="cannot serve"), server(str(tmp_path / "x.gguf")):
        pass
