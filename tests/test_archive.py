"""`debias archive`: many runs in one file are the same runs, and say nothing of the machine. No model is needed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet
from rich.console import Console
from run_folders import Sentences, config, figure, scores, write_records, write_run

from debias.benchmarks.evaluation import figures_of
from debias.benchmarks.stereoset import StereoSet
from debias.cli.sweep_size import planned
from debias.jobs.archive import archive
from debias.jobs.machine_paths import names, shortened, without_values
from debias.records import UserError
from debias.report.many_runs.collection import Collection, collect
from debias.report.many_runs.report import report
from debias.results import read_likelihoods
from debias.scoring.protocols import BiasBench

Run = Callable[..., tuple[int, str, str]]
STUDY = Path(__file__).resolve().parents[1] / "docs" / "study"


class Pairs(Sentences):
    """Two pairs that are compared as StereoSet's are."""

    comparisons = StereoSet(BiasBench(), n_resamples=99).comparisons


def sweep(root: Path) -> Path:
    """Two seeds, one of them with a figure that is not a number, another source, and what is not a finished run."""
    nan = figure("ICAT", 65, 70, bias="race", value=float("nan"), mde=1.5, test="mcnemar")
    write_run(root / "s/t1", config(extra={"lr": 1e-5, "none": None, "list": [1, "a"]}), scores(55))
    write_run(root / "s/t2", config(seed=2, extra={"lr": 1e-5, "none": None, "list": [1, "a"]}), [*scores(57), *nan])
    write_run(root / "s/c1", config("cda"), scores(61.5, p=0.04))
    (root / "s/c1/cost.json").unlink()
    (root / "s/c1/train.csv").unlink()
    write_run(root / "s/killed", config(seed=3), [], state="running")
    write_run(root / "s/broke", config(seed=4), [], state="failed")
    (root / "set").mkdir()
    (root / "set/status.json").write_text('{"state": "done", "triplets": 3}')
    (root / "s/multirun.yaml").write_text("hydra: {overrides: {task: ['seed=1,2,3', 'data=a,b,c']}, sweeper: {}}")
    return root


def content(found: Collection) -> list[object]:
    """All that a report takes from its runs; NaN equals NaN in text."""
    runs = [repr((r.name, r.config, r.figures, r.status, r.cost, r.losses, bool(r.records))) for r in found.runs]
    others = {state: [folder.name for folder in folders] for state, folders in found.unfinished.items()}
    return [*runs, others, found.missing, found.generated, found.faults]


def pages(out: Path, *paths: Path) -> dict[str, str]:
    """The files of a report."""
    benchmark = Pairs({"a": "A nurse sang.", "b": "A guard wept."})
    report(paths, Console(file=io.StringIO()), lambda _: [benchmark], out=out, planned=planned)
    return {path.name: path.read_text() for path in out.iterdir()}


@pytest.mark.parametrize("records", [False, True])
def test_an_archive_is_the_folders(tmp_path: Path, records: bool) -> None:
    """Also when the archive is archived again."""
    root = sweep(tmp_path / "runs")
    if records:
        write_records(root / "s/t1", {"a": ("gender", 1.0, 0.0), "b": ("race", 0.25, float("nan"))})
        write_records(root / "s/t2", {"a": ("gender", 1.0, -1.0)})
    done = archive([root], tmp_path / "a.parquet", records, planned=planned)
    assert (done.num_runs, done.num_with_records, done.faults) == (3, 2 * records, [])
    archive([tmp_path / "a.parquet"], tmp_path / "again.parquet", records)
    folders, archived, again = (
        collect([path], planned) for path in (root, tmp_path / "a.parquet", tmp_path / "again.parquet")
    )
    assert content(folders) == content(archived) == content(again)
    assert (archived.missing, archived.generated, len(archived.unfinished["failed"])) == (4, 1, 1)
    for folder, kept in zip(folders.runs, archived.runs, strict=True):
        assert bool(kept.records) is bool(folder.records)
        if kept.records:
            pd.testing.assert_frame_equal(kept.likelihoods(), folder.likelihoods())
    assert pages(tmp_path / "x", root) == pages(tmp_path / "y", tmp_path / "a.parquet")


def test_records_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "s/r", config(), scores(55)), {"a": ("gender", 1.0, 0.0)})
    archive([tmp_path], tmp_path / "a.parquet")
    (run,) = collect([tmp_path / "a.parquet"]).runs
    with pytest.raises(UserError, match=r"a.parquet/s/r: no records .* make the archive again with --records"):
        run.likelihoods()
    with pytest.raises(UserError, match="no run has records"):
        archive([tmp_path / "a.parquet"], tmp_path / "b.parquet", records=True)


def test_figures_are_proved_from_an_archive(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s/r", config(), [])
    write_records(run, {str(i): ("gender", 1.0, float(i % 2) - 0.5) for i in range(6)})
    benchmark = StereoSet(BiasBench(), n_resamples=99)
    lines = [json.dumps(f._asdict()) for f in figures_of([benchmark], read_likelihoods(run))]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    archive([tmp_path], tmp_path / "a.parquet", records=True)
    console = Console(record=True, width=200)
    report([tmp_path / "a.parquet"], console, lambda _: [benchmark], recompute=True)
    assert f"recomputed {len(lines)} figures of 1 run from records alone" in console.export_text()


def test_folders_and_archives_are_read_together(tmp_path: Path) -> None:
    for number in range(3):
        write_run(tmp_path / f"{number}/s/r", config(seed=number), scores(55 + number))
        archive([tmp_path / str(number)], tmp_path / f"{number}.parquet")
    mixed = [tmp_path / "0.parquet", tmp_path / "1", tmp_path / "2.parquet", tmp_path / "0.parquet"]
    assert sorted(run.seed for run in collect(mixed).runs) == ["0", "1", "2"]
    archive(mixed, tmp_path / "all.parquet")
    runs = collect([tmp_path / "all.parquet"]).runs
    assert [run.folder.relative_to(tmp_path).as_posix() for run in runs] == [
        "all.parquet/s/r", "all.parquet/s/r (2)", "all.parquet/s/r (3)",
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["s", "s/r", "s/../s"])
def test_a_run_keeps_the_name_of_its_sweep(tmp_path: Path, given: str) -> None:
    write_run(tmp_path / "s/r", config(), scores(55))
    archive([tmp_path / given], tmp_path / "a.parquet")
    (run,) = collect([tmp_path / "a.parquet"]).runs
    assert run.name == "s/r"


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    root = sweep(tmp_path / "runs")
    for name in ("a", "b"):
        archive([root], tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


# ---------------------------------------------------------------- nothing of the machine


def everything_in(file: Path) -> str:
    """An archive as text: all that is compressed in it, its metadata, and its bytes as they are."""
    table = parquet.read_table(file)
    return repr((table.to_pylist(), table.schema.metadata, parquet.read_metadata(file).metadata, file.read_bytes()))


def test_nothing_of_the_machine_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, home in enumerate(("/srv/alice", "/srv/bob")):
        name = f"outputs/s/model-_srv_{home[5:]}_base+path-_srv_{home[5:]}_my_texts-0123abc{number}"
        figures = [
            f._replace(model=f.model.replace("debiased", f"debiased:path-_srv_{home[5:]}_x")) for f in scores(55)
        ]
        folder = write_run(
            tmp_path / name,
            config(
                seed=number,
                model={"path": f"{home}/base", "token": "</s>"},
                adapter={"path": [f"{home}/x", f"{tmp_path}/outputs/other/adapter"]},
                llm={"base_url": "http://gpu-17:8000/v1"},
                told=f'File "{home}/my code/x.py", line 3; see {home}/a/log.txt and {home}/a/b.',
            ),
            figures,
        )
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**status, "from": f"{home}/venv/bin/python", "at": "~bob/x/y"}))
        write_records(folder, {"a": ("gender", 1.0, 0.0)})
        records = pd.read_parquet(folder / "likelihoods.parquet").replace({"model": {"debiased": figures[1].model}})
        records.to_parquet(folder / "likelihoods.parquet", index=False)
    archive([tmp_path], tmp_path / "a.parquet", records=True)
    left = everything_in(tmp_path / "a.parquet")
    assert [word for word in ("alice", "bob", "srv", "gpu-17", str(tmp_path)) if word in left] == []
    first, second = collect([tmp_path / "a.parquet"]).runs
    assert first.name == "s/model+path-0123abc0"
    assert first.config["model"] == {"path": "base", "token": "</s>"}
    assert second.config["model"]["path"] == "base (2)"  # another model than the first run's
    assert first.config["adapter"]["path"] == ["x", "outputs/other/adapter"]
    assert first.config["llm"]["base_url"] == "http://***:8000/v1"
    assert first.config["told"] == 'File "x.py", line 3; see log.txt and b.'
    assert (first.status["from"], first.status["at"]) == ("python", "y")
    assert set(first.likelihoods()["model"]) == {"base", "debiased:path"} <= {f.model for f in first.figures}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/alice/my models/base", "base"),
        (r"C:\Users\alice\models\base", "base"),
        ("/home/alice", "~"),
        ("~/x/y.txt", "y.txt"),
        ("../../shared/z.json", "z.json"),
        ("file:///srv/x/y.txt", "y.txt"),
        ("FileNotFoundError: '/srv/a b/c.txt'", "FileNotFoundError: 'c.txt'"),
        ("[/srv/a,/srv/b]", "[a,b]"),
        ("http://me:secret@10.1.2.3:80/v1", "http://***:80/v1"),
        ("outputs/s/path-_home_bob_x-0123abcd/adapter", "outputs/s/path-0123abcd/adapter"),
        *((text, text) for text in (
            "HuggingFaceTB/SmolLM2-135M", "</s>", "his/her/their", "1/2", "a / b", "https://api.openai.com/v1",
            "http://localhost:8080/v1", "eval-_stereoset_crows_pairs_+lr-1e-3", "outputs/s/perplexity.path-novels.txt",
        )),
    ],
)  # fmt: skip
def test_paths_and_hosts_are_shortened_and_nothing_else(text: str, expected: str) -> None:
    assert shortened(text) == expected


def test_what_differs_still_differs() -> None:
    """Two models of one name are two models; another key's texts do not matter."""
    texts = [("path", "/b/m"), ("path", "/a/m"), ("path", "m"), ("name", "/c/m")]
    assert names(texts) == {texts[2]: "m", texts[1]: "m (2)", texts[0]: "m (3)", texts[3]: "m"}


def test_a_name_that_was_cut_in_a_path_loses_it() -> None:
    path = "/srv/alice/base"
    assert without_values("lr-1+model-_srv_alice_base+seed-1", [path]) == "lr-1+model-_+seed-1"
    assert without_values("lr-1+model-_srv_ali-0123abcd", [path]) == "lr-1+model-_-0123abcd"


@pytest.mark.parametrize("file", sorted(STUDY.glob("*.parquet")), ids=lambda file: file.stem)
def test_the_study_is_whole_and_names_no_machine(file: Path) -> None:
    found = collect([file])
    assert found.runs
    assert not found.faults
    rows = parquet.read_table(file).to_pylist()
    assert not [text for text in re.findall(r'"([^"]*)"', repr(rows).replace("'", '"')) if text != shortened(text)]


# ---------------------------------------------------------------- the command, and files that are not right


def complaint(answer: tuple[int, str, str]) -> str:
    """The one line of the error output, beside the names of the files that were written."""
    status, _, said = answer
    assert status == 1
    (line,) = [line for line in said.splitlines() if "] files: " not in line]
    return line


def test_the_command_writes_what_the_report_reads(debias: Run, tmp_path: Path) -> None:
    sweep(tmp_path / "outputs")
    status, shown, _ = debias("archive", "outputs", "--out", "kept/study.parquet")
    assert (status, shown.split(" MB")[0]) == (0, "archive: kept/study.parquet (3 runs, 0.01")
    before = (tmp_path / "kept/study.parquet").read_bytes()
    assert "set overwrite=true" in complaint(debias("archive", "outputs", "--out", "kept/study.parquet"))
    (tmp_path / "outputs/s/t2/metrics.jsonl").write_text("nonsense\n")
    assert (tmp_path / "kept/study.parquet").read_bytes() == before
    status, shown, _ = debias("report", "kept/study.parquet")
    assert status == 0
    assert "/kept/study/report.html" in shown
    assert "data=targeted  ✓ debiased on StereoSet, ★ best, ◆ Pareto  56.0 ± 1.4" in shown
    again = debias("archive", "outputs", "--out", "kept/study.parquet", "overwrite=true")
    assert "t2/metrics.jsonl:1: not a figure" in complaint(again)
    assert "(2 runs" in again[1]
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.is_file()] == ["study.parquet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["archive"], "required: path, --out; the options are: --out FILE.parquet, --records, overwrite=true"),
        (["archive", "s", "--out", "s"], "name a file that ends in .parquet"),
        (["archive", ".", "--out", "x.parquet"], "no finished run below ."),
        (["archive", "nowhere", "--out", "x.parquet"], "nowhere does not exist"),
        (["report", "text.parquet"], "text.parquet is damaged, or not an archive"),
        (["report", "other.parquet"], "other.parquet is not an archive of runs; make one with `debias archive"),
    ],
)
def test_bad_words(debias: Run, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    assert message in complaint(debias(*words))
    assert not (tmp_path / "x.parquet").exists()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """Cut short, or with one byte changed in the middle of a column: the checksum of the page tells."""
    archive([sweep(tmp_path / "runs")], tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    column = parquet.read_metadata(tmp_path / "a.parquet").row_group(0).column(2)
    place = column.dictionary_page_offset + column.total_compressed_size // 2
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (whole[:-20], whole[: len(whole) // 2], b"", changed):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"bad.parquet is damaged, or not an archive"):
            collect([tmp_path / "bad.parquet"])


def test_an_archive_without_a_finished_run_is_told(tmp_path: Path) -> None:
    """Nobody writes one, but a file is a file."""
    from debias.report.many_runs.archive import Archive, Row, write

    write(tmp_path / "a.parquet", Archive([Row("s/r", "failed")], 0, 0))
    with pytest.raises(UserError, match=r"no finished run below .*a.parquet \(1 failed\)"):
        report([tmp_path / "a.parquet"], Console(), lambda _: [])


def test_a_newer_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from debias.report.many_runs import archive as format

    write_run(tmp_path / "s/r", config(), scores(55))
    monkeypatch.setattr(format, "VERSION", 2)
    archive([tmp_path], tmp_path / "a.parquet")
    monkeypatch.undo()
    with pytest.raises(UserError, match="written by a newer version of debias"):
        collect([tmp_path / "a.parquet"])
