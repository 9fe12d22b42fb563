"""What a job is doing and how long it will take: a bar on a terminal, a line every half minute in the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

log = logging.getLogger(__name__)

Item = TypeVar("Item")

EVERY = 30.0  # seconds between two lines


class Portion(NamedTuple):
    """Some of the parts of a stage, and the work that is in them."""

    parts: float
    work: float


class Stage:
    """Work of which `done` of `total` parts are done.

    Args:
        total: None if nobody can tell.
        part: the part of the whole run, as in `Outlook`, to which this work belongs.
        work: how long all parts take, in a unit of which only ratios matter; None: as long as their number says.
    """

    def __init__(self, label: str, total: float | None, part: str, now: float, work: float | None = None) -> None:
        self.label, self.total, self.part, self.begun = label, total, part, now
        self.work = total if work is None else work
        self.done, self.detail = 0.0, ""
        self.worked = 0.0
        self.portion = Portion(0.0, 0.0)  # what the stage within this one works on
        self.had_work = False  # whether there was such a stage
        self.waited = 0.0  # seconds in which nothing was done because another process does it

    def worked_for(self, now: float) -> float:
        """Seconds of work, without those of waiting."""
        return now - self.begun - self.waited

    def share(self, inner: float) -> float:
        """How much of the work is done, from 0 to 1, if so much of its portion is."""
        return min(1.0, (self.worked + self.portion.work * inner) / self.work) if self.work else 0.0

    def count(self, inner: float) -> float:
        """The parts done, if so much of its portion is."""
        return self.done + self.portion.parts * inner

    def named(self) -> str:
        """Without the count, as in `train, loss 1.92`."""
        return f"{self.label}{f', {self.detail}' if self.detail else ''}"

    def words(self, inner: float) -> str:
        """As in `train 34/114, loss 1.92`, if so much of its portion is done."""
        counts = f" {self.count(inner):,.0f}/{self.total:,.0f}" if self.total else ""
        return f"{self.label}{counts}{f', {self.detail}' if self.detail else ''}"


class Outlook:
    """The parts of a run that are still to come, with the work in each, in a unit of which only ratios matter."""

    def __init__(self, work: Mapping[str, float]) -> None:
        self.to_come = dict(work)
        self.taken: list[tuple[str, float, float]] = []  # the parts that took time: part, work, seconds

    def begin(self, part: str) -> None:
        """Parts come in order, so those before this one are over, or were not needed."""
        while part in self.to_come and next(iter(self.to_come)) != part:
            del self.to_come[next(iter(self.to_come))]

    def end(self, part: str, seconds: float) -> None:
        """Learn from a part how long the work takes."""
        if part in self.to_come:
            self.taken.append((part, self.to_come.pop(part), seconds))

    def after(self, stage: Stage, share: float, seconds: float) -> float:
        """Seconds that the parts behind a stage will take, of which so much is done after so many seconds.

        Parts whose names begin with the same word, such as `score base` and `score debiased`, have the same pace.
        """
        own = self.to_come.get(stage.part, 0.0) * share
        known = [*self.taken, *([(stage.part, own, seconds)] if own else [])]
        left = 0.0
        for part, work in self.to_come.items():
            if part != stage.part and known:
                alike = [k for k in known if _kind(k[0]) == _kind(part)] or known
                left += work * sum(k[2] for k in alike) / sum(k[1] for k in alike)
        return left


def _kind(part: str) -> str:
    return part.partition(" ")[0]


class _Shown:
    """What this process shows. There is one terminal and one log, so there is one of it."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []  # the outermost first
        self.outlook = Outlook({})
        self.told = 0.0
        self.clock: Callable[[], float] = time.monotonic
        self.screen: Progress | None = None
        self.over = threading.Event()

    def enter(self, stage: Stage) -> None:
        """Show a stage within those that are shown."""
        self.outlook.begin(stage.part)
        if self.stages:
            self.stages[-1].had_work = True
        self.stages.append(stage)
        if len(self.stages) == 1:
            self.told = stage.begun
            console = Console(stderr=True)
            if console.is_terminal:
                self.screen = Progress(
                    TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), _Counts(), _Left(),
                    console=console, transient=True,
                )  # fmt: skip
                self.screen.add_task("", total=None)
                self.screen.start()
            self.over = threading.Event()
            threading.Thread(target=self._beat, args=(self.over,), daemon=True).start()
        self.show()

    def leave(self, stage: Stage) -> None:
        """Show it no longer."""
        if self.screen is not None and len(self.stages) == 1:
            self.screen.refresh()
        self.outlook.end(stage.part, stage.worked_for(self.clock()))
        self.stages.remove(stage)
        if not self.stages:
            self.over.set()
            if self.screen is not None:
                self.screen.stop()
                self.screen = None
        self.show()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(1.0):  # for work that does not report where it is
            self.tell()

    def show(self) -> None:
        """Bring the terminal up to date, and write a line if it is time for one."""
        if self.screen is not None and self.stages:
            now, inner = self.now()
            self.screen.tasks[0].total = now.total  # `update` takes None for "as before"
            self.screen.update(self.screen.task_ids[0], description=now.named(), completed=int(now.count(inner)))
        self.tell()

    def tell(self) -> None:
        """Write a line, unless there was one less than half a minute ago."""
        now = self.clock()
        if self.stages and now - self.told >= EVERY:
            self.told = now
            stage, inner = self.now()
            log.info("%s", ", ".join([stage.words(inner), *filter(None, [self.left()])]))

    def now(self) -> tuple[Stage, float]:
        """The stage to tell of, and the share done of its portion: the outermost of those that count the same work."""
        shown, inner, share = self.stages[-1], 0.0, 0.0
        for stage in reversed(self.stages):
            if stage is self.stages[-1] or stage.portion.parts:
                shown, inner = stage, share
            share = stage.share(share)
        return shown, inner

    def left(self) -> str:
        """The time left of the whole run where that is known, as in `4 min left`."""
        share, left = 0.0, ""
        for stage in reversed(self.stages):
            share, seconds = stage.share(share), stage.worked_for(self.clock())
            if share:  # the outermost stage that can be counted knows most
                left = f"{duration(seconds * (1 - share) / share + self.outlook.after(stage, share, seconds))} left"
        return left


_shown = _Shown()


class _Counts(MofNCompleteColumn):
    def render(self, task: Task) -> Text:
        return Text("") if not task.total else super().render(task)


class _Left(ProgressColumn):
    """One estimate, of the whole run; without one, how long this has taken."""

    def render(self, task: Task) -> Text:
        return Text(_shown.left() or f"{duration(task.elapsed or 0)} so far", style="dim")


@contextmanager
def outlook(work: Mapping[str, float]) -> Iterator[None]:
    """Tell how much work the parts of a run are, in order, so that bars show the time left of the whole run."""
    before, _shown.outlook = _shown.outlook, Outlook(work)
    try:
        yield
    finally:
        _shown.outlook = before


@contextmanager
def stage(
    label: str, total: float | None = None, part: str = "", said: bool = False, work: float | None = None
) -> Iterator[Stage]:
    """Show a stage while the block works; see `report`.

    Args:
        said: write a line at its start and its end too.
        work: how long it takes, in the unit of its portions; None: each of the `total` parts takes the same time.
    """
    shown = Stage(label, total, part, _shown.clock(), work)
    if said:
        log.info("%s: begins", label)
    _shown.enter(shown)
    try:
        yield shown
    finally:
        _shown.leave(shown)
    if said:
        log.info("%s: done in %s", label, duration(_shown.clock() - shown.begun))


def report(shown: Stage, done: float, detail: str | None = None, total: float | None = None) -> None:
    """Tell how far a stage is; `total` if that is known only now, or has changed."""
    shown.done = shown.worked = done
    if total is not None:
        shown.total = shown.work = total
    if detail is not None:
        shown.detail = detail
    _shown.show()


@contextmanager
def waiting() -> Iterator[None]:
    """Wait for another process; the time left is estimated from the other time."""
    begun = _shown.clock()
    try:
        yield
    finally:
        for shown in _shown.stages:
            shown.waited += _shown.clock() - begun


@contextmanager
def portion(shown: Stage, size: float, detail: str, work: float | None = None) -> Iterator[None]:
    """Work on some of the parts of a stage. Those whose results were known take no time, so they no longer count."""
    work = size if work is None else work
    shown.portion, shown.detail, shown.had_work = Portion(size, work), detail, False
    yield
    shown.portion = Portion(0.0, 0.0)
    if shown.had_work:
        shown.done += size
        shown.worked += work
    elif shown.total and shown.work:
        shown.total -= size
        shown.work -= work
    _shown.show()


def bar(label: str, part: str = "") -> Callable[[Iterable[Item], int], Iterator[Item]]:
    """A function that takes an iterable and its length, yields the items and shows how many are done."""

    def wrap(items: Iterable[Item], total: int) -> Iterator[Item]:
        with stage(label, total, part) as shown:
            for done, item in enumerate(items, start=1):
                yield item
                report(shown, done)

    return wrap


@contextmanager
def tally(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A stage with a text; yields a function that sets the parts done and the text."""
    with stage(label, total) as shown:
        yield lambda done, text: report(shown, done, text)


def on_terminal() -> bool:
    """Whether bars are shown, in place of lines."""
    return Console(stderr=True).is_terminal


def duration(seconds: float | None) -> str:
    """As in `45 s`, `12 min` or `3.5 h`; empty for an unknown time."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
