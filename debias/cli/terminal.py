"""What a job shows on the terminal and writes to run.log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

console = Console(width=None if sys.stdout.isatty() else 160)  # files and pipes get wide lines


def shown(path: Path) -> Path:
    """A path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log this program's messages to the terminal and everything to the run's file, for as long as the job runs."""
    root = logging.getLogger()
    before = root.handlers, root.level
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = RichHandler(
        console=Console(stderr=True),
        show_path=False,
        show_level=False,
        log_time_format="[%X]",
        highlighter=NullHighlighter(),
    )
    terminal.setLevel(logging.INFO)
    terminal.addFilter(logging.Filter("debias"))
    root.handlers, root.level = [file, terminal], logging.INFO
    logging.getLogger("debias").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.handlers, root.level = before
        file.close()


def quieten() -> None:
    """Send the messages of other libraries to run.log only."""
    import transformers

    for name in ("pytorch_lightning", "lightning_fabric", "lightning", "huggingface_hub"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
