"""The ledger: nothing written is lost, nothing half-written counts, one process at a time."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import ask, ledger_lines, question, serving, settings

from debias.generation.exchange import Bound
from debias.generation.ledger import Ledger, read_ledger
from debias.records import UserError

BOUND = Bound(1000, 100, 2.0, 10.0)  # at worst 0.002 + 0.001 dollars


def completion(text: str, prompt_tokens: int = 10, completion_tokens: int = 5) -> str:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return json.dumps(
        {"model": "m", "usage": usage, "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "out.ledger.jsonl"


def test_lines_add_up(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.answered(ledger.sent("a", BOUND), completion("hi"), "r1")
        ledger.answered(ledger.sent("b", BOUND), "", "r2")  # paid, but nothing in it
        ledger.declined([ledger.sent("c", BOUND)], 500, "busy")
        ledger.lost(ledger.sent("d", BOUND), "silence")
        ledger.sent("e", BOUND)
        # a: 10 * 2 + 5 * 10 = 70 millionths; b: 1000 * 2 + 100 * 10 = 3000 (no usage); d and e: 3000 each at worst
        assert ledger.memory.spent == (2, 1010, 105, pytest.approx(3070e-6), 1, 1, pytest.approx(3000e-6))
        assert ledger.memory.committed == pytest.approx(9070e-6)
    again = read_ledger(path)
    assert again.spent.lost == 2  # nobody waits for e any more
    assert again.committed == pytest.approx(9070e-6)
    assert list(again.answers) == ["a"]
    assert again.answers["a"][1:6] == ("hi", "stop", 10, 5, pytest.approx(70e-6))
    assert again.broken == {"b": 1}


def test_the_body_is_kept_as_it_came(path: Path) -> None:
    body = '{"odd": "caf\u00e9 \u2028 \U0001f600", '
    with Ledger(path) as ledger:
        ledger.answered(ledger.sent("a", BOUND), body, "")
    assert ledger_lines(path)[1]["body"] == body


def test_every_line_is_on_disk_when_the_call_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with Ledger(path) as ledger:
        monkeypatch.setattr("os.fsync", lambda _: synced.append(path.read_bytes().count(b"\n")))
        attempt = ledger.sent("a", BOUND)
        ledger.answered(attempt, completion("x"), "")
        monkeypatch.undo()
    assert synced == [1, 2]


def test_a_torn_last_line_is_kept_out_and_the_next_begins_afresh(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger(path) as ledger:
        ledger.answered(ledger.sent("a", BOUND), completion("first"), "")
        attempt = ledger.sent("b", BOUND)
        ledger.answered(attempt, completion("second"), "")
    for cut in range(1, len(path.read_bytes().splitlines(keepends=True)[-1]), 7):
        torn = path.with_name(f"torn{cut}")
        torn.write_bytes(path.read_bytes()[:-cut])
        with Ledger(torn) as ledger:
            # without its newline alone the line is still whole
            assert sorted(ledger.memory.answers) == (["a", "b"] if cut == 1 else ["a"])
            ledger.answered(ledger.sent("c", BOUND), completion("third"), "")
        assert sorted(read_ledger(torn).answers) == (["a", "b", "c"] if cut == 1 else ["a", "c"])
    assert "4 is not a complete line of a ledger" in caplog.text


def test_a_damaged_line_is_said_with_its_number(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger(path) as ledger:
        ledger.answered(ledger.sent("a", BOUND), completion("first"), "")
    lines = path.read_bytes().splitlines()
    path.write_bytes(
        b"\n".join([lines[0], b'{"kind": "answered", "att', b"\xff\xfe", b"[1]", b'{"kind": "x"}', lines[1]])
    )
    caplog.set_level(logging.WARNING)
    assert list(read_ledger(path).answers) == ["a"]
    said = [f":{i} is not a complete line" in caplog.text for i in range(1, 7)]
    assert said == [False, True, True, True, True, False]


def test_a_full_disk_stops_the_run_and_leaves_whole_lines(path: Path) -> None:
    """The file may not grow beyond a limit in the middle of the second answer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(path) as ledger:
        ledger.answered(ledger.sent("a", BOUND), completion("first"), "")
        attempt = ledger.sent("b", BOUND)
        size = path.stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
            with pytest.raises(UserError, match=r"cannot be written .*make room"):
                ledger.answered(attempt, completion("second"), "")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size
        assert "b" not in ledger.memory.answers
        ledger.answered(attempt, completion("second"), "")  # there is room again
    assert sorted(read_ledger(path).answers) == ["a", "b"]


def test_a_full_disk_ends_a_run_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Ledger.answered

    def full(self: Ledger, *arguments: str) -> None:
        if self.memory.calls == 2:
            raise UserError(f"{self.path}: cannot be written (No space left on device); make room and run again")
        answered(self, *arguments)

    with serving() as server:
        monkeypatch.setattr(Ledger, "answered", full)
        with pytest.raises(UserError, match="No space left"):
            ask(settings(server.base_url, concurrency=1), path, [question(str(i)) for i in range(9)])
        assert server.counts.calls == 3


def test_two_processes_do_not_share_a_ledger(path: Path) -> None:
    code = f"""
from pathlib import Path
from debias.generation.ledger import Ledger
from debias.records import UserError
try:
    with Ledger(Path({str(path)!r})):
        print("opened")
except UserError as error:
    print(error)
"""
    with Ledger(path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "is in use by another debias process" in other.stdout
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == "opened\n"


def test_a_batch_is_open_until_it_has_ended(path: Path) -> None:
    with Ledger(path) as ledger:
        tag = ledger.sent_batch({"a": BOUND, "b": BOUND}, "a server")
    assert read_ledger(path).batches == {tag: None}  # its id was never written
    with Ledger(path) as ledger:
        ledger.batch(tag, "batch-7")
        assert ledger.memory.committed == pytest.approx(6000e-6)
        first, second = ledger.memory.pending
        ledger.answered_all([(first, completion("x"), "")])
        ledger.declined([second], None, "expired")
        ledger.batch_ended(tag, "expired")
    memory = read_ledger(path)
    assert (memory.batches, memory.pending, memory.lost) == ({}, {}, {})
    assert memory.committed == pytest.approx(70e-6)


def test_a_missing_ledger_is_an_empty_one_and_a_folder_is_a_mistake(path: Path) -> None:
    assert read_ledger(path).spent.calls == 0
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_ledger(path)
