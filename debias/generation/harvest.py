"""The loop of `debias generate`: ask and judge until there are enough triplets, or money or patience runs out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from debias.generation import parser
from debias.generation.acceptance import Acceptance, Rejection
from debias.generation.exchange import FILTERED, THINKING, Answer, Outcome, Partner, Request, Spent
from debias.generation.judge import Judging, Scores
from debias.generation.per_triplet import Reply
from debias.generation.prompts import prompt_sha256
from debias.generation.strategies import Strategy, Task, Wave
from debias.records import Triplet
from debias.wording import counted

ATTEMPTS = 3  # at a request that stays unanswered, each with the client's own retries


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
    scores: Scores | None  # the judge's


class Rejected(NamedTuple):
    """A rejected triplet as the model wrote it, the reason, and its origin."""

    item: dict[str, Any]
    reason: Rejection
    answer: Answer
    scores: Scores | None = None  # the judge's, if it got that far


@dataclass
class Harvest:
    """The result so far."""

    kept: list[Kept] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)  # histogram of each round of loss_guided
    calls: int = 0  # judged answers, from the ledger or new, for terms and for triplets
    poor: Counter[str] = field(default_factory=Counter)  # answers without any triplet, by kind
    barren: int = 0  # consecutive calls without an accepted triplet
    filtered: int = 0  # requests that a content filter refused
    filtered_in_a_row: int = 0
    thinking: int = 0  # answers that are nothing but reasoning
    cut_off: int = 0  # answers that a token limit ended, whether or not they hold triplets
    unjudged: int = 0  # triplets that wait for the judge, because asking stopped
    stopped: str = ""  # n, budget, patience, filtered, failed, batch or preview; empty while the loop runs
    reason: str = ""


class Examined(NamedTuple):
    """A settled request, and what the acceptance says of each triplet in its answer."""

    request: Request
    answer: Answer | None
    items: list[tuple[dict[str, Any], Triplet | Rejection]]


class Loop:
    """Asks a strategy's waves of requests and judges the answers in the order of the requests.

    Args:
        partner: the chat client.
        acceptance: decides what is accepted.
        task: what is wanted.
        source: value of the `source` of a request's triplets.
        watcher: shows the progress.
        judging: scores what is accepted, if there is a judge.
        one_call: stop after the first request for triplets, and take in its whole answer.
    """

    def __init__(
        self, partner: Partner, acceptance: Acceptance, task: Task, source: Callable[[Request], str],
        watcher: Watcher, judging: Judging | None = None, one_call: bool = False,
    ) -> None:  # fmt: skip
        self.partner, self.acceptance, self.task, self.source, self.watcher = partner, acceptance, task, source, watcher
        self.judging, self.one_call = judging, one_call
        self.harvest = Harvest()
        self.last_request: Request | None = None  # for triplets, of those whose answers were taken in
        self._scored: dict[Triplet, Reply[Scores]] = {}
        self._judge_stopped: tuple[str, str] | None = None

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
            settled: list[Examined] = []
            for i, (request, answer) in enumerate(zip(part, outcome.answers, strict=True), start=len(texts)):
                if answer is None and not outcome.stopped and failures[i] < ATTEMPTS:
                    break  # ask again, unless what was judged before it is enough
                settled.append(self._examined(request, answer, wave.holds))
            for place, one in enumerate(settled):
                if one.answer is None and not outcome.stopped:
                    self.partner.give_up([one.request])
                texts.append(one.answer.text if one.answer else "")
                if one.answer is not None or not outcome.stopped:  # otherwise it was not asked
                    await self._take_in(one, settled[place:], wave.holds, only_known=failure is not None)
                if self.harvest.stopped:
                    break
            if self._judge_stopped is not None and not self.harvest.stopped:
                self.harvest.stopped, self.harvest.reason = self._judge_stopped
            if self.one_call and wave.holds == "triplets" and texts:
                self.harvest.stopped = self.harvest.stopped or "preview"
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
        if self.one_call:
            return 1
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

    def _arrived(self, _: Answer) -> None:
        self.watcher.arrived(self.harvest, self.partner.spent)

    def _examined(self, request: Request, answer: Answer | None, holds: str) -> Examined:
        """What the acceptance says of an answer. It knows nothing of the judge, so a judged set replays alike."""
        items = parser.triplets(answer.text) if answer and holds == "triplets" else []
        label, source = self.task.label, self.source(request)
        return Examined(request, answer, [(item, self.acceptance.judge(item, label, source)) for item in items])

    async def _take_in(self, one: Examined, ahead: Sequence[Examined], holds: str, only_known: bool) -> None:
        """Take in the triplets of an answer, until there are enough.

        Args:
            ahead: this answer and those after it, whose triplets are judged together.
            only_known: whether to use only those of the judge's answers that are in the ledger.
        """
        harvest, wanted, answer = self.harvest, self.task.wanted, one.answer
        before = len(harvest.kept)
        harvest.calls += 1
        if not one.items and holds == "triplets":
            harvest.poor[_kind(answer)] += 1
        checksum = prompt_sha256(one.request.messages)
        if holds == "triplets":
            self.last_request = one.request
        for item, found in one.items:
            assert answer is not None
            if isinstance(found, Rejection):
                harvest.rejected.append(Rejected(item, found, answer))
                continue
            scores = None
            if self.judging is not None:
                if found not in self._scored:
                    await self._score(self.judging, ahead, only_known)
                reply = self._scored[found]
                if not reply.settled:
                    harvest.unjudged += 1
                    continue
                scores = reply.value
                if why := self.judging.judge.rejects(scores):
                    harvest.rejected.append(Rejected(item, Rejection(why), answer, scores))
                    continue
            harvest.kept.append(Kept(found, answer, checksum, scores))
            if len(harvest.kept) == wanted.n and not self.one_call:
                harvest.stopped = "n"
                harvest.unjudged = 0
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
            in_a_row = counted(harvest.filtered_in_a_row, "request")
            harvest.reason = f"{in_a_row} in a row, {harvest.filtered} of {harvest.calls} in all"
        elif harvest.barren >= wanted.patience and not harvest.stopped:
            harvest.stopped = "patience"
            harvest.reason = f"{counted(harvest.barren, 'call')} in a row brought nothing that was accepted"
        self.watcher.arrived(harvest, self.partner.spent)

    async def _score(self, judging: Judging, ahead: Sequence[Examined], only_known: bool) -> None:
        """Have the judge score the next triplets: as many as are missing, or all of them if they cost a batch."""
        found = [found for one in ahead for _, found in one.items if isinstance(found, Triplet)]
        waiting = [triplet for triplet in found if triplet not in self._scored]
        if not judging.judge.llm.batch:
            waiting = waiting[: max(1, self.task.wanted.n - len(self.harvest.kept))]
        replies = await judging.ask(waiting, only_known or self._judge_stopped is not None)
        self._scored.update(zip(waiting, replies.each, strict=True))
        if replies.stopped and self._judge_stopped is None:
            self._judge_stopped = replies.stopped, f"the judge: {replies.reason}"


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
