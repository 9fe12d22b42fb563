"""One question about each triplet, such as its scores: asked again if the answer cannot be read, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from debias.generation.exchange import Answer, Outcome, Partner, Request
from debias.records import Triplet

Value = TypeVar("Value")
Told = TypeVar("Told", covariant=True)


class Inquiry(Protocol[Told]):
    """What is asked about a triplet, and how its answer is read."""

    attempts: int  # times that a triplet is asked about until an answer can be read

    def request(self, triplet: Triplet, attempt: int) -> Request:
        """The question; the attempts 0, 1, ... at one triplet are different requests."""

    def read(self, triplet: Triplet, answer: Answer) -> Told | None:
        """The content of an answer; None if it cannot be used."""


class Reply(NamedTuple, Generic[Value]):
    """The result for one triplet. If nothing came of all attempts, `value` is None and the reply is `settled`."""

    value: Value | None
    settled: bool  # False: asking stopped before


class Replies(NamedTuple, Generic[Value]):
    """Replies in the order of the triplets; for `stopped` and `reason` see `Outcome`."""

    each: list[Reply[Value]]
    stopped: str
    reason: str


class Asker(Generic[Value]):
    """Asks one chat model about triplets. Each has requests of its own, so a replayed ledger answers all of them.

    Args:
        inquiry: what is asked.
        partner: the chat client.
    """

    def __init__(self, inquiry: Inquiry[Value], partner: Partner) -> None:
        self.inquiry, self.partner = inquiry, partner
        self.used: dict[str, Answer] = {}  # answers by key, readable or not

    @property
    def dollars(self) -> float | None:
        """The price of all answers, in this run or before it; None if it is unknown."""
        prices = [answer.dollars for answer in self.used.values()]
        return None if None in prices else sum(filter(None, prices))

    async def ask(self, triplets: Sequence[Triplet], only_known: bool = False) -> Replies[Value]:
        """Ask about triplets; with `only_known` nothing is sent and the ledger's answers are all there is."""
        values: dict[int, Value] = {}
        waiting = list(range(len(triplets)))
        outcome = Outcome([], "", "")
        unasked: list[int] = []
        for attempt in range(self.inquiry.attempts):
            if not waiting or outcome.stopped:
                break
            requests = [self.inquiry.request(triplets[i], attempt) for i in waiting]
            if only_known:
                outcome = Outcome(self.partner.known(requests), "interrupted", "")
            else:
                outcome = await self.partner.ask(requests, lambda answer: None)
            unread: list[int] = []
            for i, request, answer in zip(waiting, requests, outcome.answers, strict=True):
                if answer is not None:
                    self.used[answer.key] = answer
                    value = self.inquiry.read(triplets[i], answer)
                    if value is None:
                        unread.append(i)
                    else:
                        values[i] = value
                elif outcome.stopped:
                    unasked.append(i)
                else:
                    self.partner.give_up([request])  # the client has tried it often enough
                    unread.append(i)
            waiting = unread
            if outcome.stopped and attempt + 1 < self.inquiry.attempts:
                unasked += unread  # there are attempts left for the next launch
        each = [Reply(values.get(i), i not in unasked) for i in range(len(triplets))]
        return Replies(each, outcome.stopped, outcome.reason)
