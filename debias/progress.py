"""Progress bars with an estimate of the time left; silent if there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def bar(label: str) -> Callable[[Iterable[Item], int], Iterator[Item]]:
    """A function that takes an iterable and its length, yields the items and shows `label` with a bar."""

    def wrap(items: Iterable[Item], total: int) -> Iterator[Item]:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            yield from progress.track(items, total=total, description=label)

    return wrap


@contextmanager
def tally(total: int) -> Iterator[Callable[[int, str], None] | None]:
    """A line with a bar and a text; yields a function that sets both, or None if there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(bar_width=16), TextColumn("{task.description}"), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text)
