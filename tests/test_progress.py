"""What a job says about its progress, with a clock that the tests turn."""

from __future__ import annotations

import logging

import pytest

from debias import progress
from debias.progress import Outlook, Stage, bar, outlook, portion, report, stage


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress._shown, "clock", found)
    monkeypatch.setattr(progress._shown, "_beat", lambda over: None)
    caplog.set_level(logging.INFO)
    return found


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "debias.progress"]


def test_a_line_at_start_and_end_and_every_half_minute_between(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """114 steps of 2 s: a line after steps 15, 30, 45, ... 105, with the rest of 228 s."""
    with stage("train", said=True), stage("training", 114) as training:
        for step in range(1, 115):
            clock.now += 2
            report(training, step, "epoch 1 of 2, loss 1.92")
    found = lines(caplog)
    assert found[:3] == [
        "train: begins",
        "training 15/114, epoch 1 of 2, loss 1.92, 3 min left",
        "training 30/114, epoch 1 of 2, loss 1.92, 3 min left",
    ]
    assert len(found) == 1 + 7 + 1
    assert found[-2:] == ["training 105/114, epoch 1 of 2, loss 1.92, 18 s left", "train: done in 4 min"]


def test_a_short_bar_writes_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in bar("reading")(range(3), 3):
        clock.now += 9
    assert lines(caplog) == []


def test_work_that_reports_nothing_is_told_of(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The thread calls `tell` every second."""
    with stage("load the model"):
        for _ in range(61):
            clock.now += 1
            progress._shown.tell()
    assert lines(caplog) == ["load the model"] * 2


def test_one_estimate_for_the_whole_run(clock: Clock) -> None:
    """Training is 3 of 5 units: after half of it in 30 s, 30 s of it are left, and scoring takes 2/3 of 60 s."""
    with outlook({"ask": 1, "train": 3, "score": 2}), stage("training", 10, part="train") as training:
        clock.now = 30
        report(training, 5)
        assert progress._shown.left() == "70 s left"


def test_what_came_from_the_cache_says_nothing_of_the_pace() -> None:
    """Parts before the current one that never began are dropped; those that took time set the pace."""
    ahead = Outlook({"ask": 1, "train": 3, "score": 2})
    ahead.begin("train")
    ahead.end("train", 30)
    assert ahead.after(Stage("", None, "", 0), 0, 0) == 20
    ahead.begin("score")
    assert ahead.after(Stage("", 4, "score", 0), 0.5, 10) == 0


def test_portions_count_as_they_are_worked_on(clock: Clock) -> None:
    """Half of a portion of 4 in 10 s, of 8 texts that are to be scored: a quarter is done."""
    with stage("score", 10) as scoring:
        with portion(scoring, 2, "known"):
            pass  # from the cache: 8 are left
        with portion(scoring, 4, "fresh"), stage("inner", 2) as inner:
            clock.now = 10
            report(inner, 1)
            assert progress._shown.left() == "30 s left"
        assert (scoring.done, scoring.total) == (4, 8)


def test_a_line_of_scoring_says_one_thing_and_its_count_moves(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """10 of 40 batches of 4,000 texts in 30 s; the 1,000 others take as long: 90 s and 120 s are left."""
    with stage("score the base model", 5000, work=8.0) as scoring:
        with portion(scoring, 4000, "stereoset", 4.0), stage("scoring stereoset, base model", 40) as inner:
            clock.now = 30
            report(inner, 10)
        with portion(scoring, 1000, "perplexity", 4.0):
            pass
    assert lines(caplog) == ["score the base model 1,000/5,000, stereoset, 4 min left"]


def test_parts_of_one_kind_have_the_pace_of_their_kind() -> None:
    """Training took 100 s a unit; half of the base's two units took 5 s, so the debiased model's two take 10 s."""
    ahead = Outlook({"train": 1, "score base": 2, "score debiased": 2})
    ahead.end("train", 100)
    assert ahead.after(Stage("", 4, "score base", 0), 0.5, 5) == 10


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def test_a_terminal_shows_our_words_and_one_estimate(
    clock: Clock, terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with outlook({"train": 3, "score": 2}), stage("train"), stage("training", 114, part="train") as training:
        clock.now = 60
        report(training, 57, "epoch 1 of 2, loss 1.92")
        assert progress._shown.screen is not None
        progress._shown.screen.refresh()
    shown = capsys.readouterr().err
    assert "training, epoch 1 of 2, loss 1.92" in shown
    assert "57/114" in shown
    assert shown.count(" left") >= 1
    assert "2 min left" in shown  # 60 s of training and 80 s of scoring


def test_time_spent_waiting_for_another_process_is_not_work(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Ten parts of 10 s, with ten minutes between the fourth and the fifth: 60 s are left, not a quarter of an hour."""
    with stage("score", 10) as shown:
        for part in range(1, 5):
            clock.now += 10
            report(shown, part)
        with progress.waiting():
            clock.now += 600
        report(shown, 4)
    assert lines(caplog)[-1] == "score 4/10, 60 s left"
