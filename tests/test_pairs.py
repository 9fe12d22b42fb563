"""Pairs of one's own: read in every format, counted where a row is bad, and scored as CrowS-Pairs are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from debias.benchmarks.crows_pairs import CrowsPairs
from debias.benchmarks.pairs import Pairs
from debias.records import Tokens, UserError
from debias.results import read_figures
from debias.scoring.protocols import BiasBench

Run = Callable[..., tuple[int, str, str]]
ROWS = [
    {"more": "Women cook.", "less": "Men cook.", "bias": "gender", "group": "women"},
    {"more": "Men lead.", "less": "Women lead.", "bias": "gender", "group": "men"},
    {"more": "The old forget.", "less": "The young forget.", "bias": "age", "group": "old"},
]


def pairs(path: Path, **settings: str | int) -> Pairs:
    return Pairs(BiasBench(), str(path), **settings)  # type: ignore[arg-type]


def texts(benchmark: Pairs) -> list[str]:
    return [str(c.text) for c in benchmark.candidates(Tokens(None, "causal"))]


def written(folder: Path, form: str) -> Path:
    path, table = folder / f"mine.{form}", pd.DataFrame(ROWS)
    if form == "parquet":
        table.to_parquet(path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif form == "json":
        path.write_text(json.dumps(ROWS))
    else:
        table.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, form: str) -> None:
    benchmark = pairs(written(tmp_path, form))
    assert texts(benchmark) == [text for row in ROWS for text in (row["more"], row["less"])]
    assert [c.bias for c in benchmark.candidates(Tokens(None, "causal"))][::2] == ["gender", "gender", "age"]
    assert benchmark.notes == []


def test_columns_can_be_named_and_a_missing_one_is_said_with_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("bad,good,template\nWomen cook.,Men cook.,1\n")
    assert texts(pairs(path, more="bad", less="good", cluster="template")) == ["Women cook.", "Men cook."]
    with pytest.raises(UserError, match=r"no column holds the more .*; found bad, good, template; .*eval.pairs.more="):
        texts(pairs(path))
    with pytest.raises(UserError, match="there is no column 'worse', only bad, good, template"):
        texts(pairs(path, more="worse", less="good"))


def test_bad_rows_are_counted_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('more,less\n"Women\ncook.",Men cook.\nA,A\n,B\nC,D,E\nF,G\n')
    benchmark = pairs(path, name="acme")
    assert texts(benchmark) == ["Women\ncook.", "Men cook.", "F", "G"]
    assert benchmark.notes == [
        "acme: 3 rows are left out: mine.csv:4: the same sentence twice; mine.csv:5: an empty sentence; "
        "mine.csv:6: 3 cells, but the first row has 2"
    ]


def test_no_bias_is_called_as_all_pairs_together_are(tmp_path: Path) -> None:
    """Its pairs alone would be reported as the whole file."""
    path = tmp_path / "mine.csv"
    path.write_text("more,less,bias\nA,B,age\nC,D,overall\n")
    benchmark = pairs(path)
    assert texts(benchmark) == ["A", "B"]
    (note,) = benchmark.notes
    assert note.endswith("mine.csv:3: a bias called 'overall', which is the name of all pairs together")


def test_nothing_is_left_out_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("more,less\n" + "".join(f"a{i},b{i}\n" for i in range(200)))
    assert len(texts(pairs(path))) == 400
    few = pairs(path, limit=3)
    assert texts(few) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert few.notes == ["pairs: the first 3 of 200 pairs, because of eval.pairs.limit"]


def scores(benchmark: Pairs, wins: list[bool]) -> pd.DataFrame:
    """Rows in which the more stereotyping sentence of a pair is likelier, or not."""
    found = benchmark.candidates(Tokens(None, "causal"))
    rows = [(c.example, c.candidate, c.bias, c.target) for c in found]
    frame = pd.DataFrame(rows, columns=["example", "candidate", "bias", "target"])
    more = frame["candidate"] == "sent_more"
    return frame.assign(score=np.where(more, np.repeat(wins, 2), 0.5).astype(float))


def test_figures_overall_per_bias_and_per_group(tmp_path: Path) -> None:
    """Two of three pairs prefer the stereotype before, one after: 66.7 and 33.3; one of two on gender, then none."""
    benchmark = pairs(written(tmp_path, "csv"))
    before, after = scores(benchmark, [True, False, True]), scores(benchmark, [False, False, True])
    found = {(c.bias, c.metric): (c.base.value, c.debiased.value, c.n) for c in benchmark.comparisons(before, after)}
    assert found["overall", "SS"] == pytest.approx((200 / 3, 100 / 3, 3))
    assert found["gender", "SS"] == (50, 0, 2)
    assert found["age", "SS"] == (100, 100, 1)
    assert found["overall", "SS, women"] == (100, 0, 1)


def test_the_statistics_are_those_of_crows_pairs(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("more,less,bias\n" + "".join(f"a{i},b{i},x\n" for i in range(40)))
    benchmark = pairs(path)
    before, after = (scores(benchmark, [i % k == 0 for i in range(40)]) for k in (2, 5))
    mine = next(iter(benchmark.comparisons(before, after)))
    theirs = next(iter(CrowsPairs(BiasBench()).comparisons(before, after)))
    assert mine[:10] == theirs[:10]  # everything but the resamples
    assert mine.test == "mcnemar"


def test_pairs_of_a_cluster_are_resampled_together(tmp_path: Path) -> None:
    """One cluster has nothing to resample, so its interval is unknown however many pairs it has."""
    path = tmp_path / "mine.csv"
    path.write_text("more,less,cluster\n" + "".join(f"a{i},b{i},t\n" for i in range(10)))
    benchmark = pairs(path)
    (overall,) = benchmark.comparisons(scores(benchmark, [True] * 10), scores(benchmark, [False] * 10))
    assert (overall.n, overall.delta.value) == (10, -100)
    assert np.isnan(overall.delta.low)


def test_one_command_scores_a_file_under_its_own_name(debias: Run, tiny: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "csv")
    words = ["eval=[pairs]", f"eval.pairs.path={path}", "eval.pairs.name=acme", "protocol=conditional"]
    status, shown, error = debias("evaluate", f"model={tiny}", *words)
    assert status == 0, error
    assert "acme gender preference: 50.0" in shown
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert {f.benchmark for f in read_figures(metrics.parent)} == {"acme"}


@pytest.mark.parametrize("name", ["crows_pairs", "stereoset", "perplexity"])
def test_pairs_do_not_take_the_name_of_a_benchmark(debias: Run, tiny: Path, tmp_path: Path, name: str) -> None:
    """Their records would be counted as that benchmark's."""
    words = [f"eval=[{name},pairs]", f"eval.pairs.path={written(tmp_path, 'csv')}", f"eval.pairs.name={name}"]
    status, _, error = debias("evaluate", f"model={tiny}", *words)
    assert (status, error) == (
        1, f"error: eval.pairs.name={name}: a benchmark has this name; give your pairs another\n"
    )  # fmt: skip


def test_the_headline_of_many_groups_is_the_whole(debias: Run, tiny: Path, tmp_path: Path) -> None:
    """Columns are named on the command line; the table has a row for each group, the headline one clause."""
    table = pd.DataFrame(ROWS).drop(columns="bias").rename(columns={"more": "A", "less": "B"})
    table.to_csv(tmp_path / "mine.tsv", index=False, sep="\t")
    words = ["eval=[pairs]", "eval.pairs.path=mine.tsv", "eval.pairs.more=A", "eval.pairs.less=B"]
    status, shown, error = debias("evaluate", f"model={tiny}", *words, "eval.pairs.name=acme")
    assert status == 0, error
    assert "fit the method" not in error
    assert [f"SS, {group}" in shown for group in ("men", "old", "women")] == [True] * 3
    assert shown.count("acme overall preference") == 1
    assert "(95% interval " in shown.partition("acme overall preference: ")[2]


def test_a_sample_of_a_file_of_ones_own_is_said(tmp_path: Path) -> None:
    lines = [f"{i},a{i},b{i},stereo,age" for i in range(100)]
    (tmp_path / "mine.csv").write_text("\n".join([",sent_more,sent_less,stereo_antistereo,bias_type", *lines]))
    cut = CrowsPairs(BiasBench(), str(tmp_path / "mine.csv"), limit=60)
    assert len(cut.candidates(Tokens(None, "causal"))) == 120
    assert cut.notes == [
        f"crows_pairs: scores 60 of the 100 examples of {tmp_path}/mine.csv; "
        "all of them with eval.crows_pairs.limit=null"
    ]
    whole = CrowsPairs(BiasBench(), str(tmp_path / "mine.csv"))
    assert len(whole.candidates(Tokens(None, "causal"))) == 200
    assert whole.notes == []


def test_a_class_in_the_current_folder_gives_the_headline(
    debias: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without PYTHONPATH, and although it is neither StereoSet nor CrowS-Pairs."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mypairs.py").write_text(
        "from debias.benchmarks.pairs import Pairs\n\n\nclass Mine(Pairs):\n    'Pairs under another class.'\n"
    )
    words = ["eval=[pairs]", f"eval.pairs.path={written(tmp_path, 'csv')}", "eval.pairs.name=acme"]
    words += ["eval.pairs._target_=mypairs.Mine", "data.bias=age"]
    status, shown, error = debias("evaluate", f"model={tiny}", *words)
    assert status == 0, error
    assert "acme age preference: 100.0" in shown
