"""The chat client: answers come from the ledger if it has them, otherwise from the server, live or as a batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import httpx2
import openai

from debias.assets import network
from debias.generation.batches import Batches
from debias.generation.complaints import shown
from debias.generation.exchange import LLM, Answer, ChatModel, Outcome, Request, Spent, named, question_of
from debias.generation.ledger import Ledger
from debias.generation.live import Live
from debias.records import UserError


class Chat:
    """A chat model that never pays twice for a request whose answer is in its ledger. Use it with `async with`.

    Args:
        llm: the model and its settings.
        ledger: an open ledger; it receives every raw answer before anything reads it. Several models may share one.
        address: of the server; None means llm.base_url.
        first_delay: seconds before the first retry of a failed call.
    """

    def __init__(self, llm: LLM, ledger: Ledger, address: str | None = None, first_delay: float = 0.5) -> None:
        self.llm, self.ledger, self.first_delay = llm, ledger, first_delay
        self.address, self._secret = _checked_address(address or llm.base_url), _key_of(llm)

    async def __aenter__(self) -> Chat:
        llm, address, secret = self.llm, self.address, self._secret
        for name in ("openai", "httpx2", "httpcore2"):  # below WARNING they log headers, and a server may echo the key
            logging.getLogger(name).setLevel(logging.WARNING)
        timeout = httpx2.Timeout(llm.timeout, connect=min(10.0, llm.timeout))
        # No proxy reaches this machine itself, whatever NO_PROXY says.
        http = openai.DefaultAsyncHttpxClient(trust_env=not network.is_loopback(address), timeout=timeout)
        self._client = openai.AsyncOpenAI(
            api_key=secret or "none",  # without one the client would send OPENAI_API_KEY to any server
            base_url=address,
            max_retries=0,
            timeout=timeout,
            http_client=http,
        )
        self._proven = False  # whether the model has answered a request of this run, now or in an earlier launch
        if llm.batch:
            self._asker: Batches | Live = Batches(self._client, llm, self.ledger, address, secret)
            return self
        if self.ledger.memory.batches_at(shown(address)):
            raise UserError(f"{self.ledger.path} is waiting for a batch; fetch it with llm.batch=true")
        self._asker = Live(self._client, llm, self.ledger, address, secret, self.first_delay)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Answer requests, from the ledger where possible; `on_answer` gets every answer once, in order of arrival.

        Raises:
            UserError: for something the user can fix, such as a wrong key.
            KeyboardInterrupt: on Ctrl-C or SIGTERM, after the calls in flight have been recorded.
        """
        questions = [question_of(request, self.llm) for request in requests]
        answers: dict[str, Answer] = {}

        def collect(answer: Answer) -> None:
            answers[answer.key] = answer
            self._proven = True
            on_answer(answer)

        for question in questions:
            known = self.ledger.memory.answers.get(question.key)
            if known is not None and question.key not in answers:
                collect(known)
        settled = {*answers, *self.ledger.memory.given_up}
        missing = {question.key: question for question in questions if question.key not in settled}
        stopped, reason = await self._asker.ask(missing, collect, self._proven) if missing else ("", "")
        return Outcome([answers.get(question.key) for question in questions], stopped, reason)

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        """Answers that the ledger holds, in the order of the requests."""
        return [self.ledger.memory.answers.get(question_of(request, self.llm).key) for request in requests]

    def give_up(self, requests: Sequence[Request]) -> None:
        """Never ask these requests again, in this run or when the ledger is replayed."""
        # Later requests depend on earlier answers. If one of these were answered in a later run, the requests after it
        # would change, and the answers already paid for would belong to requests that are never made again.
        keys = {question_of(request, self.llm).key: None for request in requests}
        if new := [key for key in keys if key not in self.ledger.memory.given_up]:
            self.ledger.given_up(new)

    @property
    def spent(self) -> Spent:
        """What was paid according to the ledger, in this run and before it."""
        return self.ledger.memory.spent


def check(model: ChatModel) -> None:
    """Raise UserError for what would keep every request from a model: its key, its address, the proxies on the way."""
    with named(model.section):
        _key_of(model.llm)
        if model.server is None:
            _checked_address(model.llm.base_url)


def _key_of(llm: LLM) -> str:
    """The key in the environment; empty if the server wants none."""
    name = llm.api_key_env
    if name is None:
        return ""
    if not (secret := os.environ.get(name, "").strip()):
        raise UserError(f"there is no API key; set {name} in the environment (llm.api_key_env=null sends none)")
    if not secret.isascii():
        raise UserError(f"the key in {name} has characters that no key has; check it")
    return secret


def _checked_address(address: str | None) -> str:
    if address is None or not address.startswith(("http://", "https://")):
        raise UserError(f"llm.base_url={address} must be an address such as http://localhost:8000/v1")
    network.check(address)
    return address
