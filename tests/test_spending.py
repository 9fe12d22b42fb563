"""The bill is the server's own, the budget is never exceeded, and no end of a process pays twice."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
from chat_server import PATIENCE, ChatServer, Fault, ask, ledger_lines, question, serving, settings, whole
from command import FORKED, gets

from debias.generation import live
from debias.generation.client import Chat
from debias.generation.exchange import question_of
from debias.generation.ledger import Ledger, read_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "out.ledger.jsonl"


# ---------------- money


def test_the_bill_is_the_servers_own(ledger: Path) -> None:
    faults = [
        None,
        Fault(500),
        Fault(429),
        Fault(text="a b c", finish_reason="length"),
        Fault(text="", message={"refusal": "no"}),
    ]
    with serving(faults) as server:
        _, arrived, spent = ask(settings(server.base_url), ledger, [question(f"number {i}") for i in range(9)])
        counts = server.counts
        assert (spent.prompt_tokens, spent.completion_tokens) == (counts.prompt_tokens, counts.completion_tokens)
        assert (
            spent.dollars == pytest.approx(counts.dollars(2, 10)) == pytest.approx(sum(a.dollars or 0 for a in arrived))
        )
    assert (spent.bounded, spent.lost) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_the_budget_is_never_exceeded(seed: int, tmp_path: Path) -> None:
    """Whatever usage, faults and limit are: the server's bill stays below, and no call that fitted is left out."""
    rng = random.Random(seed)
    worst = question_of(question("number 10"), settings("http://x")).bound
    faults = [
        rng.choice([Fault(500), Fault(body=b""), Fault(cut=280), Fault(no_usage=True)]) if rng.random() < 0.3
        else Fault(usage=(rng.randint(0, worst.prompt_tokens), rng.randint(0, 100)))
        for _ in range(200)
    ]  # fmt: skip
    limit = rng.uniform(0.3, 12) * worst.worst
    with serving(faults) as server:
        llm = settings(server.base_url, max_cost_usd=limit, concurrency=rng.randint(1, 6))
        requests = [question(f"number {i}") for i in range(10, 50)]
        outcome, _, spent = ask(llm, tmp_path / "ledger", requests)
        again, _, after = ask(llm, tmp_path / "ledger", requests)
        assert server.counts.dollars(2, 10) <= (after.dollars or 0) + 1e-12 <= limit + 1e-12
    assert outcome.stopped == again.stopped == "budget"
    assert (spent.dollars or 0) + spent.lost_dollars + worst.worst > limit  # the next one would not have fitted
    assert f"llm.max_cost_usd={limit}" in outcome.reason


def test_an_unknown_price_is_said(ledger: Path) -> None:
    with serving() as server:
        llm = settings(server.base_url, price_completion=None)
        _, arrived, spent = ask(llm, ledger, [question("x")])
    assert spent.dollars is None
    assert arrived[0].dollars is None
    assert spent.completion_tokens > 0


# ---------------- the end


def asking(
    base_url: str, ledger: Path, n: int, concurrency: int, told: Connection, first: Callable[[], object] | None
) -> None:
    """Ask as a process of its own; what it logs, and how it ends, goes through `told`."""

    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.send(record.getMessage())

    async def ask_all() -> None:
        llm = settings(base_url, concurrency=concurrency, timeout=10 * PATIENCE)
        with Ledger(ledger) as opened:
            async with Chat(llm, opened, first_delay=0.01) as chat:
                await chat.ask([question(f"number {i}") for i in range(n)], lambda answer: None)

    logging.getLogger("debias").addHandler(Tells())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if first:
        first()
    try:
        asyncio.run(ask_all())
    except KeyboardInterrupt:
        told.send("KeyboardInterrupt")


class Child(NamedTuple):
    """A process that asks, and what it tells."""

    process: BaseProcess
    told: Connection

    def waits_for_its_calls(self) -> None:
        """Return when it has been interrupted once."""
        assert self.told.poll(PATIENCE)
        assert self.told.recv().startswith("stopping: waiting for")


def child(
    server: ChatServer, ledger: Path, n: int, concurrency: int = 4, first: Callable[[], object] | None = None
) -> Child:
    told, tells = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=asking, args=(server.base_url, ledger, n, concurrency, tells, first))
    process.start()
    return Child(process, told)


def test_killed_between_answer_and_ledger(ledger: Path) -> None:
    """The call in flight is lost and said; the answers in the ledger are not asked again."""
    dies = partial(gets, signal.SIGKILL, "debias.generation.ledger:Ledger.answered", call=3)
    with serving() as server:
        process, _ = child(server, ledger, 6, concurrency=1, first=dies)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert server.counts.calls == 3
        outcome, _, spent = ask(settings(server.base_url), ledger, [question(f"number {i}") for i in range(6)])
    assert (server.counts.calls, spent.calls, spent.lost) == (7, 6, 1)
    assert None not in outcome.answers
    assert [server.counts.keys.count(key) for key in server.counts.keys[:3]] == [1, 1, 2]


def test_killed_with_calls_in_flight(ledger: Path) -> None:
    """Three times with four calls in flight: they are asked again, and every answer is recorded once."""
    requests, allowed = [question(f"number {i}") for i in range(60)], 0
    with serving(before=lambda server, number: number <= allowed or server.gate.wait(PATIENCE)) as server:
        for _ in range(3):
            already, held = server.counts.calls, set(read_ledger(ledger).answers)
            allowed = already + 6
            process, _ = child(server, ledger, len(requests))
            server.wait_until(lambda: server.counts.calls == already + 10)  # noqa: B023
            process.kill()
            process.join()
            assert len(set(read_ledger(ledger).answers) - held) == 6
            assert not held & set(server.counts.keys[already:])
        server.gate.set()
        server.wait_until_idle()
        outcome, _, spent = ask(settings(server.base_url), ledger, requests)
    assert None not in outcome.answers
    answered = [line for line in ledger_lines(ledger) if line["kind"] == "answered"]
    assert len(answered) == spent.calls == 60
    assert (len(server.counts.keys), spent.lost) == (60 + 3 * 4, 3 * 4)


@pytest.mark.slow
def test_killed_at_random_twenty_times(ledger: Path) -> None:
    """At most what was in flight is asked twice, and every answer is recorded once."""
    rng, requests = random.Random(5), [question(f"number {i}") for i in range(200)]
    with serving(before=lambda *_: time.sleep(0.05)) as server:
        for _ in range(20):
            before, held = server.counts.calls, set(read_ledger(ledger).answers)
            process, _ = child(server, ledger, len(requests))
            answers = before + rng.randint(1, 8)
            server.wait_until(lambda: server.counts.calls > answers)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join()
            server.wait_until_idle()
            assert not held & set(server.counts.keys[before:])
        outcome, _, spent = ask(settings(server.base_url), ledger, requests)
    assert None not in outcome.answers
    answered = [line for line in ledger_lines(ledger) if line["kind"] == "answered"]
    assert len(answered) == spent.calls == 200
    assert len(server.counts.keys) - 200 <= spent.lost <= 20 * 4  # four calls at a time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_records_what_is_in_flight(number: signal.Signals, ledger: Path) -> None:
    """Three calls are answered and three are in flight: it waits for these, and asks no more."""
    with serving(before=lambda server, number: number <= 3 or server.gate.wait(PATIENCE)) as server:
        started = child(server, ledger, 40, concurrency=3)
        server.wait_until(lambda: server.counts.calls == 6)
        os.kill(started.process.pid or 0, number)
        started.waits_for_its_calls()
        server.gate.set()
        assert started.told.recv() == "KeyboardInterrupt"
        started.process.join()
        assert server.counts.calls == server.counts.whole == len(whole(ledger)) == 6


def forgive() -> None:
    live.GRACE = 10.0 * PATIENCE


def test_a_second_interrupt_ends_at_once(ledger: Path) -> None:
    """The server stays silent, and nobody waits for it."""
    with serving([Fault(silent=True)] * 9) as server:
        started = child(server, ledger, 40, concurrency=2, first=forgive)
        server.wait_until(lambda: server.counts.calls == 2)
        os.kill(started.process.pid or 0, signal.SIGINT)
        started.waits_for_its_calls()
        os.kill(started.process.pid or 0, signal.SIGINT)
        assert started.told.recv() == "KeyboardInterrupt"
        started.process.join()
        server.wait_until_idle()
        assert server.counts.hung_up == 2
        assert [line["kind"] for line in ledger_lines(ledger)] == ["sent", "sent", "lost", "lost"]


def test_waiting_for_calls_in_flight_is_bounded(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stays silent, and the wait for it ends long before the call would."""
    monkeypatch.setattr(live, "GRACE", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    with serving([Fault(silent=True)]) as server:

        def terminate() -> None:
            server.wait_until(lambda: server.counts.calls == 1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            ask(settings(server.base_url, timeout=10 * PATIENCE), ledger, [question("x")])
        server.wait_until_idle()
        assert server.counts.hung_up == 1
    assert ledger_lines(ledger)[-1]["kind"] == "lost"
    assert signal.getsignal(signal.SIGTERM) == before
