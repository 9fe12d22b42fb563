"""Log lines of the processes that Lightning spawns for training, brought to the one that started them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


@contextmanager
def lines_brought(trainer: pl.Trainer) -> Iterator[None]:
    """While the block trains, log in this process what the first of the processes says that the trainer spawns.

    So each line goes through the handlers of the job, once. Without such processes nothing happens.
    """
    # A pipe and not a queue, whose lock a killed process would hold for ever. It ends with its last writer.
    receiver, sender = Pipe(duplex=False)
    thread = threading.Thread(target=_log_all, args=(receiver,), daemon=True)
    thread.start()
    trainer.callbacks.insert(0, LinesSent(sender))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sender.close()
        thread.join()


def _log_all(receiver: Connection) -> None:
    while True:
        try:
            record = receiver.recv()
        except (EOFError, OSError):
            return
        logging.getLogger(record.name).handle(record)


class LinesSent(Callback):
    """Sends the log of a spawned process of rank 0 to the process that made this object."""

    def __init__(self, sender: Connection) -> None:
        self.sender, self.process = sender, os.getpid()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace all handlers; only rank 0 sends, since the others would say the same."""
        if os.getpid() == self.process:
            return
        root = logging.getLogger()
        root.handlers = [_Sending(self.sender) if trainer.is_global_zero else logging.NullHandler()]
        root.setLevel(logging.INFO)
        logging.getLogger("debias").setLevel(logging.DEBUG)
        logging.captureWarnings(True)
        for name in ("pytorch_lightning", "lightning_fabric", "lightning"):  # they write to the terminal themselves
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True


class _Sending(QueueHandler):
    def __init__(self, sender: Connection) -> None:
        super().__init__(sender)  # type: ignore[arg-type]
        self.sender = sender

    def enqueue(self, record: logging.LogRecord) -> None:
        self.sender.send(record)
