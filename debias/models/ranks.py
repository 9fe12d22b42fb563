"""Rank and number of processes, when `torchrun` or `srun` started one per device, and what rank 0 tells the others."""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from debias.records import UserError

if TYPE_CHECKING:
    from torch.distributed import Store  # importing torch takes seconds, which a process alone need not spend here

JOIN = timedelta(minutes=10)  # until all processes must have joined
LEAVE = 10.0  # seconds that rank 0 waits at its end for the others to hear of it
POLL = 0.1  # seconds between two looks for a message
PIECE = 4 * 2**20  # bytes; the store refuses values of more than 8 MiB

Say = Callable[[Any], None]
Hear = Callable[[], Any]

_jobs = itertools.count()


def launched_rank() -> int:
    """Rank of this process. Rank 0 owns the run folder, decides and evaluates; the others only share the training."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if in_slurm_step() else None) or 0)


def launched_processes() -> int:
    """Number of processes that the launcher started for this job."""
    return int(os.environ.get("WORLD_SIZE") or (_tasks() if in_slurm_step() else 1))


def in_slurm_step() -> bool:
    """Whether `srun` started several processes. In a batch script Slurm's variables only say what was reserved."""
    return bool(os.environ.get("SLURM_STEP_ID") or os.environ.get("SLURM_STEPID")) and _tasks() > 1


def ignores_slurm() -> bool:
    """Whether Slurm's variables are set although neither `srun` nor `torchrun` started several processes."""
    return "SLURM_NTASKS" in os.environ and not in_slurm_step() and "RANK" not in os.environ


def _tasks() -> int:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


@contextmanager
def leading() -> Iterator[Say]:
    """On rank 0: yields a function that sends a message (anything that JSON can hold) to all other processes.

    When the block ends, processes that wait for another message get None; if it raises, they get the error.
    """
    if launched_processes() < 2:
        yield lambda message: None
        return
    channel = Channel(_store())
    try:
        yield channel.say
    except BaseException as error:
        channel.end(str(error) or type(error).__name__, launched_processes() - 1)
        raise
    channel.end("", launched_processes() - 1)


@contextmanager
def following() -> Iterator[Hear]:
    """On the other ranks: yields a function that waits for the next message of rank 0 and returns it.

    It returns None once rank 0 has ended well, and raises UserError if rank 0 failed or is gone.
    """
    channel = Channel(_store())
    try:
        yield channel.hear
    finally:
        channel.leave()


class Channel:
    """Messages of rank 0 to the other processes of a launch, in the order in which they were sent."""

    def __init__(self, store: Store) -> None:
        self.store, self.number = store, 0

    def say(self, message: Any) -> None:
        """Send a message."""
        text = json.dumps(message)  # ASCII, so that a character is a byte
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        for i, piece in enumerate(pieces):
            self.store.set(f"{self.number}.{i}", piece)
        self.store.set(str(self.number), str(len(pieces)))
        self.number += 1

    def hear(self) -> Any:
        """Wait for the next message; see `following`."""
        try:
            while True:
                ended = self.store.check(["end"])  # asked first: a message that came before the end counts
                if self.store.check([str(self.number)]):
                    break
                if ended:
                    if reason := self.store.get("end").decode():
                        raise UserError(f"the first process has failed, so this one ends too: {reason}")
                    return None
                time.sleep(POLL)
            pieces = range(int(self.store.get(str(self.number))))
            text = b"".join(self.store.get(f"{self.number}.{i}") for i in pieces)
        except RuntimeError as error:  # nobody holds the store any more
            raise UserError(
                "the first process is gone, so this one ends too; its own error output or run.log may say why"
            ) from error
        self.number += 1
        return json.loads(text)

    def end(self, reason: str, others: int) -> None:
        """Say that no message will follow, and give the others time to hear that: the store ends with rank 0.

        Args:
            reason: empty if all is well.
            others: number of processes that listen.
        """
        with suppress(RuntimeError):  # a launcher that is ending has taken the store away
            self.store.set("end", reason)
            last = time.monotonic() + LEAVE
            while self.store.add("left", 0) < others and time.monotonic() < last:
                time.sleep(POLL)

    def leave(self) -> None:
        """Say that this process needs no further message."""
        with suppress(RuntimeError):
            self.store.add("left", 1)


def _store() -> Store:
    """The messages of this job; a process may run several, one after the other."""
    from torch.distributed import PrefixStore

    return PrefixStore(f"debias job {next(_jobs)}", _store_of_launch())


@functools.cache  # kept until the process ends: the trainer connects to the same address
def _store_of_launch() -> Store:
    """What all processes of the launch can read, at the address that the trainer will use too.

    `torchrun` holds it; under `srun` rank 0 does, and waits here until all others have joined.
    """
    from torch.distributed.rendezvous import rendezvous

    addressed = {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not addressed and not in_slurm_step():
        raise UserError(
            "RANK or WORLD_SIZE is set but MASTER_ADDR or MASTER_PORT is not; "
            "start the processes with torchrun or srun, or unset all of them"
        )
    try:
        if not addressed:
            from lightning_fabric.plugins.environments import SLURMEnvironment

            slurm = SLURMEnvironment()
            os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
        store, _, _ = next(rendezvous("env://", launched_rank(), launched_processes(), timeout=JOIN))
    except RuntimeError as error:
        remedy = "start the job with torchrun"
        if in_slurm_step():
            remedy = "use srun --ntasks-per-node=N in place of --ntasks=N; if the port is taken, set MASTER_PORT"
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the processes of this launch cannot reach each other ({reason}); {remedy}") from error
    return store
