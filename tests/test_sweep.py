"""Sweeps: planned, kept going, accounted for, and safe to launch twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from debias import results
from debias.cli import sweep
from debias.cli.config import config_dir
from debias.models.base import BaseModel
from debias.report.many_runs.sweep_progress import State, duration, ended, markdown, state_of, summary, time_left
from debias.results import read_status, running
from debias.run_folder import RunFolder, record_failure

Run = Callable[..., tuple[int, str, str]]
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)


def folder_with(path: Path, **status: object) -> Path:
    path.mkdir()
    (path / "status.json").write_text(json.dumps(status), encoding="utf-8")
    (path / "cost.json").write_text('{"seconds": 90.0}', encoding="utf-8")
    return path


def test_states_of_jobs(tmp_path: Path) -> None:
    def state(path: Path) -> tuple[str, str]:
        found = state_of(path, "x", BEGAN)
        return found.state, found.error

    assert state(tmp_path / "none") == ("not started", "")
    done = folder_with(tmp_path / "done", state="done", ended="2026-01-01T12:00:01+00:00")
    assert state(done) == ("done", "")
    before = folder_with(tmp_path / "before", state="done", ended="2026-01-01T11:59:59+00:00")
    assert state(before) == ("done earlier", "")
    record_failure(before, ValueError("holds another run"))
    assert state(before) == ("failed", "ValueError: holds another run")
    failed = folder_with(tmp_path / "failed", state="failed", error="ValueError: many\nlines\n    object_type=dict\n")
    assert state(failed) == ("failed", "lines")
    interrupted = folder_with(tmp_path / "interrupted", state="failed", error="interrupted")
    assert state(interrupted) == ("interrupted", "")
    killed = folder_with(tmp_path / "killed", state="running")
    assert state(killed) == ("interrupted", "")
    with FileLock(killed / ".lock"):
        assert state(killed) == ("running", "")
        assert running(killed)
    assert not running(killed, wait=True)


def test_a_job_that_fails_before_it_has_its_folder_is_recorded_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.mkdir()
    record_failure(path, ValueError("no such corpus"))
    assert json.loads((path / "status.json").read_text())["error"] == "ValueError: no such corpus"
    folder = RunFolder(path, "a: 1", {"config_sha256": "a", "data_sha256": "b", "code_sha256": "c"})
    with folder.claim() as to_do:
        assert to_do
        folder.start()
        folder.finish({})
    assert state_of(path, "x", BEGAN).state == "done"


def test_table_and_page() -> None:
    states = [State(Path("o/a"), "seed=1", "done", 90.0), State(Path("o/b"), "seed=2", "failed", None, "no | space")]
    assert summary(states) == "2 jobs: 1 done, 1 failed"
    assert ended(states[0]) == "done in 90 s: seed=1"
    assert ended(states[1]) == "failed: seed=2: no | space"
    more = [*states, State(Path("o/c"), "seed=3", "running"), State(Path("o/d"), "seed=4", "not started")]
    assert time_left(more, 60.0) == "about 2 min left"  # one job a minute, two to go
    assert time_left(states, 60.0) == time_left(more[1:], 60.0) == ""
    page = markdown("a sweep", states).splitlines()
    assert page[-2].startswith("| seed=1 | done | 90 s |")
    assert page[-1].endswith("| no \\| space |")
    assert [duration(s) for s in (None, 45.4, 720, 12600)] == ["", "45 s", "12 min", "3.5 h"]


def test_plan_names_the_folders_that_hydra_will_use() -> None:
    words = ["-m", "data=targeted,cda", "seed=10,2", "threads=1", "name=x", "hydra/launcher=basic"]
    planned = sweep.plan("run", config_dir(), words)
    assert list(planned.jobs.items()) == [
        (Path("outputs/x/data-cda+seed-2"), "data=cda seed=2"),
        (Path("outputs/x/data-cda+seed-10"), "data=cda seed=10"),
        (Path("outputs/x/data-targeted+seed-2"), "data=targeted seed=2"),
        (Path("outputs/x/data-targeted+seed-10"), "data=targeted seed=10"),
    ]
    assert planned.constants == ["threads=1"]


@pytest.fixture
def fast(small: list[str]) -> list[str]:
    """Jobs that only score four pairs of sentences of CrowS-Pairs."""
    return [small[0], "threads=1", "eval=[crows_pairs]", "eval.crows_pairs.limit=2", "eval.crows_pairs.whole=[]"]


def test_a_failing_job_does_not_stop_the_others(debias: Run, fast: list[str], tmp_path: Path) -> None:
    """The first of three jobs fails; the others are done, the table says so, and the next launch tries it again."""
    words = ["evaluate", "-m", *fast, "adapter.path=nowhere,null", "scoring.token_budget=256,512"]
    status, shown, error = debias(*words)
    assert status == 1
    assert "4 jobs: 2 done, 2 failed" in shown
    assert "failed: " in error
    assert "nowhere" in error
    assert "95% interval" not in shown  # a sweep has a line for each job, not a table
    assert "[4/4] " in error
    assert shown.splitlines()[-1] == (
        "next: the same command again, for the jobs that are not done; or debias report outputs/evaluate"
    )
    assert f"page: {tmp_path.as_uri()}/outputs/evaluate/sweep.md" in shown
    states = [json.loads(p.read_text())["state"] for p in (tmp_path / "outputs/evaluate").rglob("status.json")]
    assert sorted(states) == ["done", "done", "failed", "failed"]
    page = (tmp_path / "outputs/evaluate/sweep.md").read_text()
    assert page.count("| failed |") == 2
    assert page.count("| done |") == 2
    status, shown, _ = debias(*words)
    assert status == 1
    assert shown.count("done before, nothing to do") == 2
    assert "4 jobs: 2 done earlier, 2 failed" in shown


def test_a_job_that_fails_early_leaves_its_error_in_its_folder(debias: Run, fast: list[str], tmp_path: Path) -> None:
    status, shown, _ = debias("run", "-m", *fast, "data.bias=height,age")
    assert status == 1
    assert shown.count("there is no corpus of ours") == 2
    errors = [json.loads(p.read_text())["error"] for p in (tmp_path / "outputs/run").rglob("status.json")]
    assert [e.partition(" (")[0] for e in sorted(errors)] == [
        "UserError: there is no corpus of ours for data.bias='age'",
        "UserError: there is no corpus of ours for data.bias='height'",
    ]


def test_a_job_in_other_hands_is_waited_for(
    debias: Run, fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launch holds one of two folders until it is waited for: that is no error, and its end is awaited."""
    words = ["evaluate", "-m", *fast, "scoring.token_budget=256,512"]
    assert debias(*words)[0] == 0
    held = next((tmp_path / "outputs/evaluate").glob("*/.lock"))
    claimed, awaited = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(held):
            claimed.set()
            awaited.wait(60)

    def running_and_told(path: Path, wait: bool = False) -> bool:
        if wait:
            awaited.set()
        return running(path, wait)

    monkeypatch.setattr(results, "running", running_and_told)
    threading.Thread(target=hold).start()
    claimed.wait()
    status, shown, _ = debias(*words)
    assert status == 0
    assert awaited.is_set()
    assert shown.count("done before") == 1
    assert "2 jobs: 2 done earlier" in shown


@pytest.mark.slow
def test_two_launches_at_once_train_every_run_once(tmp_path: Path, small: list[str]) -> None:
    """The same command twice at the same moment: both end well, and of three runs three are trained, not six."""
    words = [sys.executable, "-m", "debias", "run", "-m", *small, "data=targeted", "seed=1,2,3", "name=both"]
    environment = {**os.environ, "DEBIAS_CACHE": str(tmp_path / "cache")}
    launches = [
        subprocess.Popen(
            words, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for launch in launches:
        shown, errors = launch.communicate(timeout=600)
        assert launch.returncode == 0, errors[-2000:]
        assert "3 jobs: " in shown
    runs = sorted((tmp_path / "outputs/both").glob("*/status.json"))
    assert [json.loads(path.read_text())["state"] for path in runs] == ["done"] * 3
    logs = [path.with_name("run.log").read_text() for path in runs]
    assert [text.count(", trained in ") for text in logs] == [1, 1, 1]
    assert sum(text.count("scoring afresh: base") for text in logs) == 3  # three benchmarks


def test_the_jobs_of_a_process_share_a_tokenizer_until_its_files_change(tiny: Path, tmp_path: Path) -> None:
    """A fresh one for each job would leave megabytes behind that never come back."""
    shutil.copytree(tiny, tmp_path / "model")
    first, second = (BaseModel(str(tmp_path / "model")).tokens().tokenizer for _ in range(2))
    assert first is second
    os.utime(tmp_path / "model/tokenizer.json", (1, 1))
    assert BaseModel(str(tmp_path / "model")).tokens().tokenizer is not first


def test_settings_of_a_benchmark_that_is_left_out_do_no_harm(debias: Run, fast: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "# A question\ndefaults: [run, _self_]\nname: mine\neval: {stereoset: {limit: 60}}\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n"
    )
    status, shown, _ = debias("sweep", "mine.yaml", *fast, "data.bias=age")
    assert status == 1
    assert shown.count("there is no corpus of ours for data.bias='age'") == 2  # and nothing about StereoSet


def aged(cwd: Path, **changes: object) -> Path:
    """One run's folder, with another status."""
    path = sorted((cwd / "outputs/evaluate").rglob("status.json"))[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path.parent


def test_a_run_that_other_code_finished_is_shown_as_done_by_other_code(
    debias: Run, fast: list[str], tmp_path: Path
) -> None:
    """Neither failed nor repeated: the sweep says what it is, and takes it when told to."""
    words = ["evaluate", "-m", *fast, "scoring.token_budget=256,512"]
    assert debias(*words)[0] == 0
    aged(tmp_path, code_sha256="of another day")
    status, shown, error = debias(*words)
    assert status == 1
    assert "2 jobs: 1 done earlier, 1 by other code" in shown
    assert "done, by other code" in shown
    assert "1 finished by other code of debias: accept_other_code=true takes their figures" in " ".join(shown.split())
    assert "failed" not in shown + error
    assert "| done, by other code |" in (tmp_path / "outputs/evaluate/sweep.md").read_text()
    status, shown, _ = debias(*words, "accept_other_code=true")
    assert status == 0
    assert "2 jobs: 1 done earlier, 1 by other code" in shown
    assert "made by other code of debias and accepted" in shown


def test_a_run_that_is_started_afresh_says_why(debias: Run, fast: list[str], tmp_path: Path) -> None:
    """On the terminal and in the new run's log."""
    words = ["evaluate", *fast]
    assert debias(*words)[0] == 0
    folder = aged(tmp_path, code_sha256="of another day", state="running")
    status, _, error = debias(*words)
    assert status == 0
    reason = "the unfinished run in this folder was made by other code: starting it afresh"
    assert reason in " ".join(error.split())
    assert reason in (folder / "run.log").read_text()
    aged(tmp_path, state="running")
    _, _, error = debias(*words)
    assert "resuming the unfinished run" in " ".join(error.split())
    assert "resuming the unfinished run" in (folder / "run.log").read_text()


def states(cwd: Path, name: str) -> dict[str, str]:
    """The jobs of a sweep and how each stands, and whose link a folder is."""
    folders = [path for path in sorted((cwd / "outputs" / name).iterdir()) if path.is_dir()]
    return {path.name: path.readlink().name if path.is_symlink() else read_status(path)["state"] for path in folders}


def test_a_sweep_with_one_more_key_keeps_what_is_done(debias: Run, fast: list[str], tmp_path: Path) -> None:
    """The names change, and the job that is done already is found by what it is."""
    words = ["evaluate", "-m", *fast, "name=grid"]
    assert debias(*words, "scoring.token_budget=256,512")[0] == 0
    assert states(tmp_path, "grid") == {"token_budget-256": "done", "token_budget-512": "done"}
    status, shown, _ = debias(*words, "scoring.token_budget=256", "scoring.precision=auto,32")
    assert status == 0
    assert "2 jobs: 1 done, 1 done earlier" in shown
    assert states(tmp_path, "grid") == {
        "precision-32": "done", "precision-auto": "token_budget-256",
        "token_budget-256": "done", "token_budget-512": "done",
    }  # fmt: skip
    (tmp_path / "outputs/grid/token_budget-256").rename(tmp_path / "outputs/grid/elsewhere")
    assert "2 jobs: 2 done earlier" in debias(*words, "scoring.token_budget=256", "scoring.precision=auto,32")[1]


def test_a_run_is_found_under_the_name_of_an_earlier_version(debias: Run, fast: list[str], tmp_path: Path) -> None:
    old = tmp_path / "outputs/mine/limit-2+threads-1"
    assert debias("evaluate", *fast, f"hydra.run.dir={old}", "name=mine")[0] == 0
    before = (old / "status.json").stat().st_mtime_ns
    status, shown, _ = debias("evaluate", *fast, "name=mine")
    assert status == 0
    assert "done before, nothing to do: outputs/mine/limit-2+threads-1" in shown
    status, _, error = debias("evaluate", *fast, "name=mine", "data.bias=race")
    assert status == 1
    assert "outputs/mine holds other runs, each in a folder of its own; set name=OTHER" in error
    assert (old / "status.json").stat().st_mtime_ns == before
    assert states(tmp_path, "mine") == {"limit-2+threads-1": "done"}


def test_a_run_and_a_sweep_do_not_share_a_folder(debias: Run, fast: list[str], tmp_path: Path) -> None:
    assert debias("evaluate", *fast, "name=mine")[0] == 0
    assert read_status(tmp_path / "outputs/mine")["state"] == "done"
    status, _, error = debias("evaluate", "-m", *fast, "name=mine", "data.bias=race,gender")
    assert status == 1
    assert error == ("error: outputs/mine holds a single run; give this sweep a folder of its own with name=OTHER\n")


def test_a_sweep_with_other_settings_in_common_is_refused_at_once(debias: Run, fast: list[str], tmp_path: Path) -> None:
    words = ["evaluate", "-m", *fast, "name=grid", "scoring.token_budget=256,512"]
    status, shown, _ = debias(*words)
    assert status == 0
    assert " and 2 other settings, listed in sweep.md" in " ".join(shown.split())  # of five
    page = (tmp_path / "outputs/grid/sweep.md").read_text()
    assert "all jobs: `model=" in page
    assert "`threads=1`" in page
    status, _, error = debias(*words, "data.bias=race")
    assert status == 1
    assert error == (
        "error: outputs/grid holds these runs with other settings (the defaults there, data.bias=race here); keep both "
        "with name=OTHER, or replace them with overwrite=true\n"
    )
    assert (tmp_path / "outputs/grid/sweep.md").read_text() == page
    unnamed = [word for word in words if word != "name=grid"]
    assert debias(*unnamed)[0] == debias(*unnamed, "data.bias=race")[0] == 0
    assert len(states(tmp_path, "evaluate")) == 4
