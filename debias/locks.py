"""Locks between processes: on file systems that have them and on those that do not, and who holds one."""

from __future__ import annotations

import errno
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

log = logging.getLogger(__name__)

# What `flock` raises on file systems without locks. 524 is the kernel's own ENOTSUPP, which some of them let out.
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, 524}
AGAIN = 30.0  # seconds between two lines about the same wait

_warned: set[Path] = set()


class Lock:
    """A lock that one process holds at a time.

    The system releases it when its holder dies. On a file system without locks a file that names the holder takes its
    place; it counts as released once that process has ended on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BaseFileLock = FileLock(path, fallback_to_soft=False)

    def acquire(self, timeout: float = 0) -> None:
        """Take the lock within so many seconds. Raises `filelock.Timeout` if another process holds it."""
        self._take(timeout)
        if isinstance(self._lock, FileLock):
            with suppress(OSError):  # only for the lines of those that wait
                self.path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")

    def _take(self, timeout: float) -> None:
        try:
            self._lock.acquire(timeout=timeout)
        except OSError as error:  # Timeout is one as well
            if error.errno not in WITHOUT_LOCKS or isinstance(self._lock, SoftFileLock):
                raise
            if self.path.parent not in _warned:
                _warned.add(self.path.parent)
                log.warning("the file system of %s has no locks: using files in their place", self.path.parent)
            self._lock = SoftFileLock(f"{self.path}.held")
            self._lock.acquire(timeout=timeout)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold the lock for the block. Raises `filelock.Timeout` if another process holds it."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let other processes take the lock."""
        self._lock.release()

    def is_free(self) -> bool:
        """Whether no process holds the lock."""
        try:
            self._take(0)
        except Timeout:
            return False
        self.release()
        return True

    def holder(self) -> str:
        """The process that holds the lock, and since when, in words."""
        file = Path(self._lock.lock_file)
        try:
            process, host, *_ = file.read_text(encoding="utf-8").split("\n")
            since = time.strftime("%d %b %H:%M:%S", time.localtime(file.stat().st_mtime))
            return f"process {int(process)} on {host}, since {since}"
        except (OSError, ValueError):
            return "another process"

    @contextmanager
    def held(self, work: str) -> Iterator[None]:
        """Hold the lock for the block; see `wait`."""
        self.wait(work)
        try:
            yield
        finally:
            self.release()

    def wait(self, work: str) -> None:
        """Take the lock as soon as it is free, and say every half minute who holds it.

        Args:
            work: what the holder does, in words that follow "to".
        """
        timeout = 1.0
        while True:
            try:
                return self.acquire(timeout)
            except Timeout:
                remedy = f"; if it is gone, remove {self._lock.lock_file}" if timeout == AGAIN and self._soft else ""
                log.info("waiting for %s to %s%s", self.holder(), work, remedy)
                timeout = AGAIN

    @property
    def _soft(self) -> bool:
        return isinstance(self._lock, SoftFileLock)
