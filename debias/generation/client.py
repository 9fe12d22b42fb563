"""Asks a chat model: bounded, paid once, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from debias.generation.exchange import LLM, Answer, Estimate, Outcome, Request, Spent


class Chat:
    """A conversation partner with a memory: what its ledger holds is never asked again.

    Args:
        llm: which model, and how it is asked.
        ledger: file that every raw answer goes to before anything reads it.
    """

    def __init__(self, llm: LLM, ledger: Path) -> None:
        self.llm, self.path = llm, ledger

    async def __aenter__(self) -> Chat:
        raise NotImplementedError

    async def __aexit__(self, *error: object) -> None:
        raise NotImplementedError

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Ask what the ledger does not hold; `on_answer` sees every answer once, in the order of arrival.

        Raises:
            UserError: something the user can mend, such as a wrong key.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once what was in flight has been recorded.
        """
        raise NotImplementedError

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What asking would cost at most; sends nothing."""
        raise NotImplementedError

    @property
    def spent(self) -> Spent:
        """What the ledger says was paid."""
        raise NotImplementedError
