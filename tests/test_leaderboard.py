"""`debias report --leaderboard`: rows from archives and run folders, and the page of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run, succeed
from run_folders import config, figure, scores, write_run

from debias.jobs.archive import archive
from debias.records import UserError
from debias.report.many_runs.leaderboard import leaderboard

ROOT = Path(__file__).resolve().parents[1]
LORA = {
    "adapter": {"_target_": "peft.LoraConfig", "r": 8},
    "objective": {"_target_": "debias.training.objectives.Attribute", "margin": 4},
    "model": {"path": "gpt2"},
}
STEREOSET = {"_target_": "debias.data.benchmark_text.StereoSetSentences", "bias": "gender", "split": "dev"}
OURS = {"_target_": "debias.data.triplets.TripletFile", "bias": "gender", "path": None}


def trained(source: dict[str, Any] = OURS, seed: int = 1, name: str = "targeted", **more: Any) -> dict[str, Any]:
    """A resolved config of `debias run`."""
    return {**config(seed=seed), **LORA, "data": {"bias": "gender", "sources": {name: source}}, **more}


def rows(*paths: Path) -> list[dict[str, str]]:
    """The rows of all tables by the names of their columns."""
    return [line for section in sections(*paths)[1:] for line in section]


def sections(*paths: Path) -> list[list[dict[str, str]]]:
    """The rows of each table; the first is that of the best."""
    found = []
    for section in leaderboard(paths)[0].split("\n## ")[1:]:
        names, _, *lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
        found.append([dict(zip(names, line, strict=False)) for line in lines])
    return found


def test_the_documentation_has_what_the_command_gives() -> None:
    """If this fails, run: debias report --leaderboard docs --out docs/leaderboard.md"""
    shown = succeed(ROOT, "report", "--leaderboard", "docs")
    assert shown.out == (ROOT / "docs/leaderboard.md").read_text(encoding="utf-8")


def test_seeds_are_one_row_and_the_highest_icat_comes_first(tmp_path: Path) -> None:
    """LMS stays 91. SS of 55 and 57: 91 * 45 / 50 = 81.9 and 91 * 43 / 50 = 78.3, 80.1 on average. SS 60: 72.8."""
    write_run(tmp_path / "s/cda", trained(name="cda"), scores(60))
    write_run(tmp_path / "s/t1", trained(), scores(55, ppl=42))
    write_run(tmp_path / "s/t2", trained(seed=2), scores(57, ppl=42))
    base, targeted, cda = rows(tmp_path)
    assert base["method"] == "*base model*"
    assert base["SS"] == "*64.0 (62.0 to 66.0)*"
    assert (targeted["training data"], targeted["runs"], targeted["base"]) == ("targeted (gender)", "2", "gpt2")
    assert targeted["method"] == "Lora, Attribute margin=4"
    assert targeted["ICAT"].startswith("80.1 (")
    assert targeted["LMS change"].startswith("+0.0 (")
    assert targeted["perplexity change"].startswith("+5.0% (")  # 2 of 40
    assert (targeted["seconds"], targeted["dollars"], targeted["commit"]) == ("20", "0.50", "fffffff")
    assert (cda["training data"], cda["ICAT"]) == ("cda (gender)", "72.8 (70.8 to 74.8)")


def test_settings_that_differ_are_named_and_a_broken_model_comes_last(tmp_path: Path) -> None:
    """An LMS of 80 is 11 below the base's; the higher ICAT does not help."""
    write_run(tmp_path / "s/a", trained(training={"lr": 0.1}), scores(50, lms=80))
    write_run(tmp_path / "s/b", trained(training={"lr": 0.2}), scores(58, lms=91))
    _, kept, broken = rows(tmp_path)
    assert (kept["method"], kept["verdict"]) == ("Lora, Attribute margin=4; lr=0.2", "debiased")
    assert (broken["method"], broken["verdict"]) == ("Lora, Attribute margin=4; lr=0.1", "broken")
    assert float(broken["ICAT"].split()[0]) == 80 > float(kept["ICAT"].split()[0])


@pytest.mark.parametrize(
    ("ss", "p", "told"),
    [
        (55, 0.4, "unchanged (ability broken)"),
        (70, 0.01, "worse (ability broken)"),
        (40, 0.01, "overshot (ability broken)"),
    ],
)
def test_a_ruined_model_comes_last_whatever_its_bias_did(ss: float, p: float, told: str, tmp_path: Path) -> None:
    """Perplexity rises from 40 to 400, and 50 is allowed. The other model's ICAT is 91 * 25 / 50 = 45.5, lower."""
    write_run(tmp_path / "s/ruined", trained(training={"lr": 0.1}), scores(ss, ppl=400, p=p))
    write_run(tmp_path / "s/worse", trained(training={"lr": 0.2}), scores(75))
    _, kept, ruined = rows(tmp_path)
    assert kept["verdict"] == "worse"
    assert ruined["verdict"] == told
    assert float(ruined["ICAT"].split()[0]) > float(kept["ICAT"].split()[0]) == 45.5


@pytest.mark.parametrize(
    ("source", "status", "saw"),
    [
        (OURS, {}, "no"),
        (STEREOSET, {}, "yes: StereoSet dev"),
        ({"_target_": "debias.data.benchmark_text.CrowsPairsSentences"}, {}, "yes: CrowS-Pairs"),
        ({**OURS, "path": "mine.jsonl"}, {}, "unknown"),
        ({"_target_": "mine.Source"}, {}, "unknown"),
        ({**OURS, "path": "mine.jsonl"}, {"trained_on_scored": {"stereoset": 0}}, "no"),
        ({**OURS, "path": "mine.jsonl"}, {"trained_on_scored": {"stereoset": 3}}, "yes: 3 sentences of stereoset"),
    ],
)
def test_whether_the_benchmark_was_seen(
    source: dict[str, Any], status: dict[str, Any], saw: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "s/a", trained(source), scores(55), **status)
    assert rows(tmp_path)[1]["saw it"] == saw


def test_a_method_without_an_adapter_is_a_row(tmp_path: Path) -> None:
    of = {**config(), "data": {"bias": "gender"}, "baseline": {"_target_": "debias.baselines.projection.NullSpace"}}
    write_run(tmp_path / "s/named", of, scores(55), method="inlp (gender)")
    write_run(tmp_path / "s/not", of, scores(58))
    names = [(row["method"], row["training data"], row["saw it"]) for row in rows(tmp_path)[1:]]
    assert names == [("inlp (gender)", "none", "no"), ("NullSpace", "none", "no")]


def test_an_adapter_is_described_by_the_run_that_trained_it(tmp_path: Path) -> None:
    """One of them is here; of the other, only its name is known."""
    write_run(tmp_path / "s/mine", trained(STEREOSET), scores(57))
    of = {"data": {"bias": "gender"}, "model": {"path": "gpt2"}, "adapter": {"path": ["outputs/s/mine/adapter", "b"]}}
    named = [f._replace(model=f"{f.model}:mine") for f in figure("SS", 64, 51, n=99) if f.model != "base"]
    other = [f._replace(model=f"{f.model}:b") for f in figure("SS", 64, 52, n=99) if f.model != "base"]
    write_run(tmp_path / "s/two", of, [figure("SS", 64, 51, n=99)[0], *named, *other])
    found = [(row["method"], row["saw it"]) for row in rows(tmp_path) if row["SS"].startswith(("51", "52"))]
    assert sorted(found) == [("Lora, Attribute margin=4", "yes: StereoSet dev"), ("adapter b", "unknown")]


def test_sums_of_the_same_adapters_with_other_weights_are_rows_of_their_own(tmp_path: Path) -> None:
    paths = ["outputs/g/adapter", "outputs/r/adapter"]
    for name, ss, weights in (("one", 55, [0.6, 0.25]), ("two", 57, [1.0, 0.0]), ("three", 58, None)):
        adapter = {"path": paths, "combine": "sum", "weights": weights}
        write_run(tmp_path / name, {**config(), "model": {"path": "gpt2"}, "adapter": adapter}, scores(ss))
    methods = [row["method"] for row in rows(tmp_path)]
    assert methods[1:] == ["sum of 0.6 g + 0.25 r", "sum of 1 g + 0 r", "sum of g + r"]


def noted(bias: str, seed: int, **more: Any) -> dict[str, Any]:
    """What an adapter's folder says about its training."""
    data = {"bias": bias, "sources": {"targeted": {**OURS, "bias": bias}}}
    of = {"seed": seed, "data": data, **{key: LORA[key] for key in ("adapter", "objective")}, **more}
    return {"config": of, "trained_on_scored": {"stereoset": 0}, "seconds": 20.0 * seed}


def of_sum(*paths: str) -> dict[str, Any]:
    adapter = {"path": list(paths), "combine": "sum", "weights": [0.6, 0.25]}
    return {**config(), "model": {"path": "gpt2"}, "adapter": adapter}


def test_sums_whose_adapters_differ_in_the_seed_are_one_row(tmp_path: Path) -> None:
    """20 + 20 s of seed 1 and 40 + 40 s of seed 2: 60 on average. ICAT 81.9 and 78.3: 80.1."""
    for seed, ss in ((1, 55), (2, 57)):
        notes = [noted("gender", seed), noted("race", seed)]
        write_run(tmp_path / f"s/{seed}", of_sum(f"o/g_s{seed}", f"o/r_s{seed}"), scores(ss), adapters=notes)
    (found,) = rows(tmp_path)[1:]
    assert found["method"] == "sum of 0.6 targeted (gender) + 0.25 targeted (race), each Lora, Attribute margin=4"
    assert (found["training data"], found["saw it"]) == ("targeted (gender) + targeted (race)", "no")
    assert (found["seconds"], found["runs"], found["ICAT"][:4]) == ("60", "2", "80.1")


def test_what_a_note_does_not_say_stays_unknown_and_apart(tmp_path: Path) -> None:
    """Of one adapter of each sum nothing is known; the other was trained on StereoSet, which is a fact."""
    seen = noted("gender", 1, data={"bias": "gender", "sources": {"stereoset": STEREOSET}})
    write_run(tmp_path / "s/a", of_sum("o/g", "o/x"), scores(55), adapters=[noted("gender", 1), None])
    write_run(tmp_path / "s/b", of_sum("o/g", "o/y"), scores(56), adapters=[seen, None])
    found = [(row["method"], row["training data"], row["saw it"], row["seconds"]) for row in rows(tmp_path)[1:]]
    assert found == [
        ("sum of 0.6 targeted (gender) + 0.25 x", "targeted (gender) + unknown", "unknown", "unknown"),
        ("sum of 0.6 stereoset (gender) + 0.25 y", "stereoset (gender) + unknown", "yes: StereoSet dev", "unknown"),
    ]


def test_one_adapter_of_several_tells_of_all_and_of_weights_that_were_chosen(tmp_path: Path) -> None:
    parts = [noted("gender", 1), noted("gender", 2), noted("race", 1)]
    made = {"combine": "sum", "weights": [0.3, 0.3, 0.2], "chosen_on": "StereoSet dev", "parts": parts}
    of = {**config(), "model": {"path": "gpt2"}, "adapter": {"path": "outputs/joined"}}
    write_run(tmp_path / "s/a", of, scores(55), adapters=[made])
    (found,) = rows(tmp_path)[1:]
    method = "sum of 0.3 targeted (gender) (2 seeds) + 0.2 targeted (race), each Lora, Attribute margin=4"
    assert (found["method"], found["seconds"]) == (method, "80")
    assert found["saw it"] == "no; weights chosen on StereoSet dev"


def test_two_runs_of_one_name_do_not_describe_an_adapter(tmp_path: Path) -> None:
    for place in "xy":
        write_run(tmp_path / place / "s/mine", trained(STEREOSET), scores(57))
    of = {**config(), "model": {"path": "gpt2"}, "adapter": {"path": "outputs/s/mine/adapter"}}
    write_run(tmp_path / "s/a", of, scores(51))
    (found,) = [row for row in rows(tmp_path) if row["SS"].startswith("51")]
    assert (found["method"], found["saw it"]) == ("adapter mine", "unknown")


def test_what_does_not_compare_is_another_table(tmp_path: Path) -> None:
    """Another number of sentences, another base; a run without StereoSet is counted."""
    write_run(tmp_path / "s/a", trained(), scores(55))
    write_run(tmp_path / "s/b", trained(), [f._replace(n=120) for f in scores(55)])
    write_run(tmp_path / "s/c", trained(model={"path": "opt"}), scores(55))
    write_run(tmp_path / "s/d", trained(), figure("perplexity", 40, 41))
    page = leaderboard([tmp_path])[0]
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## The best of each method",
        "## gpt2, gender: StereoSet test, 771 examples, bias_bench",
        "## opt, gender: StereoSet test, 771 examples, bias_bench",
        "## gpt2, gender: StereoSet test, 120 examples, bias_bench",
    ]
    assert "1 model without a score on StereoSet is left out." in page


@pytest.mark.parametrize(
    ("more", "facts", "ends"),
    [
        ({"model": {"path": "gpt2", "dtype": "bf16"}}, {}, ["type of weights: unknown", "type of weights: bf16"]),
        ({"scoring": {"precision": "32"}}, {}, ["precision: unknown", "precision: 32"]),
        ({}, {"git_commit": "e" * 40}, ["commits: fffffff", "commits: eeeeeee"]),
        ({}, {}, ["base scored differently, for a reason that the files do not give"] * 2),
    ],
)
def test_two_tables_of_one_sample_say_why_their_base_differs(
    more: dict[str, Any], facts: dict[str, Any], ends: list[str], tmp_path: Path
) -> None:
    """SS of the base is 64 in two runs and 65 in the third."""
    write_run(tmp_path / "s/a", trained(), scores(55))
    write_run(tmp_path / "s/b", trained(seed=2), scores(56))
    other = [f._replace(value=65.0) if (f.metric, f.model) == ("SS", "base") else f for f in scores(55)]
    write_run(tmp_path / "s/c", trained(**more), other, **facts)
    page = leaderboard([tmp_path])[0]
    headings = [line for line in page.splitlines() if line.startswith("## gpt2")]
    assert headings == [f"## gpt2, gender: StereoSet test, 771 examples, bias_bench; {end}" for end in ends]


def test_a_heading_names_the_first_of_many_commits(tmp_path: Path) -> None:
    other = [f._replace(value=65.0) if (f.metric, f.model) == ("SS", "base") else f for f in scores(55)]
    for seed, letter in enumerate("abc"):
        write_run(tmp_path / f"s/{letter}", trained(seed=seed), scores(55), git_commit=letter * 40)
    write_run(tmp_path / "s/d", trained(), other, git_commit="d" * 40)
    ends = [line.partition("; ")[2] for line in leaderboard([tmp_path])[0].splitlines() if line.startswith("## gpt2")]
    assert ends == ["commits: aaaaaaa and 2 others", "commits: ddddddd"]


def test_the_best_of_each_method_kept_ability_on_the_largest_test_sample(tmp_path: Path) -> None:
    """SS of 50 is better than 55, but with a perplexity of 400, on dev, or on fewer examples."""
    dev = {"eval": {"stereoset": {"_target_": "debias.benchmarks.stereoset.StereoSet", "split": "dev"}}}
    write_run(tmp_path / "s/best", trained(training={"lr": 0.1}), scores(55))
    write_run(tmp_path / "s/second", trained(name="cda"), scores(58))
    write_run(tmp_path / "s/ruined", trained(training={"lr": 0.2}), scores(50, ppl=400))
    write_run(tmp_path / "s/dev", trained(**dev), scores(50))
    write_run(tmp_path / "s/few", trained(), [f._replace(n=99) for f in scores(50)])
    of = {**config(), "model": {"path": "gpt2"}, "baseline": {"_target_": "debias.baselines.projection.NullSpace"}}
    write_run(tmp_path / "s/inlp", of, [f._replace(n=99) for f in scores(61)], method="inlp (gender)")
    best = sections(tmp_path)[0]
    names = ("method", "training data", "SS", "ICAT of the base", "n")
    assert [tuple(row[name] for name in names) for row in best] == [
        ("Lora, Attribute margin=4; lr=0.1", "targeted (gender)", "55.0 (53.0 to 57.0)", "65.5", "771"),
        ("inlp (gender)", "none", "61.0 (59.0 to 63.0)", "65.5", "99"),
    ]


def test_others_add_rows_with_an_archive(debias: Callable[..., Any], tmp_path: Path) -> None:
    """An archive in a folder is read; the page goes to a file or to the terminal."""
    write_run(tmp_path / "theirs/s/a", trained(), scores(55))
    archive([tmp_path / "theirs"], tmp_path / "docs/theirs.parquet")
    write_run(tmp_path / "outputs/s/b", trained(), scores(58))
    status, printed, _ = debias("report", "--leaderboard", "docs", "outputs")
    assert status == 0
    assert printed == leaderboard([tmp_path / "docs", tmp_path / "outputs"])[0]
    status, said, _ = debias("report", "--leaderboard", "docs", "outputs", "--out", "pages/board.md")
    assert (status, said) == (0, "leaderboard: pages/board.md\n")
    assert (tmp_path / "pages/board.md").read_text(encoding="utf-8") == printed


def test_wrong_words_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "s/a", trained(), figure("perplexity", 40, 41))
    with pytest.raises(UserError, match="no run was scored on StereoSet; add eval=stereoset"):
        leaderboard([tmp_path])
    for words, told in (
        (["--out", "folder"], "--out folder: name a file that ends in .md"),
        (["--recompute"], "--recompute is for the report"),
    ):
        status, _, error = run(tmp_path, "report", "--leaderboard", ".", *words)
        assert status == 1
        assert error.startswith(f"error: {told}")


def test_a_damaged_run_is_named_and_the_others_are_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "s/a", trained(), scores(55))
    (write_run(tmp_path / "s/b", trained(), scores(58)) / "metrics.jsonl").write_text("{")
    status, page, error = run(tmp_path, "report", "--leaderboard", ".")
    assert status == 1
    assert page.partition("examples, bias_bench")[2].count("| Lora") == 1
    assert "metrics.jsonl:1: not a figure" in error
