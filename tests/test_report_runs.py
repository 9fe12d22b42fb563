"""Many runs: what is read, what belongs together, what is marked, and the tables as files. No model is needed."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from rich.console import Console
from run_folders import RECORD, Sentences, config, figure, scores, write_records, write_run
from scipy import stats

from debias.benchmarks.metrics import mean_of_first
from debias.benchmarks.seeds import roughly_over_seeds
from debias.benchmarks.statistics import Comparison, compare
from debias.cli.sweep_size import planned
from debias.records import UserError
from debias.report.many_runs import study_files, study_plots
from debias.report.many_runs.answer import answers, facts, title
from debias.report.many_runs.collection import Run, collect
from debias.report.many_runs.configurations import LabelledRun, grouped, labelled, mean_figures
from debias.report.many_runs.examples import examples
from debias.report.many_runs.provenance import notes_on
from debias.report.many_runs.report import report
from debias.report.many_runs.study_page import filters, write_page
from debias.report.many_runs.study_plots import pictures, thinned
from debias.report.many_runs.study_tables import Study, cost, main, others, protocols, transfer

EVIL = "<script>alert(1)</script>"


def study_of(*runs: Run) -> Study:
    return Study(grouped(labelled(runs)[0], lambda _: []), [])


def two_sources(root: Path) -> Path:
    """`targeted` with two seeds and `cda` with one."""
    write_run(root / "s/t1", config(), scores(55))
    write_run(root / "s/t2", config(seed=2), scores(57))
    write_run(root / "s/c1", config("cda"), scores(61.5, p=0.04))
    return root


def test_seeds_without_records_are_put_together_roughly() -> None:
    """Examples: 3.92 / 3.92 = 1. Seeds: sd 1.41 / sqrt(2) = 1. Together sqrt(2), t = 7 / 1.41 of 4 / 1 degrees."""
    seeds = roughly_over_seeds([-6, -8], [-7.96, -9.96], [-4.04, -6.04])
    assert (seeds.mean, seeds.sd) == (-7, pytest.approx(2**0.5))
    assert (seeds.low, seeds.high) == (pytest.approx(-7 - 2.776 * 2**0.5, abs=1e-3), pytest.approx(-3.074, abs=1e-3))
    assert seeds.p_value == pytest.approx(2 * stats.t.sf(7 / 2**0.5, 4), rel=1e-3)
    assert np.isnan(roughly_over_seeds([0, 0], [0, 0], [0, 0]).p_value)


class Crows:
    """A stand-in for CrowS-Pairs: SS overall and of race, which it calls race-color."""

    name, protocol_name = "crows_pairs", "p"

    def __init__(self, pairs: bool) -> None:
        self.pairs = pairs

    def comparisons(self, base: pd.DataFrame, debiased: pd.DataFrame) -> Iterator[Comparison]:
        """As in the benchmark: first the whole, then each bias."""
        for bias in ("overall", *sorted(set(base["bias"]))):
            before, after = (
                100.0 * (rows["score"].to_numpy() > 0)[(rows["bias"] == bias) | (bias == "overall")]
                for rows in (base, debiased)
            )
            yield compare(
                bias, "SS", 50.0, len(before), mean_of_first, (before,), (after,), n_resamples=99, pairs=self.pairs
            )


def test_other_figures_are_of_the_targeted_bias_under_any_name(tmp_path: Path) -> None:
    """CrowS-Pairs calls race race-color; its figure of all biases comes first in the file."""
    place = {"benchmark": "crows_pairs", "protocol": "p"}
    whole, race = (figure("SS", 60, after, bias=bias, **place) for after, bias in ((59, "overall"), (55, "race-color")))
    stereoset = [f._replace(bias="race") for f in scores(55)]
    study = study_of(Run(tmp_path, {**config(), "data": {"bias": "race"}}, [*stereoset, *whole, *race]))
    assert [line.cells[-1].text for line in others(study).lines] == ["60.0 → 55.0*"]


@pytest.mark.parametrize("pairs", [False, True], ids=["resamples", "independent pairs"])
def test_seeds_and_examples_are_of_the_figure_that_is_shown(tmp_path: Path, pairs: bool) -> None:
    """Race: 8 of 10 pairs, then 5 and 4. The whole, 10 pairs of gender that do not move, would change by half of it."""
    for seed, after in ((1, 5), (2, 4)):
        rows = [
            ("crows_pairs", "p", f"{bias} {i}", "more", bias, "", model, 0.0, 1, 1.0 if i < liked else -1.0)
            for bias in ("gender", "race-color")
            for model, liked in (("base", 8), ("debiased", after if bias == "race-color" else 8))
            for i in range(10)
        ]
        records = pd.DataFrame(rows, columns=RECORD)
        of_model = [records[records["model"] == model] for model in ("base", "debiased")]
        figures = [f for c in Crows(pairs).comparisons(*of_model) for f in c.figures("crows_pairs", "p")]
        folder = write_run(tmp_path / f"s/{seed}", {**config(seed=seed), "data": {"bias": "race"}}, figures)
        records.to_parquet(folder / "likelihoods.parquet", index=False)
    benchmark: Any = Crows(pairs)
    (found,) = grouped(labelled(collect([tmp_path]).runs)[0], lambda _: [benchmark])
    assert (found.change.mean, found.trouble, found.exact) == (pytest.approx(-35), "", not pairs)
    assert found.change.low < -35 < found.change.high
    assert found.change.p_value < 0.1
    # Records that do not give the run's figures, such as those of an older evaluation, are not used.
    records.assign(score=1.0).to_parquet(folder / "likelihoods.parquet", index=False)
    (found,) = grouped(labelled(collect([tmp_path]).runs)[0], lambda _: [benchmark])
    assert (found.change.mean, found.exact) == (pytest.approx(-35), False)
    assert found.trouble.startswith("s/2: its records are not of the crows_pairs of its config, or its figures")


def test_choices_have_means_and_adjusted_p_values(tmp_path: Path) -> None:
    cda, targeted = study_of(*collect([two_sources(tmp_path)]).runs).configurations
    assert (cda.name, targeted.name) == ("data=cda", "data=targeted")
    assert targeted.values("SS") == [55, 57]
    assert (targeted.change.mean, targeted.exact, targeted.significant_seeds) == (-8, False, 2)
    assert (cda.change.mean, cda.exact) == (-2.5, True)
    assert cda.p_adjusted == pytest.approx(0.04)  # the larger of two stays
    assert targeted.p_adjusted == pytest.approx(2 * targeted.change.p_value)
    assert targeted.outcome.verdict == "debiased"


def test_the_best_and_the_pareto_optimal_are_marked() -> None:
    """`b` is beaten by `a` in all; `c` is nearer to 50 but broken: neither."""
    ends = {"a": scores(55), "b": scores(56, ppl=41), "c": scores(51, ppl=80)}
    marked = study_of(*(Run(Path(name), config(name), f) for name, f in ends.items())).configurations
    assert {c.label["data"]: (c.outcome.verdict, c.best, c.pareto) for c in marked} == {
        "a": ("debiased", True, True), "b": ("debiased", False, False), "c": ("broken", False, False),
    }  # fmt: skip


def test_a_ruined_model_is_not_a_candidate_if_its_bias_did_not_change() -> None:
    """Its SS is the nearest to 50, and its perplexity 80 where 50 is allowed."""
    ends = {"a": scores(60, p=0.4), "b": scores(51, ppl=80, p=0.4)}
    study = study_of(*(Run(Path(name), config(name), f) for name, f in ends.items()))
    kept, ruined = study.configurations
    assert (kept.pareto, ruined.pareto) == (True, False)
    assert [cell.text for cell in main(study).lines[2].cells][1] == "⚠ unchanged (ability broken)"
    (told,) = answers(study)
    assert ": 1 unchanged, 1 unchanged (ability broken). The highest ICAT is that of data=a" in told
    assert "unchanged (ability broken)" in filters(study)["verdict"]
    assert [row["ability"] for row in csv.DictReader(io.StringIO(study_files.csv(study)))] == ["kept", "broken"]


def test_the_mean_interval_of_a_percentage_ends_at_100(tmp_path: Path) -> None:
    """97 and 99: seeds 1.41 / sqrt(2) = 1, examples 2 / 1.96 = 1.02, together 1.43; 98 + 2.7 * 1.43 is above 100."""
    seeds = [Run(tmp_path, config(), figure("LMS", 91, after)) for after in (97, 99)]
    base, debiased, delta = mean_figures([LabelledRun(run, run.figures, {}) for run in seeds])
    assert (debiased.value, debiased.ci_high) == (98, 100)
    assert debiased.ci_low == pytest.approx(98 - 2.7 * 1.43, abs=0.1)
    assert delta.ci_high == pytest.approx(7 + 2.7 * 1.43, abs=0.1)
    assert base.ci_high == pytest.approx(93)


def test_one_seed_twice_is_not_two_seeds() -> None:
    """The same config: the latest run counts. Other keys that not all have: told apart by the folder."""
    first, again = (Run(Path(f"s/{n}"), config(), scores(55), {"ended": e}) for n, e in (("old", "1"), ("new", "2")))
    kept, notes = labelled([again, first])
    assert [member.run.folder.name for member in kept] == ["new"]
    assert notes == ["s/old is left out: s/new has the same config and seed"]
    other = Run(Path("s/x"), config(extra={"key": 1}), scores(58))
    assert [c.name for c in study_of(first, other).configurations] == ["run=s/old", "run=s/x"]
    # A key that is null is as good as none: older versions did not have it.
    later = Run(Path("s/y"), config(seed=2, extra=None), scores(58))
    (of_both,) = study_of(first, later).configurations
    assert [member.run.seed for member in of_both.members] == ["1", "2"]


def test_tables_are_the_same_figures_in_every_format(tmp_path: Path) -> None:
    study = study_of(*collect([two_sources(tmp_path)]).runs)
    lines = [[cell.text for cell in line.cells] for line in main(study).lines]
    assert lines[0] == ["base model", "", "64.0", "", "", "91.0", "65.5", "40.0", "771", "", ""]
    assert lines[1] == [
        "cda", "✓ debiased on StereoSet", "61.5", "-2.5* (-4.5 to -0.5)", ".040", "91.0", "70.1", "40.0", "771",
        "1", "1 of 1",
    ]  # fmt: skip
    assert lines[2][:3] == ["targeted", "✓ debiased on StereoSet, ★ best, ◆ Pareto", "56.0 ± 1.4"]
    assert lines[2][3].startswith("≈ -8.0* (-11")
    text = study_files.markdown(study, study.grids())
    assert "| 61.5 | **-2.5\\* (-4.5 to -0.5)** | .040 | 91.0 |" in text
    tex = study_files.latex(study, study.grids())
    assert r"$\diamond$ Pareto & 56.0 $\pm$ 1.4 & $\approx$ -8.0*" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == len(study.grids())
    rows = list(csv.DictReader(io.StringIO(study_files.csv(study))))
    assert [(r["data"], float(r["SS"]), float(r["SS_change"]), r["interval"]) for r in rows] == [
        ("cda", 61.5, -2.5, "exact"), ("targeted", 56, -8, "approximate"),
    ]  # fmt: skip


def test_a_label_cannot_break_a_table() -> None:
    runs = [Run(Path(str(i)), config(name), scores(55)) for i, name in enumerate(("a|b_$x", EVIL))]
    study = study_of(*runs)
    text = study_files.markdown(study, study.grids())
    assert "| a\\|b_$x |" in text
    assert "<script" not in text
    assert r"a\textbar{}b\_\$x &" in study_files.latex(study, study.grids())


def test_cost_per_icat_point(tmp_path: Path) -> None:
    """SS 55, LMS 91: ICAT 81.9, a gain of 16.38 for 20 s of training and half a dollar."""
    write_run(tmp_path / "a", config(), scores(55))
    write_run(tmp_path / "b", config("cda"), scores(66))
    found = cost(study_of(*collect([tmp_path]).runs))
    worse, better = ([cell.text for cell in line.cells[1:]] for line in found.lines)
    assert better == ["1,000", "20.0", "60.0", "0.50", "+16.4", "1.22", "0.0305"]
    assert worse[-2:] == ["no gain", "no gain"]


def test_transfer_is_trained_by_scored() -> None:
    race = figure("SS", 60, 57, bias="race")
    general = {"seed": 1, "data": {"bias": "gender", "n": 8, "sources": {"general": {"bias": "general"}}}}
    found = transfer(study_of(Run(Path("a"), config(), [*scores(55), *race]), Run(Path("b"), general, scores(60))))
    assert [column.name for column in found.columns] == ["source", "trained on", "gender", "race"]
    assert found.lines[1].cells[3].parts == {"c1": -3}
    assert [cell.text for line in found.lines for cell in line.cells] == [
        "general", "general", "-4.0", "", "targeted", "gender", "-9.0", "-3.0",
    ]  # fmt: skip


def test_transfer_keeps_sources_apart() -> None:
    """Two sources trained on one bias, one of which does nothing: no mean of both."""
    found = transfer(study_of(Run(Path("a"), config(), scores(55)), Run(Path("b"), config("cda"), scores(64))))
    assert [[cell.text for cell in line.cells] for line in found.lines] == [
        ["cda", "gender", "+0.0"], ["targeted", "gender", "-9.0"],
    ]  # fmt: skip


def test_the_first_sentence_answers_the_question() -> None:
    """ICAT 81.9 and 80.08; each with an interval of 2 to either side, so the error of both is 2.8."""
    cost = {"stages": {"train": {"seconds": 20}}}
    runs = [Run(Path(f"s/{n}"), config(n), scores(ss), {"ended": f"2026-01-0{i}"}, cost)
            for i, (n, ss) in enumerate((("a", 55), ("b", 56)), start=1)]  # fmt: skip
    study = study_of(*runs)
    assert title(study) == "s: which data debiases best?"
    assert facts(study) == (
        "2 runs of 2 configurations · base model · n = 771 (StereoSet gender) · 1 Jan 2026 to 2 Jan 2026"
    )
    assert answers(study) == [
        "Best is data=a, debiased on StereoSet: SS 64.0 to 55.0, 95% interval of the change -11.0 to -7.0, p = .001; "
        "price: LMS +0.0, perplexity +0.0%, 20 s of training. Its ICAT of 81.9 is 1.8 above the next, data=b, "
        "within the error of both (±2.8): the order is open."
    ]
    nothing = study_of(*(Run(Path(f"s/{n}"), config(n), scores(63, p=0.5)) for n in "ab"))
    assert answers(nothing)[0].startswith("None of 2 configurations is shown to debias: 2 unchanged. The highest ICAT")


def test_where_no_pair_changed_it_is_too_few_to_tell() -> None:
    still = [f._replace(ci_low=float("nan"), ci_high=float("nan"), p_value=float("nan")) if f.model == "delta" else f
             for f in scores(64)]  # fmt: skip
    (line,) = (line for line in main(study_of(Run(Path("a"), config(), still))).lines if not line.baseline)
    texts = [cell.text for cell in line.cells]
    assert "too few to tell" in texts
    assert not [text for text in texts if "+0.0" in text or "kept" in text]


def test_equal_points_are_drawn_apart() -> None:
    """Two configurations with the same figures: their marks are not at the same height."""
    same = study_of(*(Run(Path(f"s/{n}"), config(n), scores(55)) for n in "ab"))
    drawing = str(next(p.drawing for p in pictures(same) if p.name == "frontier-LMS"))
    groups = re.findall(r'<g data-configurations="c[01]"><title>data.*?</g>', drawing, re.DOTALL)
    points = [re.search(r'<use [^>]*y="([\d.]+)"', group) for group in groups]
    heights = {point.group(1) for point in points if point}
    assert len(heights) == 2


def test_protocols_are_compared_where_there_are_several() -> None:
    other = figure("SS", 61, 58, protocol="conditional")
    found = protocols(study_of(Run(Path("a"), config(), [*figure("SS", 64, 55), *other])))
    assert [line.cells[2].text for line in found.lines] == ["bias_bench", "conditional"]
    assert not protocols(study_of(Run(Path("a"), config(), scores(55)))).lines


def test_what_is_not_whole_is_counted_and_named(tmp_path: Path) -> None:
    """The good runs are read all the same."""
    two_sources(tmp_path)
    going = write_run(tmp_path / "s/going", config(), [], state="running")
    write_run(tmp_path / "s/broke", config(), [], state="failed")
    write_run(tmp_path / "s/half", config(seed=3), scores(55), code="b" * 64)
    (tmp_path / "s/half/metrics.jsonl").write_text('{"benchmark": \n')
    write_run(tmp_path / "s/strange", config(seed=4), scores(55), state="asleep")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/status.json").write_text('{"state": "done", "triplets": 3}')
    (tmp_path / "s/multirun.yaml").write_text("hydra: {overrides: {task: ['seed=1,2,3', 'data=a,b,c']}, sweeper: {}}")
    write_run(tmp_path / "s/killed", config(), [], state="running")
    with FileLock(going / ".lock"):  # as a process that works there
        found = collect([tmp_path, tmp_path / "s"], planned)
    assert len(found.runs) == 3
    assert {state: len(folders) for state, folders in found.unfinished.items()} == {
        "running": 1, "interrupted": 1, "failed": 1,
    }  # fmt: skip
    assert (found.missing, found.generated) == (1, 1)  # 9 asked for, 8 begun
    assert len(found.faults) == 2
    assert "half/metrics.jsonl:1: not a figure" in found.faults[0]
    assert "strange/status.json is damaged (no state of done, running, failed)" in found.faults[1]
    notes = " / ".join(notes_on(found, []))
    assert "1 run is running" in notes
    assert "no records (likelihoods.parquet) in 3 of 3 runs" in notes


def test_runs_of_several_versions_are_pointed_out(tmp_path: Path) -> None:
    two_sources(tmp_path)
    write_run(tmp_path / "s/new", config(seed=3), scores(55), code="b" * 64)
    found = collect([tmp_path])
    (note,) = [note for note in notes_on(found, []) if "code_sha256" in note]
    assert "2 versions of its code (code_sha256): aaaaaaaaaaaa (3), bbbbbbbbbbbb (1)" in note


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("hydra: {overrides: {task: ['seed=1,2,3', 'data=a,b', 'name=x']}, sweeper: {params: null}}", 6),
        ("hydra: {overrides: {task: ['seed=range(1,4)']}, sweeper: {params: {data: 'a,b', seed: '1,2'}}}", 6),
        ("hydra: {overrides: {task: []}}", None),
        ("nothing", None),
        ("{", None),
    ],
)
def test_a_sweep_says_how_many_runs_it_asks_for(tmp_path: Path, text: str, number: int | None) -> None:
    (tmp_path / "multirun.yaml").write_text(text)
    assert planned(tmp_path / "multirun.yaml") == number


def shown(*paths: Path, **more: Any) -> tuple[str, list[str]]:
    """What the terminal shows, and the faults."""
    text = io.StringIO()
    faults = report(paths, Console(file=text, width=160), lambda _: [], **more)
    return text.getvalue(), faults


def test_the_report_is_made_of_reduced_folders(tmp_path: Path) -> None:
    text, faults = shown(two_sources(tmp_path))
    assert not faults
    assert "data=targeted  ✓ debiased on StereoSet, ★ best, ◆ Pareto  56.0 ± 1.4  ≈ -8.0* (" in text
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "report.md", "report.tex", "report.csv"}


def test_a_damaged_run_is_a_fault_and_the_rest_is_shown(tmp_path: Path) -> None:
    two_sources(tmp_path)
    (tmp_path / "s/t2/metrics.jsonl").write_text("nonsense\n")
    text, faults = shown(tmp_path)
    assert "data=cda" in text
    assert len(faults) == 1
    assert "damaged: " in (tmp_path / "report.md").read_text()


def test_a_runs_own_report_is_never_overwritten(tmp_path: Path) -> None:
    run = two_sources(tmp_path) / "s/t1"
    (run / "report.html").write_text("its own")
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    shown(run)
    with pytest.raises(UserError, match="is a run's own folder"):
        shown(tmp_path, out=run)
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}
    shown(run, out=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/report.html").is_file()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run below"):
        shown(tmp_path)
    write_run(tmp_path / "s/going", config(), [], state="running")
    with pytest.raises(UserError, match="1 interrupted"):
        shown(tmp_path)
    shutil.rmtree(tmp_path / "s")
    write_run(tmp_path / "s/bad", config(), [])
    (tmp_path / "s/bad/config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"can be read; first problem: .*config\.yaml is damaged"):
        shown(tmp_path)
    assert not list(tmp_path.glob("report.*"))


def test_all_text_is_data(tmp_path: Path) -> None:
    """Names come from configs, and anything may stand in them."""
    for i, name in enumerate(("good", EVIL, '$x_{1}$ "quoted" &')):
        write_run(tmp_path / f"s/{i}", config(name, training={"how": f"</script>{EVIL}{i}"}), scores(55 + i))
    shown(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == page.count("</script>") == 3  # ours: the data, and what acts on it
    assert "&lt;script&gt;alert(1)" in page
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)  # namespaces of SVG are never fetched
    assert '<tr data-configurations="c0">' in page
    assert '<g data-configurations="c0"><title>' in page


def test_examples_are_pairs_with_what_changed(tmp_path: Path) -> None:
    """Two seeds of one pair: +1 to 0 and +1 to -1, so -0.5 in the mean. What was not scored everywhere is empty."""
    texts = {"a": "A nurse sang.", "b": EVIL}
    for seed, after in ((1, 0.0), (2, -1.0)):
        run = write_run(tmp_path / f"s/t{seed}", config(seed=seed), scores(55))
        write_records(run, {"a": ("gender", 1.0, after), "b": ("race", 0.25, 0.5)})
    write_records(write_run(tmp_path / "s/c", config("cda"), scores(60)), {"a": ("gender", 1.0, 3.0)})
    write_run(tmp_path / "s/reduced", config("general"), scores(60))
    study = study_of(*collect([tmp_path]).runs)
    found = examples(study.configurations, lambda _: [Sentences(texts)])
    assert found is not None
    assert [(pair["bias"], pair["more"]) for pair in found.pairs] == [
        ("gender", "A nurse sang. (stereotype)"), ("race", f"{EVIL} (stereotype)"),
    ]  # fmt: skip
    assert found.before == {"c0": [1, None], "c2": [1, 0.25]}
    assert found.after == {"c0": [3, None], "c2": [-0.5, 0.5]}
    page = write_page(tmp_path / "out", study, lambda _: [Sentences(texts)]).read_text()
    assert "alert(1)" in page
    assert page.count("<script") == 3
    assert examples(study.configurations, lambda _: []) is None  # the benchmark's files are not here


def test_damaged_records_are_a_fault_and_the_figures_are_shown(tmp_path: Path) -> None:
    run = two_sources(tmp_path) / "s/t1"
    (run / "likelihoods.parquet").write_bytes(b"PAR1 and no more")
    text, faults = shown(tmp_path)
    assert [fault for fault in faults if "t1/likelihoods.parquet is damaged" in fault]
    assert "56.0 ± 1.4" in text


def test_a_hundred_runs_stay_small(tmp_path: Path) -> None:
    biases = ("race", "religion", "profession", "overall")
    more = [f for bias in biases for f in figure("SS", 60, 57, bias=bias)]
    losses = [(i, 3 + 1 / (i + 1)) for i in range(500)]
    runs = [
        Run(Path(f"s/{name}{n}{seed}"), config(name, seed, n),
            [*scores(50 + n / 100 + seed), *more], {"ended": "2026-01-01"}, {"seconds": 1.0, "stages": {}}, losses)
        for name in "abcde" for n in (50, 100, 200, 400, 800) for seed in range(4)
    ]  # fmt: skip
    path = write_page(tmp_path / "out", study_of(*runs), lambda _: [])
    assert path.stat().st_size < 5e6
    assert path.read_text().count("<figure") == 4


def test_every_point_is_within_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """SS 64 - 12 = 52 with an interval of 50 to 54, and a perplexity of twice the base's."""
    limits, drawn = [], study_plots.svg

    def kept(figure: Any, label: str) -> Any:
        (axes,) = figure.axes
        limits.append((*axes.get_xlim(), *axes.get_ylim()))
        return drawn(figure, label)

    monkeypatch.setattr(study_plots, "svg", kept)
    pictures(study_of(Run(Path("a"), config(), scores(52, lms=80, ppl=80))))
    (left, right, low, high), (_, _, lowest, highest) = limits
    assert left < 50 < 54 < right
    assert low < 80 < 91 < high
    assert lowest < 1 < 2 < highest


def test_the_parts_of_the_loss_have_plots_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s/a", config(), scores(55))
    (run / "train.csv").write_text("step,loss,bias_loss,kl\n1,3.5,3,0.5\n2,2.5,2,0.25\n")
    (found,) = collect([tmp_path]).runs
    assert found.losses == [(1, 3.5), (2, 2.5)]
    assert found.loss_parts == {"bias_loss": [(1, 3.0), (2, 2.0)], "kl": [(1, 0.5), (2, 0.25)]}
    names = {picture.name: picture.title for picture in pictures(study_of(found))}
    assert names["losses-bias_loss"] == "Bias loss"
    assert names["losses-kl"] == "KL term"


def test_loss_curves_are_thinned() -> None:
    """Of 1,000 steps 60 are drawn; each is the mean of the 100 up to it."""
    steps, mean = thinned([(i, float(i)) for i in range(1, 1001)])
    assert len(steps) == 60
    assert (steps[0], mean[0]) == (1, 1)
    assert (steps[-1], mean[-1]) == (1000, pytest.approx(950.5))


def test_many_runs_have_one_table(tmp_path: Path) -> None:
    for i in range(21):
        write_run(tmp_path / f"s/{i}", config(seed=i), scores(55 + i / 10))
    text, _ = shown(tmp_path)
    assert "verdict" in text
    assert "seed=" not in text
