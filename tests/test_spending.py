"""The bill is the server's own, the budget is never exceeded, and no end of a process pays twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from chat_server import ChatServer, Fault, ask, ledger_lines, question, serving, settings, whole

from debias.generation import live
from debias.generation.exchange import question_of
from debias.generation.ledger import read_ledger


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


CHILD = """
import asyncio, os, signal, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from chat_server import question, settings
from debias.generation.client import Chat
from debias.generation.ledger import read_ledger
from debias.generation.ledger import Ledger

if {hook!r}:
    answered = Ledger.answered
    def die(self, *arguments):
        if self.memory.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        answered(self, *arguments)
    Ledger.answered = die

async def main():
    async with Chat(settings({base_url!r}, concurrency={concurrency}), Path({ledger!r}), first_delay=0.01) as chat:
        outcome = await chat.ask([question(f"number {{i}}") for i in range({n})], lambda answer: print(".", flush=True))
        print("stopped:", outcome.stopped)

asyncio.run(main())
"""


def child(server: ChatServer, ledger: Path, n: int, concurrency: int = 4, hook: bool = False) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)
    code = CHILD.format(
        tests=tests, hook=hook, base_url=server.base_url, ledger=str(ledger), n=n, concurrency=concurrency
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit "ignore"
    )  # fmt: skip


def test_killed_between_answer_and_ledger(ledger: Path) -> None:
    """The call in flight is lost and said; the answers in the ledger are not asked again."""
    with serving() as server:
        process = child(server, ledger, 6, concurrency=1, hook=True)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert server.counts.calls == 3
        outcome, _, spent = ask(settings(server.base_url), ledger, [question(f"number {i}") for i in range(6)])
    assert (server.counts.calls, spent.calls, spent.lost) == (7, 6, 1)
    assert None not in outcome.answers
    assert [server.counts.keys.count(key) for key in server.counts.keys[:3]] == [1, 1, 2]


def test_killed_at_random_five_times(ledger: Path) -> None:
    """At most what was in flight is asked twice, and every answer is recorded once."""
    rng, requests = random.Random(5), [question(f"number {i}") for i in range(60)]
    with serving(delay=0.05) as server:
        for _ in range(5):
            before, held = len(server.counts.keys), set(read_ledger(ledger).answers)
            process = child(server, ledger, len(requests))
            assert process.stdout is not None
            for _ in range(rng.randint(1, 8)):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.communicate(timeout=60)
            while server.serving:
                time.sleep(0.02)
            assert not held & set(server.counts.keys[before:])
        before, held = len(server.counts.keys), set(read_ledger(ledger).answers)
        assert 5 <= len(held) < 60
        outcome, _, spent = ask(settings(server.base_url), ledger, requests)
        assert sorted(server.counts.keys[before:]) == sorted(
            {answer.key for answer in outcome.answers if answer} - held
        )
    assert None not in outcome.answers
    answered = [line for line in ledger_lines(ledger) if line["kind"] == "answered"]
    assert len(answered) == spent.calls == 60
    assert len(server.counts.keys) - 60 <= spent.lost <= 5 * 4  # four calls at a time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_records_what_is_in_flight(number: signal.Signals, ledger: Path) -> None:
    with serving(delay=0.4) as server:
        process = child(server, ledger, 40, concurrency=3)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1)  # the next three are in flight
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert server.counts.calls == server.counts.whole == len(whole(ledger)) < 40


def test_a_second_interrupt_ends_at_once(ledger: Path) -> None:
    with serving([Fault(stall=20)] * 9) as server:
        process = child(server, ledger, 40, concurrency=2)
        while server.counts.calls < 2:
            time.sleep(0.02)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert time.monotonic() - start < 3
        assert [line["kind"] for line in ledger_lines(ledger)] == ["sent", "sent", "lost", "lost"]


def test_waiting_for_calls_in_flight_is_bounded(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "GRACE", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    with serving([Fault(stall=5)]) as server:

        def terminate() -> None:
            while not server.counts.calls:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ask(settings(server.base_url), ledger, [question("x")])
        assert time.monotonic() - start < 4
    assert ledger_lines(ledger)[-1]["kind"] == "lost"
    assert signal.getsignal(signal.SIGTERM) == before
