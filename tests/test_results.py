"""The run folder: claims, refusals, faults."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from debias import run_folder, run_identity
from debias.records import Figure, UserError
from debias.results import read_figures
from debias.run_folder import RunFolder

IDENTITY = {"config_sha256": "c", "data_sha256": "d", "code_sha256": "p"}


def folder(path: Path, **changed: str) -> RunFolder:
    return RunFolder(path / "run" / "job", "a: 1\n", {**IDENTITY, **changed})


def finished(path: Path) -> Path:
    run = folder(path)
    with run.claim():
        run.start()
        run.finish({})
    return run.path


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    finished(tmp_path)
    with folder(tmp_path).claim() as to_do:
        assert not to_do
    with folder(tmp_path).claim(overwrite=True) as to_do:
        assert to_do


@pytest.mark.parametrize("what", ["config_sha256", "data_sha256"])
def test_a_run_of_another_identity_is_not_overwritten(tmp_path: Path, what: str) -> None:
    path = finished(tmp_path)
    before = (path / "status.json").read_bytes()
    expected = f"holds a run with another {what.removesuffix('_sha256')}.*name=OTHER.*overwrite=true"
    with pytest.raises(UserError, match=expected), folder(tmp_path, **{what: "other"}).claim():
        pass
    assert (path / "status.json").read_bytes() == before


def test_a_run_that_other_code_finished_is_taken_only_when_asked(tmp_path: Path) -> None:
    path = finished(tmp_path)
    before = (path / "status.json").read_bytes()
    expected = r"was done by other code of debias; .*accept_other_code=true, or run it again with overwrite=true"
    with pytest.raises(run_folder.OtherCodeError, match=expected), folder(tmp_path, code_sha256="x").claim():
        pass
    with folder(tmp_path, code_sha256="x").claim(accept_other_code=True) as to_do:
        assert not to_do
    other = folder(tmp_path, code_sha256="x", data_sha256="y")
    with pytest.raises(UserError, match="another data and code"), other.claim(accept_other_code=True):
        pass
    assert (path / "status.json").read_bytes() == before


def test_an_unfinished_run_goes_on_or_starts_afresh(tmp_path: Path) -> None:
    """Same everything: goes on. Other code or data: what the old ones left is dropped. Other config: refused."""
    run = folder(tmp_path)
    with run.claim():
        run.start()
        (run.path / "train.csv").write_text("step\n")
    again = folder(tmp_path)
    with again.claim() as to_do:
        assert to_do
        assert (run.path / "train.csv").exists()
    assert again.opened == "resuming the unfinished run in this folder"
    with pytest.raises(UserError, match="another config"), folder(tmp_path, config_sha256="x").claim():
        pass
    other = folder(tmp_path, code_sha256="x")
    with other.claim(accept_other_code=True) as to_do:
        assert to_do
        assert (run.path / "train.csv").exists()  # until the work begins
    assert other.opened == "the unfinished run in this folder was made by other code: starting it afresh"


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        folder(tmp_path).claim(),
        pytest.raises(UserError, match="in use by another"),
        folder(tmp_path).claim(),
    ):
        pass


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "job"
    path.mkdir(parents=True)
    (path / "thesis.docx").write_text("mine")
    with pytest.raises(UserError, match="has files in it but no run"), folder(tmp_path).claim():
        pass
    assert (path / "thesis.docx").read_text() == "mine"


def test_a_refused_job_leaves_no_folder(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with run.claim():
        pass
    assert not run.path.exists()


def test_damaged_status_is_named(tmp_path: Path) -> None:
    path = finished(tmp_path)
    (path / "status.json").write_text('{"state": "do')
    with pytest.raises(UserError, match=r"status\.json is damaged.*overwrite=true"), folder(tmp_path).claim():
        pass


def test_a_claim_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with run.claim():
        run.start()
    (run.path / "adapter").mkdir()
    left = [run.path / "metrics.jsonl.0a1b2c3d.tmp", run.path / "adapter/README.md.0a1b2c3d.tmp"]
    for path in left:
        path.write_text("half")
    (run.path / "mine.tmp").write_text("not a name of ours")
    with run.claim() as to_do:
        assert to_do
        run.start()
        assert not any(path.exists() for path in left)
        assert (run.path / "mine.tmp").exists()


def test_status_has_versions_and_the_error(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with run.claim():
        run.start()
        run.fail(ValueError("no"))
        status = json.loads((run.path / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"] == "ValueError: no"
    assert {"torch", "transformers", "peft", "debias", "python"} <= set(status["versions"])
    assert IDENTITY.items() <= status.items()


FIGURE = Figure("stereoset", "bias_bench", "gender", "SS", "delta", -1.5, math.nan, math.nan, 3, None, math.nan)


def test_figures_round_trip_and_unknown_is_null(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.path.mkdir(parents=True)
    run.write_figures([FIGURE])
    row: dict[str, Any] = json.loads((run.path / "metrics.jsonl").read_text())
    assert row["ci_low"] is None
    (read,) = read_figures(run.path)
    assert read[:6] == FIGURE[:6]
    assert math.isnan(read.ci_low)


def test_a_damaged_figure_is_named_by_line(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.path.mkdir(parents=True)
    run.write_figures([FIGURE, FIGURE])
    text = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(text[:-20])
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a figure"):
        read_figures(run.path)
    with pytest.raises(UserError, match="no figures here"):
        read_figures(tmp_path)


def test_code_checksum_covers_what_makes_figures_and_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change, a new name and a new file count there; comments, docstrings, layout and reports do not."""

    def checksum(files: dict[str, str]) -> str:
        package = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(content)
        monkeypatch.setattr(run_identity, "PACKAGE", package)
        return run_identity.code_sha256.__wrapped__()

    plain = {"scoring/a.py": "def f():\n    return 1\n", "training/b.py": "y = 2", "report/c.py": "z = 3"}
    same = [
        {**plain, "scoring/a.py": '"""What it is."""\n# why\ndef f():\n    """One."""\n    return (1)  # one\n'},
        {**plain, "report/c.py": "z = 4", "cli/d.py": "", "jobs/export.py": "x = 1"},
        {**plain, "scoring/__pycache__/a.pyc": "compiled", "scoring/c.md": "text", "corpora/d.jsonl": "{}"},
    ]
    assert {checksum(files) for files in same} == {checksum(plain)}
    changed = [
        {**plain, "scoring/a.py": "def f():\n    return 2\n"},
        {**plain, "training/b.py": "y = 'two'"},
        {**plain, "training/b.py": "y = 2\nf('said')"},
        {**plain, "models/c.py": ""},
        {**plain, "training/self_generated/model.json": "[]"},
        {**plain, "corpora/pronoun_pairs.json": "{}"},
        {**plain, "corpora/group_pairs.json": "{}"},
        {**plain, "data/swaps/gender.txt": "she he"},
        {**plain, "jobs/run.py": "x = 1"},
        {"scoring/a.py": plain["scoring/a.py"], "training/c.py": "y = 2", "report/c.py": "z = 3"},
    ]
    assert len({checksum(files) for files in [plain, *changed]}) == 1 + len(changed)


def test_code_checksum_is_that_of_what_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read once: files that change under a long sweep change nothing."""
    running = run_identity.code_sha256()
    monkeypatch.setattr(run_identity, "PACKAGE", tmp_path)
    assert run_identity.code_sha256() == running != run_identity.code_sha256.__wrapped__()
