"""The chat client: what the ledger holds is answered from there, the rest is asked live or as a batch."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import openai

from debias.generation.batches import Batches
from debias.generation.exchange import LLM, Answer, Outcome, Request, Spent, question_of
from debias.generation.ledger import Ledger
from debias.generation.live import Live
from debias.records import UserError

log = logging.getLogger(__name__)


class Chat:
    """A conversation partner with a memory: what its ledger holds is never asked again. Use it with `async with`.

    Args:
        llm: which model, and how it is asked.
        ledger: file that every raw answer goes to before anything reads it.
        server: a context manager that starts a server and yields its address; None: there is one at llm.base_url.
        first_delay: seconds before a failed call is repeated for the first time.
    """

    def __init__(
        self,
        llm: LLM,
        ledger: Path,
        server: contextlib.AbstractContextManager[str] | None = None,
        first_delay: float = 0.5,
    ) -> None:
        self.llm, self.server, self.first_delay = llm, server, first_delay
        self.ledger = Ledger(ledger)

    async def __aenter__(self) -> Chat:
        llm, secret = self.llm, self._key_from_environment()
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(
                logging.WARNING
            )  # below it they quote headers, and a server may echo the key
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.ledger)
            base_url = stack.enter_context(self.server) if self.server is not None else llm.base_url
            if base_url is None or not base_url.startswith(("http://", "https://")):
                raise UserError(f"llm.base_url={base_url} must be an address such as http://localhost:8000/v1")
            self._client = openai.AsyncOpenAI(
                api_key=secret or "none",  # left to itself the client would send OPENAI_API_KEY to any server
                base_url=base_url,
                max_retries=0,
                timeout=httpx2.Timeout(llm.timeout, connect=min(10.0, llm.timeout)),
            )
            self.address = base_url
            if self.ledger.memory.batches and not llm.batch:
                raise UserError(f"{self.ledger.path} waits for a batch: fetch it with llm.batch=true")
            if llm.batch:
                self._asker: Batches | Live = Batches(self._client, llm, self.ledger, base_url, secret)
            else:
                self._asker = Live(self._client, llm, self.ledger, base_url, secret, self.first_delay)
            self._stack = stack.pop_all()
        if self.spent.lost:
            log.warning(
                "%d calls of an earlier run were never answered; they may have been paid (%.4f dollars at most)",
                self.spent.lost,
                self.spent.lost_dollars,
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        with self._stack:
            await self._client.close()

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Ask what the ledger does not hold; `on_answer` sees every answer once, in the order of arrival.

        Raises:
            UserError: something the user can mend, such as a wrong key.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once what was in flight has been recorded.
        """
        questions = [question_of(request, self.llm) for request in requests]
        answers: dict[str, Answer] = {}

        def collect(answer: Answer) -> None:
            answers[answer.key] = answer
            on_answer(answer)

        for question in questions:
            known = self.ledger.memory.answers.get(question.key)
            if known is not None and question.key not in answers:
                collect(known)
        settled = {*answers, *self.ledger.memory.given_up}
        missing = {question.key: question for question in questions if question.key not in settled}
        stopped, reason = await self._asker.ask(missing, collect) if missing else ("", "")
        return Outcome([answers.get(question.key) for question in questions], stopped, reason)

    def give_up(self, requests: Sequence[Request]) -> None:
        """Go on without answers to these, now and whenever the ledger is replayed.

        Later requests depend on earlier answers: if one came after all, those already paid for would be other requests.
        """
        keys = {question_of(request, self.llm).key: None for request in requests}
        if new := [key for key in keys if key not in self.ledger.memory.given_up]:
            self.ledger.given_up(new)

    @property
    def spent(self) -> Spent:
        """What the ledger says was paid, in this run and before."""
        return self.ledger.memory.spent

    def _key_from_environment(self) -> str:
        name = self.llm.api_key_env
        if name is None:
            return ""
        if not (secret := os.environ.get(name, "").strip()):
            raise UserError(f"no API key: set {name} in the environment (llm.api_key_env=null sends none)")
        if not secret.isascii():
            raise UserError(f"the key in {name} is not one: it has letters that no key has")
        return secret
