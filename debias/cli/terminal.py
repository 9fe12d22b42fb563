"""What a job shows on the terminal and writes to run.log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

# Files and pipes get wide lines, unless the environment says how wide the reader's window is.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def next_step(text: str) -> None:
    """The last line of a command: what to do now."""
    console.print(Text(f"\nnext: {text}"), soft_wrap=True)


def page(path: Path) -> None:
    """Name a page by an address that a terminal can open."""
    console.print(Text(f"page: {path.resolve().as_uri()}"), soft_wrap=True)


def shown(path: Path) -> Path:
    """A path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log this program's messages to the terminal and everything to the run's file, for as long as the job runs."""
    root = logging.getLogger()
    before = root.handlers, root.level
    file = RunLog(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.addFilter(_belongs)
    terminal = _terminal()
    terminal.setLevel(logging.INFO)
    terminal.addFilter(logging.Filter("debias"))
    root.handlers, root.level = [file, terminal], logging.INFO
    logging.getLogger("debias").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.handlers, root.level = before
        with suppress(OSError):  # a full disk
            file.close()


def _belongs(record: logging.LogRecord) -> bool:
    """Whether a record belongs into run.log: Lightning advertises below WARNING. Warnings are put into one line."""
    if record.name.startswith(("pytorch_lightning", "lightning")) and record.levelno < logging.WARNING:
        return False
    if record.name == "py.warnings":
        record.msg, record.args = " ".join(record.getMessage().split()), ()
    return True


class RunLog(logging.FileHandler):
    """A run's log. If the disk does not take a line, it says so once and the run goes on."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Print one line in place of logging's traceback."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and not self.failed:
            self.failed = True
            print(f"run.log is incomplete: {self.baseFilename}: {error.strerror}", file=sys.stderr)


def _terminal() -> logging.Handler:
    """Wrapped lines for a terminal; for files and pipes one line a message, with nothing around it."""
    if not sys.stderr.isatty():
        plain = logging.StreamHandler(sys.stderr)
        plain.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%X"))
        return plain
    lines = RichHandler(
        console=Console(stderr=True),
        show_path=False,
        show_level=False,
        log_time_format="[%X]",
        highlighter=NullHighlighter(),
    )
    lines.addFilter(lambda record: record.name != "debias.progress")  # bars show it
    return lines


def quieten() -> None:
    """Send the messages of other libraries to run.log only."""
    import transformers

    for name in ("pytorch_lightning", "lightning_fabric", "lightning", "huggingface_hub"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
