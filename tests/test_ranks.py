"""Several processes of one launch: the first decides, the others follow, and nobody waits for one that is gone."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from command import gets, start, succeed
from torch.distributed import HashStore

from debias.jobs import run as jobs
from debias.models import ranks
from debias.models.ranks import Channel, Hear
from debias.records import Triplet, UserError

LIMIT = 90  # seconds after which two processes count as hanging
TRIPLETS = [Triplet("The woman is a pilot.", "woman", "pilot", "gender", "by hand", 15, 20, "nurse", None)]


# ---------------------------------------------------------------- messages


def two_ends() -> tuple[Channel, Channel]:
    store = HashStore()
    return Channel(store), Channel(store)


def test_messages_arrive_in_order_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of 22 bytes is sent in pieces of 4."""
    monkeypatch.setattr(ranks, "PIECE", 4)
    rank_0, rank_1 = two_ends()
    rank_0.say({"folder": "a folder"})
    rank_0.say(TRIPLETS)
    rank_1.leave()
    rank_0.end("", others=1)
    assert rank_1.hear() == {"folder": "a folder"}
    assert [Triplet(*row) for row in rank_1.hear()] == TRIPLETS
    assert rank_1.hear() is None


def test_a_failure_of_the_first_process_is_named_after_what_it_had_sent() -> None:
    rank_0, rank_1 = two_ends()
    rank_0.say(1)
    rank_1.leave()
    rank_0.end("the disk is full", others=1)
    assert rank_1.hear() == 1
    with pytest.raises(UserError, match="the first process has failed, so this one ends too: the disk is full"):
        rank_1.hear()


def test_a_process_alone_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "launched_processes", lambda: 1)
    monkeypatch.setattr(ranks, "_store", lambda: pytest.fail("it opened a connection"))
    with ranks.leading() as say:
        say(1)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK or WORLD_SIZE is set but MASTER_ADDR or MASTER_PORT is not"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}, "use srun --ntasks-per-node=N"),
    ],
)
def test_a_launch_without_an_address_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said), ranks.leading():
        pass


# ---------------------------------------------------------------- what the others make of them


class Loads:
    """A model, and the data of a tuning, that say what was done with them."""

    tokens = "its tokens"

    def __init__(self) -> None:
        self.loaded = False

    def load(self) -> Loads:
        self.loaded = True
        return self

    def settled(self, triplets: list[Triplet], tokens: str) -> tuple[str, dict[str, str]]:
        return f"settled by {len(triplets)} for {tokens}", {}


def assisted(monkeypatch: pytest.MonkeyPatch, *messages: Any) -> tuple[bool, list[Any]]:
    """Whether a process that hears these messages loads the model, and what it trains with."""
    rank_0, rank_1 = two_ends()
    for message in messages:
        rank_0.say(message)
    rank_1.leave()
    rank_0.end("", others=1)

    @contextmanager
    def following() -> Iterator[Hear]:
        yield rank_1.hear

    trained: list[Any] = []
    monkeypatch.setattr(jobs, "following", following)
    monkeypatch.setattr(jobs, "train", lambda *given: trained.extend(given))
    parts: Any = Loads()
    jobs.assist(parts, parts)
    return parts.loaded, trained


def test_without_work_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run says nothing, one with a trained adapter says so."""
    assert assisted(monkeypatch) == (False, [])
    assert assisted(monkeypatch, None) == (False, [])


def test_the_others_train_on_what_the_first_process_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They look neither into the run folder, which holds an old adapter, nor at the data."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "status.json").write_text('{"state": "done"}')
    work = {"folder": str(tmp_path), "resumes": False}
    loaded, (tuning, triplets, base, *folders) = assisted(monkeypatch, work, TRIPLETS)
    assert (loaded, tuning, triplets) == (True, "settled by 1 for its tokens", TRIPLETS)
    assert (type(base), folders) == (Loads, [tmp_path, tmp_path / "adapter"])


@pytest.mark.parametrize(
    ("resumes", "said"), [(True, "the first process sees a checkpoint here, but this"), (False, "this process sees a")]
)
def test_another_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resumes: bool, said: str) -> None:
    if not resumes:
        (tmp_path / "checkpoint.ckpt").touch()
    with pytest.raises(UserError, match=f"{said}.* a disk that all machines share"):
        assisted(monkeypatch, {"folder": str(tmp_path), "resumes": resumes}, TRIPLETS)


# ---------------------------------------------------------------- two processes


def launched(cwd: Path, *words: str, slurm: bool = False, **first: Any) -> list[BaseProcess]:
    """The command in two processes with the variables of a launcher that holds no store, so the first one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        start(
            cwd, *words, environment=of_slurm(rank, port) if slurm else of_torch(rank, port), err=cwd / f"err{rank}",
            first=first.get(f"rank_{rank}"),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        process.join(LIMIT)
    hanging = [process for process in processes if process.exitcode is None]
    for process in hanging:
        process.kill()
    assert not hanging, "\n".join((cwd / f"err{rank}").read_text() for rank in (0, 1))
    return processes


def of_torch(rank: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip


def of_slurm(rank: int, port: str) -> dict[str, str]:
    """The address follows from the list of nodes."""
    slurm = {
        "NTASKS": "2", "NTASKS_PER_NODE": "2", "STEP_NUM_TASKS": "2", "PROCID": str(rank), "LOCALID": str(rank),
        "NODEID": "0", "STEP_ID": "0", "JOB_ID": "7", "JOB_NAME": "train", "NODELIST": "127.0.0.1",
    }  # fmt: skip
    return {f"SLURM_{name}": value for name, value in slurm.items()} | {"MASTER_PORT": port}


def statuses(cwd: Path, *words: str, **first: Any) -> list[int | None]:
    return [process.exitcode for process in launched(cwd, *words, **first)]


@pytest.fixture
def brief(small: list[str]) -> list[str]:
    """A run of six steps and twelve texts."""
    few = [w for w in small if not w.startswith(("eval", "data.n", "training.epochs", "neutral", "training.num"))]
    scored = ["eval=[crows_pairs]", "eval.crows_pairs.limit=1", "eval.crows_pairs.whole=[]"]
    return ["run", *few, *scored, "data.n=24", "training.epochs=1", "training.retention=0", "balance=none", "name=two"]


@pytest.mark.slow
def test_the_first_process_decides(brief: list[str], tmp_path: Path) -> None:
    """On a finished run: refused, again with overwrite=true, nothing to do, killed. Nobody waits for ever."""
    succeed(tmp_path, *brief)
    (file,) = tmp_path.rglob("adapter_model.safetensors")
    before = file.stat().st_mtime_ns
    words = [*brief, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "training.batch_size=2"]
    assert statuses(tmp_path, *words) == [1, 1]
    for rank in (0, 1):
        assert "holds a run with another config" in " ".join((tmp_path / f"err{rank}").read_text().split())
    assert file.stat().st_mtime_ns == before
    assert statuses(tmp_path, *words, "overwrite=true") == [0, 0]
    replaced = file.stat().st_mtime_ns
    assert replaced > before
    assert statuses(tmp_path, *words) == [0, 0]
    dies = partial(gets, SIGKILL, "debias.run_folder:RunFolder.claim")
    assert statuses(tmp_path, *words, rank_0=dies) == [-SIGKILL, 1]
    assert "the first process is gone" in (tmp_path / "err1").read_text()
    assert file.stat().st_mtime_ns == replaced
    assert statuses(tmp_path, *words, "overwrite=true", slurm=True) == [0, 0]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "debias", *words]
    for more in (["overwrite=true"], []):  # here the launcher holds the store
        subprocess.run([*launcher, *more], cwd=tmp_path, check=True, capture_output=True, timeout=LIMIT)
    assert file.stat().st_mtime_ns > replaced
