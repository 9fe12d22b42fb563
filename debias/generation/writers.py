"""The chat models that write a set, with their shares of the requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from debias.generation.exchange import LLM, Answer, ChatModel, Outcome, Partner, Request, Spent


def writers_of(settings: Mapping[str, Any]) -> tuple[ChatModel, ...]:
    """The models of the config's section `llm`: the first, and its `others`; all keep within the first one's budget.

    Raises UserError for a setting that is wrong.
    """
    first = ChatModel.of({**settings, "others": {}}, "llm")
    others = [ChatModel.of(other, f"llm.others.{name}") for name, other in settings.get("others", {}).items()]
    return (first, *(other.beside(first) for other in others))


class Turns:
    """Whose turn it is: a sequence of writers in which each has its share, as closely as whole calls allow.

    It depends on the shares alone, so that a replayed ledger finds each request with the model that answered it.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares, self._order = list(shares), list[int]()

    def __getitem__(self, call: int) -> int:
        while len(self._order) <= call:
            calls = len(self._order) + 1
            lacking = [calls * s / sum(self.shares) - self._order.count(i) for i, s in enumerate(self.shares)]
            self._order.append(max(range(len(lacking)), key=lambda i: (round(lacking[i], 9), -i)))
        return self._order[call]


class Writers:
    """A chat client made of one for each writer. A request goes to the writer whose turn its number is.

    Args:
        llms: the writers' settings.
        partners: their chat clients.
    """

    def __init__(self, llms: Sequence[LLM], partners: Sequence[Partner]) -> None:
        self.llms, self.partners = list(llms), list(partners)
        self.turns = Turns([llm.share for llm in llms])

    def writer(self, request: Request) -> int:
        """The number of the writer that a request goes to."""
        return self.turns[request.sample]

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Ask one writer after the other; the first that stops early ends it."""
        answers = self.known(requests)
        stopped, reason = "", ""
        for number, partner in enumerate(self.partners):
            places = [i for i, request in enumerate(requests) if self.writer(request) == number]
            if not places or stopped:
                continue
            outcome = await partner.ask([self._sized(requests[i]) for i in places], on_answer)
            for i, answer in zip(places, outcome.answers, strict=True):
                answers[i] = answer
            stopped, reason = outcome.stopped, outcome.reason
        return Outcome(answers, stopped, reason)

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        return [self.partners[self.writer(r)].known([self._sized(r)])[0] for r in requests]

    def give_up(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.partners[self.writer(request)].give_up([self._sized(request)])

    @property
    def spent(self) -> Spent:
        return self.partners[0].spent  # of the ledger that all of them share

    def _sized(self, request: Request) -> Request:
        """The request with the writer's own limit of tokens."""
        return request._replace(max_tokens=self.llms[self.writer(request)].max_tokens)
