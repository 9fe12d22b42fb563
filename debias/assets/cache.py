"""The cache: what was made once and is shared by all runs. One that cannot be written costs time alone."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import platformdirs

from debias.files import disk_error, remove_unfinished
from debias.locks import Lock
from debias.progress import waiting

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_warned: set[tuple[Path, int | None]] = set()


def cache_dir() -> Path:
    """Folder of converted weights and shared scores: $DEBIAS_CACHE or the platform's cache folder."""
    return Path(os.environ.get("DEBIAS_CACHE") or platformdirs.user_cache_dir("debias")).expanduser()


def cached(
    path: Path, read: Callable[[Path], Value | None], make: Callable[[], Value], write: Callable[[Path, Value], object],
    work: str,
) -> Value:  # fmt: skip
    """What the cache holds at `path`; made and kept there if it holds nothing. Of several processes one makes it.

    Args:
        read: gives None if there is nothing, or nothing whole.
        work: what `make` does, in words that follow "to", for the lines of processes that wait.
    """
    if (found := read(path)) is not None:
        return found
    with made_by_one(path, work):
        found = read(path)
        if found is None:
            found = make()
            try:
                remove_unfinished(path.parent, path.name)
                write(path, found)
            except OSError as error:
                warn(error)
    return found


@contextmanager
def made_by_one(path: Path, work: str) -> Iterator[None]:
    """Let one process at a time make what belongs at `path`; all of them if the cache cannot hold a lock."""
    lock = Lock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting():
            lock.wait(work)
    except OSError as error:
        warn(error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def warn(error: OSError) -> None:
    """Say once in a process that the cache cannot be written, and why."""
    known = cache_dir(), error.errno
    level = logging.DEBUG if known in _warned else logging.WARNING
    log.log(level, "the cache cannot be written, so some work is repeated: %s", disk_error(error))
    _warned.add(known)


def temporary_dir() -> Path:
    """A folder that takes the place of a cache that cannot be written, until this process ends."""
    return Path(_temporary().name)


@lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="debias-")
