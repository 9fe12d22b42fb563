"""Live calls, several at a time: retries, back-off, budget, and a clean end.

The official client makes the calls, but the retries are ours: every attempt needs its ledger line and its share of the
budget, an exhausted quota is not worth a retry, and Ctrl-C must not wait for a back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import httpx2
import openai

from debias.generation.adaptation import Adaptations
from debias.generation.complaints import complaint_of, mistake, redacted, shorter, shown, unreachable
from debias.generation.exchange import FILTERED, LLM, MAX_REFUSED, Answer, Question
from debias.generation.ledger import Ledger
from debias.generation.reading import Reading, read_body
from debias.wording import counted

log = logging.getLogger(__name__)

MAX_BROKEN = 3  # attempts at one request that bring a charged body without an answer, per run
MAX_WAIT = 600.0  # seconds; a longer Retry-After ends the run
MAX_DELAY = 60.0  # seconds; longest back-off without a Retry-After
GRACE = 30.0  # seconds that calls in flight get after Ctrl-C
GATEWAY_TIMEOUTS = (504, 524)  # a gateway gave up waiting: the model may have answered, and the call may be charged
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Failure(NamedTuple):
    """An attempt without an answer."""

    reason: str
    wait: float | None = None  # seconds until a retry; None: the server does not say
    refused: bool = False  # the server rejects the request itself, though it has answered others
    changed: bool = False  # the next attempt leaves out what the server refuses


class End:
    """Whether and why sending stopped; the first reason counts."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.stopped, self.reason = "", ""
        self.error: Exception | None = None

    def because(self, stopped: str, reason: str = "", error: Exception | None = None) -> None:
        if not self.reached.is_set():
            self.stopped, self.reason, self.error = stopped, reason, error
            self.reached.set()

    def interrupt(self) -> None:
        self.because("interrupted")
        self.interrupted.set()


class Live:
    """Asks over one connection pool.

    Args:
        client: with `max_retries=0`.
        ledger: an open ledger.
        secret: the API key, to be cut out of everything that is written; empty if there is none.
        first_delay: seconds before the first retry; doubles with each further one.
    """

    def __init__(
        self, client: openai.AsyncOpenAI, llm: LLM, ledger: Ledger, base_url: str, secret: str, first_delay: float
    ) -> None:
        self.client, self.llm, self.ledger, self.base_url = client, llm, ledger, base_url
        self.secret, self.first_delay = secret, first_delay
        self.adaptations = Adaptations(llm, ledger, base_url)
        self._settled = asyncio.Condition()
        self._in_flight = 0
        self._heard = False  # whether the server has ever replied
        self._proven = False  # whether it has answered a request, so that its settings are right
        self._not_before = 0.0  # in the event loop's time: a Retry-After holds for all workers
        self._failed_in_a_row = 0
        self._broken: Counter[str] = Counter()  # by key of a request: charged bodies without an answer
        self._filtered = False  # whether a content filter has refused a request

    async def ask(
        self, missing: Mapping[str, Question], collect: Callable[[Answer], None], proven: bool
    ) -> tuple[str, str]:
        """Ask; returns why it stopped early and the reason in words, both empty if everything was asked.

        Args:
            proven: whether requests with the same settings have been answered before.
        """
        end, todo = End(), iter(missing.values())
        self._proven |= proven
        with _listening(end):
            count = min(self.llm.concurrency, len(missing))
            workers = [asyncio.create_task(self._work(todo, collect, end)) for _ in range(count)]
            try:
                await _join(workers, end)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if end.interrupted.is_set():
            raise KeyboardInterrupt
        if end.error is not None:
            raise end.error
        return end.stopped, end.reason

    async def _work(self, todo: Iterator[Question], collect: Callable[[Answer], None], end: End) -> None:
        try:
            for question in todo:
                if end.reached.is_set():
                    return
                if (answer := await self._answer(question, end)) is not None:
                    collect(answer)
        except Exception as error:
            end.because("error", error=error)  # raised after the other workers have recorded their calls in flight

    async def _answer(self, question: Question, end: End) -> Answer | None:
        """Ask until there is an answer; None if it failed for good or sending stopped."""
        failures = refused = 0
        while self._broken[question.key] < MAX_BROKEN:  # it may be asked again, but each of these has been paid for
            await self._pause(self._not_before - asyncio.get_running_loop().time(), end)
            if (attempt := await self._send_line(question, end)) is None:
                return None
            failure = await self._attempt(question, attempt)
            if failure is None:
                if answer := self.ledger.memory.answers.get(question.key):
                    self._failed_in_a_row = 0
                    self._proven |= answer.finish_reason != FILTERED
                    return answer._replace(cached=False)
                self._broken[question.key] += 1
                failure = Failure("a charged answer that cannot be used")
            elif failure.changed:
                continue
            else:
                failures += 1
                refused += failure.refused
            broken = self._broken[question.key]
            log.debug("%s: attempt %d failed: %s", question.key[:8], failures + broken, failure.reason)
            if refused == MAX_REFUSED:
                self.ledger.given_up([question.key])
            if failures > self.llm.max_retries or broken >= MAX_BROKEN or refused == MAX_REFUSED:
                self._give_up(failure, end)
                return None
            await self._back_off(failure, failures + broken, end)
        return None

    async def _send_line(self, question: Question, end: End) -> str | None:
        """Reserve the call's worst case and record it as sent; None if sending stopped or the budget is too small."""
        limit = self.llm.max_cost_usd

        # The price of a call is known only afterwards. So its worst case is reserved before it is made, and the sum of
        # what is paid and what is reserved never exceeds the limit. An answer mostly costs less than its worst case
        # and frees the difference, which is why a call that does not fit waits while others are in flight.
        def affordable() -> bool:
            return limit is None or self.ledger.memory.committed + question.bound.worst <= limit

        async with self._settled:
            await self._settled.wait_for(lambda: end.reached.is_set() or affordable() or not self._in_flight)
            if end.reached.is_set():
                return None
            if not affordable():
                committed = self.ledger.memory.committed
                end.because(
                    "budget",
                    f"the next call may cost {question.bound.worst:.4f} dollars, and {committed:.4f} of "
                    f"llm.max_cost_usd={limit} are spent or reserved",
                )
                return None
            attempt = self.ledger.sent(question.key, question.bound)
            self._in_flight += 1
            return attempt

    async def _attempt(self, question: Question, attempt: str) -> Failure | None:
        """One call and its end in the ledger; None if the call was charged or has an answer."""
        try:
            return await self._call(question, attempt)
        finally:
            self._in_flight -= 1
            async with self._settled:
                self._settled.notify_all()

    async def _call(self, question: Question, attempt: str) -> Failure | None:
        chunks: list[bytes] = []
        request_id: str | None = None  # None until status 200 has arrived
        body = self.adaptations.sent(question.body)
        try:
            async with asyncio.timeout(self.llm.timeout), self._response(question.key, body) as response:
                request_id = response.headers.get("x-request-id", "")
                async for chunk in response.iter_bytes():
                    chunks.append(chunk)
        except openai.APIStatusError as error:
            return self._refused(attempt, error, body)
        except (openai.APIConnectionError, httpx2.HTTPError, TimeoutError) as error:
            if request_id is None:
                return self._unheard(attempt, error)
        except BaseException as error:
            if request_id is None:
                self.ledger.lost(attempt, type(error).__name__)
            else:
                self._record(attempt, chunks, request_id)
            raise
        reading = self._record(attempt, chunks, request_id or "")
        return None if reading.charged or reading.text is not None else Failure(reading.finish_reason)

    def _response(self, key: str, body: dict[str, Any]) -> contextlib.AbstractAsyncContextManager[Any]:
        """The call itself. Its answer is streamed uncompressed, so that one that breaks off is kept up to the break."""
        repeated = self.ledger.memory.broken.get(key, 0)  # another key, or we get the broken answer again
        headers = {"Accept-Encoding": "identity", "Idempotency-Key": f"{key}-{repeated}" if repeated else key}
        more = {name: value for name, value in body.items() if name not in ("model", "messages")}
        return self.client.chat.completions.with_streaming_response.create(
            model=body["model"], messages=body["messages"], extra_body=more, extra_headers=headers
        )

    def _record(self, attempt: str, chunks: list[bytes], request_id: str) -> Reading:
        self._heard = True
        body = redacted(b"".join(chunks).decode("utf-8", "replace"), self.secret)
        self.ledger.answered(attempt, body, redacted(request_id, self.secret))
        return read_body(body)

    def _refused(self, attempt: str, error: openai.APIStatusError, body: dict[str, Any]) -> Failure | None:
        """Record the error status that a body was refused with; None if it settles the request."""
        self._heard = True
        complaint = complaint_of(error, self.secret)
        if complaint.filtered:
            if not self._filtered:  # the others are counted
                log.warning("a content filter refused a request, which is skipped: %s", complaint.reason)
            self._filtered = True
            self.ledger.filtered(attempt, complaint.status, complaint.reason)
            return None
        if complaint.status in GATEWAY_TIMEOUTS:
            self.ledger.lost(attempt, complaint.reason)
        else:
            self.ledger.declined([attempt], complaint.status, complaint.reason)
        if self.adaptations.learn(complaint, body):
            return Failure(complaint.reason, changed=True)
        told = mistake(complaint, self.llm, self.base_url)
        # Before the first answer a refusal means that the settings are wrong. Afterwards they cannot be: it is an
        # accident, or something about this one request, such as its length.
        if told is not None and (complaint.about_account or not self._proven):
            raise told from None  # the original error may quote the key
        reason = f"{complaint.reason}; {shorter(self.llm)}" if complaint.exceeds_limit else complaint.reason
        return Failure(reason, complaint.wait, refused=told is not None)

    def _unheard(self, attempt: str, error: Exception) -> Failure:
        reason = f"{type(error.__cause__ or error).__name__}"
        if not isinstance(error.__cause__, NOT_SENT):
            self.ledger.lost(attempt, reason)
        else:
            self.ledger.declined([attempt], None, reason)
            if not self._heard:
                raise unreachable(self.base_url, error) from None
        return Failure(reason)

    def _give_up(self, failure: Failure, end: End) -> None:
        log.warning("a request failed for good: %s", failure.reason)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(3, self.llm.concurrency):
            where = shown(self.base_url)
            end.because(
                "failed",
                f"{counted(self._failed_in_a_row, 'request')} in a row failed at {where}; the last: {failure.reason}",
            )

    async def _back_off(self, failure: Failure, failures: int, end: End) -> None:
        if failure.wait is None:
            delay = min(self.first_delay * 2 ** (failures - 1), MAX_DELAY)
            await self._pause(delay * random.uniform(0.75, 1.0), end)  # noqa: S311
        elif failure.wait > MAX_WAIT:
            end.because(
                "failed",
                f"{shown(self.base_url)} asks to wait {failure.wait:.0f} seconds; run the same command then",
            )
        else:
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + failure.wait)

    async def _pause(self, seconds: float, end: End) -> None:
        """Wait, unless sending stops."""
        with contextlib.suppress(TimeoutError):
            if seconds > 0:
                await asyncio.wait_for(end.reached.wait(), seconds)


async def _join(workers: list[asyncio.Task[None]], end: End) -> None:
    """Wait for the workers, after an interrupt no longer than GRACE."""
    interrupted = asyncio.create_task(end.interrupted.wait())
    working: asyncio.Future[Any] = asyncio.gather(*workers)
    ends: list[asyncio.Future[Any]] = [working, interrupted]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            waiting = counted(len(workers), "call")
            log.warning("stopping: waiting for %s in flight (interrupt again to stop at once)", waiting)
            await asyncio.wait([working], timeout=GRACE)
    finally:
        interrupted.cancel()


@contextlib.contextmanager
def _listening(end: End) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a clean end; a second one has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        restore()
        loop.call_soon_threadsafe(end.interrupt)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
