"""The loop of `debias generate`: ask and judge until there are enough triplets, or money or patience runs out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from debias.generation import parser
from debias.generation.acceptance import Acceptance, Rejection
from debias.generation.exchange import FILTERED, THINKING, Answer, Outcome, Request, Spent
from debias.generation.prompts import prompt_sha256
from debias.generation.strategies import Strategy, Task, Wave
from debias.records import Triplet

ATTEMPTS = 3  # at a request that stays unanswered, each with the client's own retries


class Partner(Protocol):
    """The part of `debias.generation.client.Chat` that the loop uses."""

    async def ask(self, requests: Sequence[Request], on_answer: Callable[[Answer], None]) -> Outcome:
        """Answers in the order of the requests, and why it stopped early."""

    def known(self, requests: Sequence[Request]) -> list[Answer | None]:
        """Answers that were paid for, in the order of the requests."""

    def give_up(self, requests: Sequence[Request]) -> None:
        """Never ask these again: later requests treat them as unanswered."""

    @property
    def spent(self) -> Spent:
        """What was paid so far."""


class Watcher(Protocol):
    """Shows the progress."""

    def arrived(self, harvest: Harvest, spent: Spent) -> None:
        """An answer arrived or was judged."""

    def paused(self, harvest: Harvest, spent: Spent) -> None:
        """All answers so far have been judged; the loop now asks for more, or ends."""


class Kept(NamedTuple):
    """An accepted triplet and its origin."""

    triplet: Triplet
    answer: Answer
    prompt_sha256: str


class Rejected(NamedTuple):
    """A rejected triplet as the model wrote it, the reason, and its origin."""

    item: dict[str, Any]
    reason: Rejection
    answer: Answer


@dataclass
class Harvest:
    """The result so far."""

    kept: list[Kept] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)  # histogram of each round of loss_guided
    calls: int = 0  # judged answers, from the ledger or new, for terms and for triplets
    bought: int = 0  # answers paid in this run
    poor: Counter[str] = field(default_factory=Counter)  # answers without any triplet, by kind
    barren: int = 0  # consecutive calls without an accepted triplet
    filtered: int = 0  # requests that a content filter refused
    filtered_in_a_row: int = 0
    thinking: int = 0  # answers that are nothing but reasoning
    cut_off: int = 0  # answers that a token limit ended, whether or not they hold triplets
    stopped: str = ""  # n, budget, patience, filtered, failed or batch; empty while the loop runs
    reason: str = ""


class Loop:
    """Asks a strategy's waves of requests and judges the answers in the order of the requests.

    Args:
        partner: the chat client.
        acceptance: decides what is accepted.
        task: what is wanted.
        source: value of the triplets' `source`.
        watcher: shows the progress.
    """

    def __init__(self, partner: Partner, acceptance: Acceptance, task: Task, source: str, watcher: Watcher) -> None:
        self.partner, self.acceptance, self.task, self.source, self.watcher = partner, acceptance, task, source, watcher
        self.harvest = Harvest()

    async def run(self, strategy: Strategy) -> Harvest:
        """Run to the end. After an exception, `self.harvest` holds the result so far."""
        waves = strategy.waves(self.task)
        wave = next(waves)
        while True:
            if wave.losses is not None:
                self.harvest.losses.append(wave.losses)
            texts = await self._wave(wave)
            if self.harvest.stopped:
                return self.harvest
            wave = waves.send(texts)

    async def _wave(self, wave: Wave) -> list[str]:
        """Texts of a wave's answers. The wave is asked in parts, and only as far as it seems to be needed."""
        texts: list[str] = []
        failures: Counter[int] = Counter()  # by number of a request: how often it stayed unanswered
        while len(texts) < len(wave.requests) and not self.harvest.stopped:
            part = wave.requests[len(texts) : len(texts) + self._needed(wave)]
            failure: BaseException | None = None
            try:
                outcome = await self.partner.ask(part, self._arrived)
            except BaseException as error:  # what was paid for is judged before the run ends
                failure, outcome = error, Outcome(self.partner.known(part), "interrupted", str(error))
            if not outcome.stopped:
                failures.update(i for i, answer in enumerate(outcome.answers, start=len(texts)) if answer is None)
            # Answers are judged in the order of the requests, not of arrival, and a request is either answered or given
            # up before a later one is judged. So replaying the ledger accepts the same triplets and makes the same
            # requests, which are then found in the ledger: a repeated command pays for nothing twice.
            for request, answer in zip(part, outcome.answers, strict=True):
                if answer is None and not outcome.stopped:
                    if failures[len(texts)] < ATTEMPTS:
                        break  # ask again, unless what was judged before it is enough
                    self.partner.give_up([request])
                texts.append(answer.text if answer else "")
                if answer is not None or not outcome.stopped:  # otherwise it was not asked
                    self._take_in(request, answer, wave.holds)
                if self.harvest.stopped:
                    break
            if outcome.stopped and not self.harvest.stopped:
                self.harvest.stopped, self.harvest.reason = outcome.stopped, outcome.reason
            self.watcher.paused(self.harvest, self.partner.spent)
            if failure is not None:
                raise failure
        return texts

    def _needed(self, wave: Wave) -> int:
        """Number of calls to make next: what is missing at the yield so far, but no more than patience allows."""
        if wave.holds != "triplets":
            return len(wave.requests)
        wanted, harvest = self.task.wanted, self.harvest
        bearable = min(wanted.patience - harvest.barren, wanted.max_filtered - harvest.filtered_in_a_row)
        return max(1, min(self.to_come(), bearable))

    def to_come(self) -> int:
        """Number of calls that should bring what is missing, at the yield so far."""
        wanted, harvest = self.task.wanted, self.harvest
        expected = wanted.per_call * wanted.expected_yield
        seen = 4  # the expectation counts as much as this many calls
        each = (expected * seen + len(harvest.kept)) / (seen + harvest.calls)
        return math.ceil((wanted.n - len(harvest.kept)) / each)

    def _arrived(self, answer: Answer) -> None:
        self.harvest.bought += not answer.cached
        self.watcher.arrived(self.harvest, self.partner.spent)

    def _take_in(self, request: Request, answer: Answer | None, holds: str) -> None:
        """Judge the triplets of an answer, until there are enough."""
        harvest, wanted = self.harvest, self.task.wanted
        before = len(harvest.kept)
        harvest.calls += 1
        items = parser.triplets(answer.text) if answer and holds == "triplets" else []
        if not items and holds == "triplets":
            harvest.poor[_kind(answer)] += 1
        checksum = prompt_sha256(request.messages)
        for item in items:
            assert answer is not None
            found = self.acceptance.judge(item, self.task.label, self.source)
            if isinstance(found, Rejection):
                harvest.rejected.append(Rejected(item, found, answer))
            else:
                harvest.kept.append(Kept(found, answer, checksum))
            if len(harvest.kept) == wanted.n:
                harvest.stopped = "n"
                break
        fruitful = len(harvest.kept) > before or (holds == "terms" and answer is not None and parser.terms(answer.text))
        harvest.barren = 0 if fruitful else harvest.barren + 1
        filtered = answer is not None and answer.finish_reason == FILTERED
        harvest.thinking += answer is not None and answer.finish_reason == THINKING
        harvest.cut_off += answer is not None and answer.finish_reason == "length"
        harvest.filtered += filtered
        harvest.filtered_in_a_row = harvest.filtered_in_a_row + 1 if filtered else 0
        if harvest.filtered_in_a_row >= wanted.max_filtered:
            harvest.stopped = "filtered"
            harvest.reason = (
                f"{harvest.filtered_in_a_row} requests in a row, {harvest.filtered} of {harvest.calls} in all"
            )
        elif harvest.barren >= wanted.patience and not harvest.stopped:
            harvest.stopped = "patience"
            harvest.reason = f"{harvest.barren} calls in a row brought nothing that was accepted"
        self.watcher.arrived(harvest, self.partner.spent)


def _kind(answer: Answer | None) -> str:
    """Why an answer holds no triplet."""
    if answer is None:
        return "no answer"
    kinds = {
        "length": "cut off at a token limit",
        "incomplete": "broken off",
        "stop": "no triplet in it",
        "refusal": "refused by the model",
        "content_filter": "ended by a content filter",
        FILTERED: "refused by a content filter",
        THINKING: "nothing but reasoning",
    }
    return kinds.get(answer.finish_reason, answer.finish_reason)
