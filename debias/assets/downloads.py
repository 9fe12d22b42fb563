"""What other libraries download, shown like all other work: megabytes, time left, a line every half minute in a log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from debias import progress

MEGABYTE = 1e6  # bytes; a smaller file is here before anybody has read its name
STEP = 1e5  # bytes between two changes of what is shown; pooch reports each 1,024


@contextmanager
def downloading(name: str) -> Iterator[Download]:
    """What a library that downloads in the block is to report to."""
    download = Download(name)
    try:
        yield download
    finally:
        download.close()


class Download:
    """A stage that is shown while large files come. Libraries report from several threads."""

    def __init__(self, name: str) -> None:
        self.name, self.came = name, False  # whether there was anything to download
        self._lock = threading.RLock()
        self._shown: ExitStack | None = None

    def tell(self, done: float, total: float | None) -> None:
        """So many bytes are here, of so many; None or 0 if the server does not say."""
        with self._lock:
            self.came |= done > 0
            if total and done >= total:
                self.close()
            elif max(done, total or 0) >= MEGABYTE:
                if self._shown is None:
                    self._shown = ExitStack()
                    self._stage = self._shown.enter_context(progress.stage(f"downloading {self.name}, MB"))
                elif 0 < done - self._stage.done * MEGABYTE < STEP:
                    return
                come = done / MEGABYTE
                if total:
                    progress.report(self._stage, come, total=total / MEGABYTE)
                else:
                    progress.report(self._stage, come, f"{come:,.0f} so far")

    def close(self) -> None:
        """Show it no longer."""
        with self._lock:
            if self._shown is not None:
                self._shown.close()
                self._shown = None

    def tqdm_class(self) -> type:
        """The class of bars for huggingface_hub.

        Of several files it makes a bar of the bytes received, one of the bytes written and one of the files, and closes
        none of them. The last that counts bytes is shown.
        """
        from tqdm import tqdm

        download = self
        current: list[tqdm] = []

        class Bar(tqdm):
            """A bar that draws nothing itself."""

            monitor_interval = 0  # no thread

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": False, "leave": False})
                if self.unit == "B":
                    current[:] = [self]
                    self.display()

            def update(self, n: float | None = 1) -> None:
                """So many bytes more."""
                self.n += n or 0
                self.display()

            def display(self, msg: str | None = None, pos: int | None = None) -> None:
                """Show it."""
                if current == [self]:
                    download.tell(self.n, self.total)

        return Bar

    def pooch_bar(self) -> PoochBar:
        """The bar for pooch."""
        return PoochBar(self)


class PoochBar:
    """A bar whose `total` pooch sets; at the end it counts the whole file once more."""

    def __init__(self, download: Download) -> None:
        self.download, self.total, self.done = download, 0, 0

    def update(self, size: int) -> None:
        """So many bytes more."""
        self.done += size
        self.download.tell(self.done, self.total)

    def reset(self) -> None:
        """Begin again."""
        self.done = 0

    def close(self) -> None:
        """End."""
        self.download.close()
