"""Where there is no room, no lock and no permission: one line that helps, and nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Shown
from filelock import Timeout

from debias import locks
from debias.assets import cache, network
from debias.cli import workers
from debias.files import disk_error, whole_file, whole_folder
from debias.locks import WITHOUT_LOCKS, Lock
from debias.models import embedded, ranks
from debias.records import UserError
from debias.training import module

Run = Callable[..., Shown]


def message(error: str) -> str:
    """The error line at the end of the error output, which must be the only one."""
    assert "Traceback" not in error
    assert "Logging error" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


# ---------------------------------------------------------------- locks


def no_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def missing(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(locks, "_warned", set())


@pytest.mark.parametrize("number", sorted(WITHOUT_LOCKS))
def test_without_locks_a_file_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    no_locks(monkeypatch, number)
    first, second = Lock(tmp_path / "a.lock"), Lock(tmp_path / "a.lock")
    first.acquire()
    with pytest.raises(Timeout):
        second.acquire()
    assert f"process {os.getpid()} on " in second.holder()
    assert not second.is_free()
    first.release()
    assert second.is_free()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"the file system of {tmp_path} has no locks: using files in their place"
    ]


def test_the_lock_of_a_process_that_is_gone_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch, errno.ENOSYS)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "a.lock.held").write_text(f"{gone.pid}\n{os.uname().nodename}\n")
    assert Lock(tmp_path / "a.lock").is_free()
    (tmp_path / "a.lock.held").write_text(f"{gone.pid}\nanother-host\n")
    assert not Lock(tmp_path / "a.lock").is_free()


def test_who_waits_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Free at the third try: after one second and after half a minute there is a line."""
    holder, waiting = Lock(tmp_path / "a.lock"), Lock(tmp_path / "a.lock")
    caplog.set_level(logging.INFO)
    tries: list[float] = []
    take = Lock._take

    def third_time(lock: Lock, timeout: float) -> None:
        tries.append(timeout)
        if len(tries) == 3:
            holder.release()
        take(lock, 0)

    holder.acquire()
    monkeypatch.setattr(Lock, "_take", third_time)
    waiting.wait("convert a model")
    assert tries == [1.0, 30.0, 30.0]
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert all(line.startswith(f"waiting for process {os.getpid()} on ") for line in lines)
    assert all(", since " in line and line.endswith(" to convert a model") for line in lines)


@pytest.mark.parametrize("number", sorted(WITHOUT_LOCKS))
def test_a_run_goes_on_where_there_are_no_locks(
    debias: Run, few: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    no_locks(monkeypatch, number)
    shown = debias("evaluate", *few)
    assert shown.status == 0, shown.err
    assert "has no locks" in caplog.text


# ---------------------------------------------------------------- what is said about a disk


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk that holds {} is full; free space"),
        (errno.EDQUOT, "your quota on the disk that holds {} is used up; free space"),
        (errno.EROFS, "{}: read-only file system; work in a folder that you may write to"),
        (errno.EACCES, "{}: permission denied; work in a folder that you may write to"),
        (errno.ENOENT, "{}: there is no such file or folder; check the path"),
        (errno.EIO, "{}: Input/output error; check that disk"),
    ],
)
def test_an_error_of_the_disk_has_path_and_remedy(tmp_path: Path, number: int, said: str) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path / "x"))
    assert disk_error(error).startswith(said.format(tmp_path / "x"))


def test_a_file_in_the_way_and_a_link_to_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, said in (("file", "is a file where a folder is needed"), ("link", "which does not exist")):
        with pytest.raises(OSError, match=name) as caught:
            (tmp_path / name / "run").mkdir(parents=True)
        assert disk_error(caught.value).startswith(f"{tmp_path / name} is a")
        assert said in disk_error(caught.value)


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # Python's own write
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),  # Arrow
    ],
)
def test_a_full_disk_is_named_whatever_library_meets_it(tmp_path: Path, raised: Exception) -> None:
    for whole in (whole_file, whole_folder):
        with pytest.raises(OSError, match="No space") as caught, whole(tmp_path / "x"):
            raise raised
        assert disk_error(caught.value).startswith(f"the disk that holds {tmp_path / 'x'} is full")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- commands


@pytest.fixture
def few(small: list[str]) -> list[str]:
    """Words of a small `evaluate`."""
    return [*(w for w in small if w.startswith(("model=", "threads", "eval.crows"))), "eval=[crows_pairs]"]


RUN = ["eval=[crows_pairs]", "model=nowhere"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", *RUN],
        ["evaluate", *RUN],
        ["generate", "llm=openai", "llm.model=m"],
        ["generate", "generate.dry_run=true"],
        ["run", "-m", "seed=1,2", *RUN],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("outputs", ["file", "dangling", "read-only"])
def test_outputs_that_cannot_be_a_folder(
    debias: Run, tmp_path: Path, words: list[str], outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and status 1; what is there stays as it is."""
    place, said = tmp_path / "outputs", "file where a folder is needed"
    if outputs == "file":
        place.write_text("mine")
    elif outputs == "dangling":
        place.symlink_to(tmp_path / "nowhere")
        said = "does not exist"
    else:
        monkeypatch.setattr(Path, "mkdir", read_only)
        said = "read-only file system; work in a folder that you may write to"
    shown = debias(*words)
    assert shown.status == 1
    told = shown.out + shown.err
    assert said in told.replace("\n", "")
    assert "Traceback" not in told
    assert [p.name for p in tmp_path.iterdir()] == ([] if outputs == "read-only" else ["outputs"])


def read_only(path: Path, **_: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(path))


def fails(monkeypatch: pytest.MonkeyPatch, number: int, about: str) -> None:
    """Let the disk refuse every file with a word in its path, once it is written."""
    whole = os.fsync

    def refusing(file: int) -> None:
        if about in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(number, os.strerror(number))
        whole(file)

    monkeypatch.setattr(os, "fsync", refusing)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk that holds {} is full"),
        (errno.EDQUOT, "your quota on the disk that holds {} is used up"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_half(
    debias: Run, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """Neither the scores nor the state `failed` nor a line of the log can be written."""
    fails(monkeypatch, number, "/outputs/full/default/likelihoods.parquet")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(logging.StreamHandler, "flush", lambda self: full() if hasattr(self, "failed") else None)
    shown = debias("evaluate", *few, "name=full", "hydra.run.dir=outputs/full/default")
    assert shown.status == 1
    place = f"{tmp_path}/outputs/full/default/likelihoods.parquet"
    assert message(shown.err).endswith(f"{said.format(place)}; free space and run the same command again")
    assert shown.err.count("run.log is incomplete") == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_doctor_in_a_read_only_folder(debias: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "The woman was stoic.", "target": "woman", "attribute": "stoic"}\n')
    fails(monkeypatch, errno.EROFS, "a.quality.html")
    shown = debias("doctor", "a.jsonl", "--html", "leakage=false", "bias=gender")
    assert message(shown.err) == (
        "error: a.quality.html: read-only file system; work in a folder that you may write to, or change its "
        "permissions"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


# ---------------------------------------------------------------- the cache


def test_a_run_needs_no_cache(debias: Run, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that nobody can make: a warning, once, and the run ends well."""
    monkeypatch.delenv("DEBIAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nobody/cache")
    monkeypatch.setattr(cache, "_warned", set())
    few = [w for w in small if not w.startswith(("eval.stereo", "eval.perp", "training.epochs"))]
    shown = debias("run", *few, "eval=[crows_pairs]", "training.epochs=1")
    assert shown.status == 0, shown.err
    assert shown.err.count("the cache cannot be written, so some work is repeated: ") == 1


def test_a_full_cache_is_a_warning(
    debias: Run, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    fails(monkeypatch, errno.ENOSPC, "/cache/scores/")
    shown = debias("evaluate", *few)
    assert shown.status == 0, shown.err
    assert f"so some work is repeated: the disk that holds {tmp_path}/cache/scores/" in shown.err
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_embedded_model_is_converted_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(_: str, folder: Path) -> None:
        with whole_folder(folder):
            made.append(folder)

    monkeypatch.setenv("DEBIAS_CACHE", "/proc/nobody/cache")
    monkeypatch.setattr(embedded, "_convert", convert)
    folder = embedded.converted("smollm2")
    assert embedded.converted("smollm2") == folder  # once a process
    assert made == [Path("/proc/nobody/cache/models") / folder.name, folder][1:]


# ---------------------------------------------------------------- the network


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*network.PROXIES, *network.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


NEEDS_NETWORK = [
    ["generate", "llm=openai", "generate.benchmarks=false"],
    ["run", *RUN],
    ["evaluate", *RUN],
    ["show", "model=nowhere"],
    ["export", "adapter.path=a", "merge=true", "model=nowhere"],
    ["export", "adapter.path=a", "repo=me/mine"],  # the embedded model: only the upload needs the network
    ["doctor", "own.jsonl", "leakage=false", "loss=true", "model=nowhere"],
]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://user:secret@h:1080", "ALL_PROXY=socks5://***@h:1080: SOCKS proxies need a package"),
        ("https_proxy", "gopher://h:70", "https_proxy=gopher://h:70 is not a proxy that can be used"),
        ("HTTP_PROXY", "socks4://h:1080", "HTTP_PROXY=socks4://h:1080 is not a proxy that can be used"),
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE=/nowhere.pem does not exist"),
        ("REQUESTS_CA_BUNDLE", "/etc/hostname", "REQUESTS_CA_BUNDLE=/etc/hostname is not a file of certificates"),
    ],
)
def test_a_variable_that_keeps_us_from_the_network_is_named(
    debias: Run, tmp_path: Path, no_proxies: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    no_proxies.setenv(name, value)
    no_proxies.setitem(sys.modules, "socksio", None)
    no_proxies.setenv("OPENAI_API_KEY", "k")
    no_proxies.delenv("HF_HUB_OFFLINE")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    (tmp_path / "own.jsonl").write_text('["A man wept.", "man", "wept"]\n' * 20)
    for words in NEEDS_NETWORK:
        shown = debias(*words)
        assert shown.status == 1
        line = message(shown.err)
        assert said in line
        assert f"unset {name}" in line
        assert "secret" not in shown.err
    network.check("http://127.0.0.1:8000/v1")  # is not asked for at all


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:8000/v1", True), ("http://127.0.0.9/v1", True), ("http://[::1]:1/v1", True),
        ("http://10.0.0.1/v1", False), ("https://localhost.example.org", False),
    ],
)  # fmt: skip
def test_this_machine_is_not_behind_a_proxy(no_proxies: pytest.MonkeyPatch, url: str, own: bool) -> None:
    assert network.is_loopback(url) == own


# ---------------------------------------------------------------- Slurm


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["RANK", "WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_slurm_is_ignored_where_no_step_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script or a shell of `salloc --ntasks=4`, this is one process, and it trains."""
    slurm(monkeypatch, NTASKS="4", PROCID="0", JOB_ID="7", JOB_NAME="batch")
    assert (ranks.launched_rank(), ranks.launched_processes()) == (0, 1)
    trainer = module.make_trainer(accelerator="cpu", devices=1)
    assert trainer.world_size == 1
    slurm(monkeypatch, NTASKS="4", PROCID="0", STEP_ID="0", STEP_NUM_TASKS="1")  # srun --pty bash
    assert not ranks.in_slurm_step()


def test_the_tasks_of_a_step_are_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, NTASKS="4", PROCID="3", STEP_ID="0", STEP_NUM_TASKS="4", JOB_NAME="train")
    assert (ranks.launched_rank(), ranks.launched_processes()) == (3, 4)
    with pytest.raises(UserError, match="srun --ntasks-per-node=N"):
        module.make_trainer(accelerator="cpu", devices=1)


# ---------------------------------------------------------------- Ray


def test_ray_behind_a_long_path_says_so_and_the_table_stays_right(
    debias: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")

    def too_long(**_: object) -> None:
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(ray, "init", too_long)
    words = ["evaluate", "-m", *few, "scoring.token_budget=256,512"]
    assert debias(*words, "scoring.token_budget=256").status == 0
    shown = debias(*words, "hydra/launcher=ray")
    assert shown.status == 1
    told = " ".join(shown.out.split())
    assert "the launcher stopped: Ray's sockets lie below TMPDIR=" in told
    assert "set TMPDIR=/tmp or another short path" in told
    assert "2 jobs: 1 done earlier, 1 not started" in told


# ---------------------------------------------------------------- run.log


def test_the_log_of_a_run_names_its_files_and_nothing_else_advertises(debias: Run, small: list[str]) -> None:
    few = [w for w in small if not w.startswith(("eval.stereo", "eval.perp", "training.epochs"))]
    shown = debias("run", *few, "eval=[crows_pairs]", "training.epochs=1", "name=told")
    assert shown.status == 0, shown.err
    folder = Path("outputs/told")
    log = (folder / "run.log").read_text()
    last = log.splitlines()[-1]
    for file in folder.rglob("*"):
        assert file.is_dir() or str(file.relative_to(folder)) in last
    assert "Tip" not in log
    assert all(line[:3] == "202" for line in log.splitlines())  # no line without its time
    assert not [line for line in shown.err.splitlines() if line != line.strip()]
    assert shown.err.splitlines()[0].endswith(f"] folder: {folder}")
    assert "machine: " in shown.err.splitlines()[1]
    for stage in ("read the data", "load the model", "train", "score the base model", "write the report"):
        assert f"] {stage}: begins" in shown.err
        assert f"] {stage}: done in " in shown.err


@pytest.mark.parametrize(
    ("load", "said"), [(1.9, "2 cores"), (8.2, "2 cores, and 8 processes that want them: everything takes longer")]
)
def test_cores_are_counted_and_a_load_above_them_is_named(
    monkeypatch: pytest.MonkeyPatch, load: float, said: str
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert workers.described().startswith(said)


def test_a_terminal_shows_the_folder_first(debias: Run) -> None:
    """Before the model, which does not exist here, is looked for."""
    shown = debias("evaluate", *RUN, terminal=True)
    assert shown.status == 1
    assert shown.err.startswith("folder: outputs/evaluate/")
