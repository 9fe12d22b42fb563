"""Files of users survive everything that the program removes: a canary lies in each folder that it replaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Shown

from debias.jobs import export_plan
from debias.jobs.generated_folder import LEDGER, DataFolder
from debias.records import UserError
from debias.results import read_status
from debias.run_folder import RunFolder

Run = Callable[..., Shown]
IDENTITY = {"config_sha256": "c", "data_sha256": "d", "code_sha256": "p"}
RUN = ["status.json", "config.yaml", "train.csv", "adapter/adapter_config.json", "checkpoint.ckpt"]


def folder(path: Path, **changed: str) -> RunFolder:
    return RunFolder(path / "job", "a: 1\n", {**IDENTITY, **changed})


def written(path: Path, *names: str, state: str = "running") -> Path:
    """A run folder with the files of a run, and others."""
    run = folder(path)
    with run.claim():
        run.start()
        for name in (*RUN[2:], *names):
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text(name)
        if state == "done":
            run.finish({})
    return run.path


def left(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir() and not p.name.startswith(".lock")}


@pytest.mark.parametrize("canary", ["thesis.docx", "adapter/notes.txt", "mine/photo.jpg", "mine.tmp"])
@pytest.mark.parametrize(("state", "changed", "overwrite"), [
    ("done", {}, True), ("done", {"config_sha256": "x"}, True), ("running", {"code_sha256": "x"}, False),
    ("running", {"data_sha256": "x"}, True),
])  # fmt: skip
def test_a_run_with_other_files_is_not_replaced(
    tmp_path: Path, canary: str, state: str, changed: dict[str, str], overwrite: bool
) -> None:
    path = written(tmp_path, canary, state=state)
    before = left(path)
    run = folder(tmp_path, **changed)
    with pytest.raises(UserError, match=f"did not write .*{canary}.*name=OTHER"), run.claim(overwrite), run.working():
        pass
    assert left(path) == before


def test_a_run_is_replaced_only_when_work_begins(tmp_path: Path) -> None:
    """A hidden file and a dead process's half file do not stand in the way; the first stays."""
    path = written(tmp_path, ".DS_Store", "adapter.unchecked.0123abcd.tmp/debias.json", state="done")
    before = left(path)
    with folder(tmp_path).claim(overwrite=True) as to_do:
        assert to_do
    assert left(path) == before
    run = folder(tmp_path)
    with run.claim(overwrite=True), run.working():
        assert left(path) == {"status.json", "config.yaml", ".DS_Store"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = written(tmp_path, state="done")
    out = tmp_path / "out"
    (path / "adapter").rename(out)
    (path / "adapter").symlink_to(out)
    with pytest.raises(UserError, match="did not write"), folder(tmp_path).claim(overwrite=True):
        pass
    (path / "adapter").unlink()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"), folder(tmp_path).claim(overwrite=True):
        pass
    assert (out / "adapter_config.json").exists()
    assert (tmp_path / "elsewhere/train.csv").exists()


@pytest.mark.parametrize("canary", [".notes", "half.tmp"])
def test_a_refused_job_removes_only_its_own_folder(tmp_path: Path, canary: str) -> None:
    path = tmp_path / "job"
    path.mkdir()
    (path / canary).write_text("mine")
    try:
        with folder(tmp_path).claim():
            pass
    except UserError:
        pass
    assert (path / canary).read_text() == "mine"


def test_a_sweep_that_is_refused_twice_leaves_other_files(debias: Run, tmp_path: Path) -> None:
    """Its first launch must not make the folder look like a run of ours."""
    own = tmp_path / "outputs/mine/seed-1/thesis.docx"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    for _ in range(2):
        shown = debias("run", "-m", "name=mine", "seed=1,2", "data.bias=height")
        assert shown.status == 1
        assert "1 failed" not in shown.out
        assert own.read_text() == "mine"
        assert not read_status(own.parent)
    assert debias("run", "-m", "name=mine", "seed=1,2", "data.bias=height", "overwrite=true").status == 1
    assert own.read_text() == "mine"


@pytest.mark.parametrize("word", ["no", "off", "maybe"])
def test_overwrite_is_true_or_false(debias: Run, tmp_path: Path, word: str) -> None:
    path = written(tmp_path / "outputs/run", state="done")
    path.rename(path.with_name("default"))
    before = left(tmp_path)
    assert f"overwrite='{word}' must be true or false" in debias("run", f"overwrite={word}").err
    assert left(tmp_path) == before


def test_a_set_keeps_its_ledger_and_files_of_others(tmp_path: Path) -> None:
    def of(config: str) -> DataFolder:
        return DataFolder(tmp_path / "job", "a: 1\n", {"config_sha256": config, "code_sha256": "p"}, "ages")

    first = of("a")
    with first.claim(), first.working():
        for name in ("ages.jsonl", "rejected.jsonl", LEDGER):
            (first.path / name).write_text(name)
    second = of("b")
    with second.claim(overwrite=True), second.working():
        assert left(first.path) == {"status.json", "config.yaml", LEDGER}
    (first.path / "mine.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"did not write .*mine\.jsonl"), of("c").claim(overwrite=True):
        pass


# ---------------------------------------------------------------- export


def adapter(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    return path


def planned(path: Path, folder: Path, overwrite: bool = True) -> export_plan.Export:
    return export_plan.planned(str(path), merge=True, folder=str(folder), repo=None, overwrite=overwrite)


def test_export_replaces_only_what_it_wrote(tmp_path: Path) -> None:
    path, target = adapter(tmp_path / "adapter"), tmp_path / "merged"
    target.mkdir()
    (target / "thesis.docx").write_text("mine")
    with pytest.raises(UserError, match="was not written by debias export"):
        planned(path, target)
    (target / export_plan.MANIFEST).write_text(json.dumps({"files": ["config.json"]}))
    (target / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"did not write \(thesis\.docx\)"):
        planned(path, target)
    (target / "thesis.docx").rename(tmp_path / "thesis.docx")
    assert planned(path, target).folder == target
    with pytest.raises(UserError, match="exists already"):
        planned(path, target, overwrite=False)
    assert (target / "config.json").exists()


def test_export_refuses_the_adapter_the_base_and_links(tmp_path: Path) -> None:
    path = adapter(tmp_path / "run/adapter")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(base)
    for target, reason in [
        (path, "holds the adapter itself"), (path.parent, "holds the adapter itself"),
        (base, "was not written by debias export"), (tmp_path / "link", "is not a folder that debias export wrote"),
        (base / "config.json", "is not a folder that debias export wrote"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=reason):
            planned(path, target)
    assert (base / "config.json").exists()
    assert (path / "adapter_config.json").exists()


def test_a_folder_named_like_a_temporary_one_is_left_alone(tmp_path: Path) -> None:
    from debias.files import whole_folder

    own = tmp_path / "merged.tmp/thesis.docx"
    own.parent.mkdir()
    own.write_text("mine")
    with whole_folder(tmp_path / "merged", replace=True) as unfinished:
        (unfinished / "config.json").write_text("{}")
    assert own.read_text() == "mine"


@pytest.mark.parametrize("name", ["lr=1e-3 x", "'lr=1e-3 x'"])
def test_a_sweep_finds_its_jobs_under_a_name_in_quotes(debias: Run, tmp_path: Path, name: str) -> None:
    shown = debias("run", "-m", f"name={name}", "seed=1,2", "data.bias=height")
    assert "2 failed" in shown.out
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["lr=1e-3 x"]
    assert {p.name for p in (tmp_path / "outputs/lr=1e-3 x").iterdir() if p.is_dir()} == {
        "seed-1", "seed-2",
    }  # fmt: skip
