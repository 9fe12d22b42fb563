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
def logging_to_terminal() -> Iterator[None]:
    """Log this program's messages to the terminal, for as long as the command runs."""
    root = logging.getLogger()
    before = root.handlers, root.level
    root.handlers, root.level = [*root.handlers, _terminal()], logging.INFO
    try:
        yield
    finally:
        root.handlers, root.level = before


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log this program's messages to the terminal and everything to the run's file, for as long as the job runs."""
    root = logging.getLogger()
    before = root.handlers, root.level
    file = RunLog(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.addFilter(_belongs)
    root.handlers, root.level = [file, _terminal()], logging.INFO
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
    """This program's messages: wrapped lines for a terminal; for files and pipes one line each, nothing around it."""
    lines: logging.Handler
    if sys.stderr.isatty():
        lines = RichHandler(
            console=Console(stderr=True),
            show_path=False,
            show_level=False,
            log_time_format="[%X]",
            highlighter=NullHighlighter(),
        )
        # Bars show the progress, and the last lines of a command where the files are.
        lines.addFilter(lambda record: record.name not in ("debias.progress", "debias.files"))
    else:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%X"))
    lines.setLevel(logging.INFO)
    lines.addFilter(logging.Filter("debias"))
    return lines


def quieten() -> None:
    """Send the messages of other libraries to run.log only."""
    import transformers

    for name in ("pytorch_lightning", "lightning_fabric", "lightning", "huggingface_hub"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
