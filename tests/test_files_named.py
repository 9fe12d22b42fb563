"""The log of a command names every file that the command wrote, also if it failed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from chat_server import serving
from command import Shown, run
from test_evaluation import save_adapter
from test_generate import words as words_of_generate
from test_generate import writer

from debias.files import files_named, note, write_text
from debias.jobs import evaluate, generate
from debias.jobs import run as training
from debias.models.base import BaseModel

GOOD = '{"sentence": "The woman was stoic.", "target": "woman", "attribute": "stoic"}\n'


def files_in(*folders: Path) -> dict[Path, int]:
    """When each file was last written; locks hold nothing that anybody reads."""
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in found if ".lock" not in path.name}


def names_in(log: str, cwd: Path) -> Iterator[Path]:
    """The paths in the lines that name files."""
    for line in log.splitlines():
        if told := re.search(
            r"(?:\] |debias\.files: )(?:files in (\S+): ([^;]+))?(?:; )?(?:(?:other )?files: (.*))?$", line
        ):
            yield from (cwd / told[1] / name for name in (told[2] or "").split(", ") if told[1])
            yield from (cwd / name for name in (told[3] or "").split(", ") if name)


@pytest.fixture
def cwd(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an adapter, data, and a cache of its own."""
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    save_adapter(BaseModel(str(tiny)).load(), tmp_path / "adapter", 3)
    (tmp_path / "own.jsonl").write_text(GOOD * 3, encoding="utf-8")
    return tmp_path


FEW = [
    "eval=[crows_pairs]", "eval.crows_pairs.limit=4", "eval.crows_pairs.whole=[]", "threads=1", "name=told",
]  # fmt: skip
TRAIN = [
    "data.n=8", "training.batch_size=4", "training.epochs=1", "training.num_neutral=2", "neutral=own", "neutral.n=4",
    "neutral.longest=8", "show.samples=1", "show.longest=3",
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["run", *FEW, *TRAIN, "logger=tensorboard"],
        ["evaluate", *FEW, "adapter.path=adapter"],
        ["show", "A", "adapter.path=adapter", "show.samples=1", "show.longest=3"],
        ["export", "adapter.path=adapter", "merge=true", "folder=merged"],
        ["doctor", "own.jsonl", "--html", "--fix", "leakage=false"],
        ["evaluate", "-m", *FEW, "scoring.token_budget=256,512", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_files_are_named(cwd: Path, tiny: Path, words: list[str]) -> None:
    before = files_in(cwd)
    model = [] if words[0] == "doctor" else [f"model={tiny}"]
    check(cwd, before, run(cwd, *words, *model), 0)


def check(cwd: Path, before: dict[Path, int], shown: Shown, status: int) -> None:
    """Every file that is new or newer is in the log of the terminal or of a run."""
    assert shown.status == status, shown.err
    written = {path for path, time in files_in(cwd).items() if before.get(path) != time}
    logs = [shown.err, *(path.read_text(encoding="utf-8") for path in cwd.rglob("run.log"))]
    named = {path.resolve() for log in logs for path in names_in(log, cwd)}
    assert written
    assert {path.resolve() for path in written} - named == set()
    assert all(path.exists() for path in named)


@pytest.mark.parametrize(
    ("words", "owner", "step", "error"),
    [
        (["run", *FEW, *TRAIN], training, "evaluate", ValueError("no luck")),  # a fault of the program: a traceback
        (["run", *FEW, *TRAIN], training, "write_reports", KeyboardInterrupt()),
        (["evaluate", *FEW, "adapter.path=adapter"], evaluate, "write_reports", OSError(errno.ENOSPC, "full", "x")),
    ],
    ids=["traceback", "interrupted", "full disk"],
)
def test_the_files_of_a_failed_job_are_named(
    cwd: Path, tiny: Path, words: list[str], owner: object, step: str, error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(owner, step, fail)
    before = files_in(cwd)
    with nullcontext() if not isinstance(error, ValueError) else pytest.raises(ValueError, match="no luck"):
        shown = run(cwd, *words, f"model={tiny}")
        assert shown.status == (130 if isinstance(error, KeyboardInterrupt) else 1)
        assert "files: " not in shown.err  # the run's own log has them
    check(cwd, before, Shown(1, "", ""), 1)
    assert f"files in {cwd}/outputs/told: " in (cwd / "outputs/told/run.log").read_text().splitlines()[-1]


def test_the_files_of_a_sweep_with_a_failed_job_are_named(cwd: Path, tiny: Path) -> None:
    before = files_in(cwd)
    words = ["run", "-m", *FEW, *TRAIN, "training.lr=1e-3,1e30", "training.warmup=0", f"model={tiny}"]
    check(cwd, before, run(cwd, *words), 1)


def test_the_files_of_reports_and_archives_are_named(cwd: Path, tiny: Path) -> None:
    assert run(cwd, "evaluate", *FEW, f"model={tiny}").status == 0
    for words in (["report", "outputs"], ["archive", "outputs", "--out", "all.parquet"]):
        before = files_in(cwd)
        check(cwd, before, run(cwd, *words), 0)


@pytest.mark.parametrize(
    ("more", "status"),
    [([], 0), (["preview=2"], 0), (["llm.max_cost_usd=0.000001"], 3)],
    ids=["set", "preview", "stopped"],
)
def test_the_files_of_a_generated_set_are_named(cwd: Path, more: list[str], status: int) -> None:
    with serving(reply=writer) as server:
        before = files_in(cwd)
        check(cwd, before, run(cwd, *words_of_generate(server, "generate.n=8", *more)), status)


def test_the_files_of_an_interrupted_set_are_named(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "data_card", interrupted)
    with serving(reply=writer) as server:
        before = files_in(cwd)
        check(cwd, before, run(cwd, *words_of_generate(server, "generate.n=8")), 130)


def test_only_what_the_block_wrote_and_what_is_still_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A block names what another within it has not, a job also what was written just before; no file is named twice."""
    caplog.set_level("INFO")
    with files_named():
        write_text(tmp_path / "a", "")
        note(tmp_path / "a")
        with files_named():
            write_text(tmp_path / "b", "")
        with files_named(tmp_path / "folder"):
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder/c").touch()
        write_text(tmp_path / "folder/status", "")
        write_text(tmp_path / "d", "")
        write_text(tmp_path / "gone", "")
        (tmp_path / "gone").unlink()
    note(tmp_path / "b")  # nobody asked
    assert caplog.messages == [
        f"files: {tmp_path / 'b'}",
        f"files in {tmp_path / 'folder'}: c; other files: {tmp_path / 'a'}",
        f"files: {tmp_path / 'd'}",
    ]
