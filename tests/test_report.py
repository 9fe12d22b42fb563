"""Sentences, tables and the page: what a person reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from debias.data.doctor import of_triplets
from debias.records import Figure, Triplet
from debias.report import comparison, plots
from debias.report.grid import Grid
from debias.report.many_runs.collection import Run
from debias.report.many_runs.configurations import grouped, labelled
from debias.report.many_runs.labels import differences
from debias.report.many_runs.study_tables import spread
from debias.report.one_run import data_quality, written
from debias.report.one_run.report import Change, provenance, sentences, stages
from debias.report.outcome import Bounds, outcome, outcomes
from debias.report.templating import fill

Triple = tuple[float, float, float]


def figures(
    benchmark: str,
    metric: str,
    base: float,
    after: float,
    low: float,
    high: float,
    bias: str = "gender",
    p: float = 0.001,
) -> list[Figure]:
    ideal = {"SS": 50.0, "perplexity": 1.0, "slope": 0.0, "s_AMB": 0.0}.get(metric)
    ideal = ideal if ideal is not None else 0.0 if metric.startswith(("spread", "favour")) else 100.0
    return [
        Figure(benchmark, "p", bias, metric, "base", base, base - 2, base + 2, 771, ideal),
        Figure(benchmark, "p", bias, metric, "debiased", after, after - 2, after + 2, 771, ideal),
        Figure(benchmark, "p", bias, metric, "delta", after - base, low, high, 771, None, p),
    ]


def texts(grid: Grid, *names: str) -> list[tuple[str, ...]]:
    """The cells of some columns."""
    places = [[column.name for column in grid.columns].index(name) for name in names]
    return [tuple(line.cells[i].text for i in places) for line in grid.lines]


def story(
    ss: Triple = (54, -10, -4), lms: Triple = (91, -1, 1), ppl: Triple = (40, 1, 3), p: float = 0.001
) -> list[Figure]:
    """Base: SS 61, LMS 91, perplexity 38. Each figure after training, and the interval of its change."""
    return [
        *figures("stereoset", "SS", 61, *ss, p=p),
        *figures("stereoset", "LMS", 91, *lms),
        *figures("perplexity", "perplexity", 38, *ppl, "all"),
    ]


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "verdict", "words"),
    [
        (
            story(),
            "debiased",
            "StereoSet gender preference fell (61.0 to 54.0, p = .001, n = 771). One benchmark only. "
            "Ability kept: LMS 91.0 to 91.0 (-1.0 to +1.0), perplexity 38.0 to 40.0 (+1.0 to +3.0).",
        ),
        (story(lms=(88, -3.5, -2.5)), "broken", "LMS 91.0 to 88.0 (-3.5 to -2.5, beyond the bound of 2 points)"),
        (story(lms=(88, -4.1, -1.9)), "inconclusive", "Ability not shown to be kept: LMS 91.0 to 88.0 (-4.1 to -1.9;"),
        (story(lms=(91, -2.1, 2.1)), "inconclusive", "StereoSet gender preference fell "),
        (story(lms=(91, NAN, NAN)), "inconclusive", "LMS 91.0 to 91.0 (too few to tell; the bound is 2 points)"),
        (story(ppl=(48, 9.6, 10.4)), "broken", "perplexity 38.0 to 48.0 (+9.6 to +10.4, beyond the bound of x 1.25)"),
        (story(ppl=(48, 9.4, 10.6)), "inconclusive", "(+9.4 to +10.6; the bound is x 1.25)"),  # 0.25 * 38 = 9.5
        (
            story((45, -20, -12)),
            "overshot",
            "preference overshot to the other side (61.0 to 45.0, p = .001",
        ),
        (story((49.5, -16, -8)), "debiased", "preference fell (61.0 to 49.5, "),  # 49.5 ± 2 includes 50
        (
            story((51, -16, -8), ppl=(60, 21, 23)),
            "broken",
            "Ability worse than allowed: LMS 91.0 to 91.0 (",
        ),
        (
            story((60, -4, 2), p=0.4),
            "unchanged",
            "preference: no significant change (61.0 to 60.0, p = .400",
        ),
        (
            story((61, NAN, NAN), p=NAN),
            "unchanged",
            "preference: too few to tell (none of 771 changed)",
        ),
        (story((66, 2, 8)), "worse", "StereoSet gender preference rose (61.0 to 66.0, "),
    ],
)
def test_outcome(rows: list[Figure], verdict: str, words: str) -> None:
    told = outcome(rows, "gender")
    assert told.verdict == verdict
    assert words in told.text


@pytest.mark.parametrize(
    ("ss", "p", "verdict", "words"),
    [
        ((60, -4, 2), 0.4, "unchanged", "unchanged (ability broken)"),
        ((66, 2, 8), 0.01, "worse", "worse on StereoSet (ability broken)"),
        ((45, -20, -12), 0.01, "overshot", "overshot on StereoSet (ability broken)"),
        ((54, -10, -4), 0.01, "broken", "broken"),
    ],
)
def test_people_are_told_of_broken_ability_beside_every_verdict(ss: Triple, p: float, verdict: str, words: str) -> None:
    """38 * 1.25 = 47.5 is allowed, and perplexity is 60."""
    told = outcome(story(ss, ppl=(60, 21, 23), p=p), "gender")
    assert (told.verdict, told.ability, told.words, told.failed) == (verdict, "broken", words, True)
    kept = outcome(story(ss, p=p), "gender")
    assert (kept.ability, kept.failed) == ("kept", verdict in ("worse", "overshot"))


def test_the_corrected_p_decides_and_not_the_interval() -> None:
    """The README's row on age: the interval excludes zero, and after the correction p is .242."""
    rows = [f._replace(p_adjusted=0.242) if f.model == "delta" else f for f in story(p=0.03)]
    (row, *_) = comparison.rows(rows)
    assert (row.significant, row.better) == (False, None)
    cells = {
        column.name: cell
        for column, cell in zip(comparison.COLUMNS, comparison.table([row]).lines[0].cells, strict=True)
    }
    assert (cells["difference"].kind, cells["p"].text) == ("", ".242")
    told = outcome(rows, "gender")
    assert told.verdict == "unchanged"
    assert "p = .242" in told.text


def test_outcome_without_adapter_or_benchmark() -> None:
    assert (
        "StereoSet gender preference: 61.0 (95% interval 59.0 to 63.0; 50 is unbiased)"
        in outcome(story()[:1], "gender").text
    )
    assert outcome([], "gender").verdict == "scored"
    overall = figures("crows_pairs", "SS", 60, 52, -9, -7, "overall")
    assert outcome(overall, "gender").text.startswith("CrowS-Pairs overall preference fell")


CROWS_UNCHANGED = figures("crows_pairs", "SS", 55, 53, -5, 1, p=0.4)
GAP_FELL = figures("pronoun_gap", "slope", 3.12, 0.04, -3.5, -2.5)
GAP_UNCHANGED = figures("pronoun_gap", "slope", 3.12, 3.0, -0.4, 0.2, p=0.3)


def shifted(after: float, p: float) -> list[Figure]:
    """The mean log-odds of "she" and "he", 0.4 nats before."""
    return figures("pronoun_gap", "mean log-odds", 0.4, after, after - 0.5, after - 0.3, p=p)


@pytest.mark.parametrize(
    ("more", "verdict", "words"),
    [
        (
            [*GAP_UNCHANGED, *CROWS_UNCHANGED],
            "debiased on StereoSet",
            "StereoSet gender preference fell (61.0 to 54.0, p = .001, n = 771); "
            "CrowS-Pairs: no significant change (55.0 to 53.0, p = .400); "
            "Pronoun gap: no significant change (3.12 to 3.00, p = .300). Only 1 of 3 bias benchmarks shows a fall. ",
        ),
        (GAP_FELL, "debiased on StereoSet, Pronoun gap", "fell (3.12 to 0.04, p = .001). Both bias benchmarks show"),
        (
            figures("winobias", "SS", 60, 66, 2, 8),
            "mixed",
            "WinoBias rose (60.0 to 66.0, p = .001). The bench",
        ),
        (
            [*GAP_FELL, *shifted(-0.2, p=0.001)],
            "mixed",
            "Pronoun gap fell (3.12 to 0.04, p = .001), with over-correction: all occupations moved 0.60 nats towards "
            '"he", p = .001. The benchmarks disagree.',
        ),
        # A shift that is small, or not significant, is not over-correction.
        ([*GAP_FELL, *shifted(0.21, p=0.001)], "debiased on StereoSet, Pronoun gap", "p = .001). Both bias"),
        ([*GAP_FELL, *shifted(-0.2, p=0.2)], "debiased on StereoSet, Pronoun gap", "p = .001). Both bias"),
        # Another bias is not a witness; the same bias under another name is.
        (figures("winobias", "SS", 60, 66, 2, 8, "race"), "debiased on StereoSet", "One benchmark only."),
        (figures("bbq", "s_AMB", 20, 5, -20, -10, "Gender_identity"), "debiased on StereoSet, BBQ", "BBQ Gender_id"),
    ],
)
def test_every_benchmark_of_the_bias_is_a_witness(more: list[Figure], verdict: str, words: str) -> None:
    told = outcome([*story(), *more], "gender")
    assert told.words == verdict
    assert words in told.text


def test_a_stronger_association_is_worse_also_if_all_occupations_moved() -> None:
    rose = [*figures("pronoun_gap", "slope", 1.4, 2.7, 1.0, 1.6), *shifted(-0.2, p=0.001)]
    told = outcome([*story((60, -4, 2), p=0.4), *rose], "gender")
    assert told.words == "worse on Pronoun gap"
    assert 'Pronoun gap rose (1.40 to 2.70, p = .001), and all occupations moved 0.60 nats towards "he"' in told.text


def test_an_unknown_interval_is_called_unknown() -> None:
    alone = [f._replace(ci_low=NAN, ci_high=NAN) for f in story()[:1]]
    assert "61.0 (interval unknown; 50 is unbiased)" in outcome(alone, "gender").text


def test_groups_of_people_are_witnesses_too() -> None:
    """Two orders of one benchmark count once. A spread below 0 is chance; a group that is favoured now is a finding."""
    spread = [f for order in ("group first", "attribute first")
              for f in figures("group_gap", f"spread, {order}", 4, -3, -8, -6, "race")]  # fmt: skip
    stereoset = figures("stereoset", "SS", 61, 54, -10, -4, "race")
    told = outcome([*stereoset, *spread, *story()[3:]], "race")
    assert told.words == "debiased on StereoSet, Group gap"
    assert "Group gap (group first) fell (4.00 to -3.00, p = .001); Group gap (attribute first) fell" in told.text
    assert "Both bias benchmarks show a fall" in told.text
    favoured = figures("group_gap", "favour of Arab", -3, 3, 5, 7, "race")
    told = outcome([*stereoset, *spread, *favoured], "race")
    assert told.verdict == "mixed"
    assert "over-correction: Arab people are favoured now (-3.00 to +3.00 nats, p = .001)" in told.text
    # Every such group is named, and a group of another bias is no witness.
    asian = figures("group_gap", "favour of Asian", -2, 4, 5, 7, "race")
    muslim = figures("group_gap", "favour of Muslim", -2, 4, 5, 7, "religion")
    told = outcome([*stereoset, *spread, *favoured, *asian, *muslim], "race")
    assert "Arab people are favoured now (-3.00 to +3.00 nats, p = .001) and Asian people are favoured" in told.text
    assert "Muslim" not in told.text


def test_an_association_that_turned_round_is_over_correction() -> None:
    """The mean size of SEAT's effects hides that one of them has the other sign. ± 2: from -6 wholly, from -1 not."""
    size = figures("seat", "mean |effect|", 7, 6, -3, 1, p=0.4)
    turned, within = (figures("seat", "effect weat8", 7, after, -15, -6) for after in (-6, -1))
    told = outcome([*size, *turned], "gender")
    assert told.words == "overshot on SEAT"
    assert "with over-correction: weat8 turned round (+7.00 to -6.00, p = .001)" in told.text
    assert outcome([*size, *within], "gender").words == "unchanged"
    assert outcome([*size, *turned], "race").words == "scored"  # another bias


@pytest.mark.parametrize("bias", ["general", "overall"])
def test_a_run_without_a_target_asks_every_benchmark(bias: str) -> None:
    """StereoSet speaks as a whole, and the pronoun gap, which knows no whole, for gender."""
    whole, part = (figures("stereoset", "SS", 61, 54, -10, -4, of) for of in ("overall", "race"))
    told = outcome([*whole, *part, *GAP_FELL, *story()[3:]], bias)
    assert told.words.startswith("debiased on StereoSet, Pronoun gap")
    assert "Pronoun gap gender fell (3.12 to 0.04, p = .001). Both bias benchmarks show a fall." in told.text
    rose = figures("group_gap", "spread, group first", 3, 9, 4, 8, "race")
    assert outcome([*whole, *GAP_FELL, *rose, *story()[3:]], bias).verdict == "mixed"


def test_a_fall_by_an_uncorrected_p_is_not_a_fall() -> None:
    """Every interval excludes zero; after the correction one p is .06."""
    crows = [f._replace(p_adjusted=0.06) for f in figures("crows_pairs", "SS", 60, 52, -9, -7)]
    told = outcome([*story(), *crows], "gender")
    assert told.on == ("StereoSet",)
    assert "CrowS-Pairs: no significant change (60.0 to 52.0, p = .060)" in told.text


def test_bounds_are_the_users() -> None:
    assert outcome(story(lms=(89, -2.9, -1.1)), "gender").verdict == "inconclusive"
    assert outcome(story(lms=(89, -2.9, -1.1)), "gender", Bounds(max_lms_drop=3)).verdict == "debiased"


def test_the_targeted_bias_is_first_under_its_name_in_each_benchmark() -> None:
    """CrowS-Pairs calls race race-color, and its figures come in the order of the alphabet."""
    biases = ("overall", "age", "race-color")
    found = [f for bias in biases for f in figures("crows_pairs", "SS", 60, 55, -8, -2, bias)]
    assert [row.base.bias for row in comparison.rows(found, "race")] == ["race-color", "overall", "age"]
    several = [f._replace(protocol=protocol) for protocol in ("p", "q") for f in found]
    shown = comparison.protocols(comparison.rows(several, "race"), "race")
    assert {line.cells[2].text for line in shown.lines} == {"race-color SS", "overall SS"}


def test_rows_put_the_targeted_bias_first_and_know_what_is_better() -> None:
    mixed = [*figures("stereoset", "SS", 60, 55, -8, -2, "age"), *figures("stereoset", "SS", 60, 65, 2, 8, "overall"),
             *figures("stereoset", "SS", 60, 58, -5, 1, p=0.2)]  # fmt: skip
    ordered = comparison.rows(mixed, "gender")
    assert [r.base.bias for r in ordered] == ["gender", "overall", "age"]
    assert [r.better for r in ordered] == [None, False, True]
    assert list(ordered[2].texts().values()) == [
        "StereoSet", "age", "SS", "50", "60.0", "55.0", "-5.0", "-8.0 to -2.0", ".001", "", "771"
    ]  # fmt: skip


def test_a_base_model_alone_has_no_empty_columns() -> None:
    """Eleven columns where two models are compared, seven where one stands alone."""
    compared, alone = (
        comparison.rows(story(), "gender"),
        comparison.rows([f for f in story() if f.model == "base"], "gender"),
    )
    assert len(comparison.table(compared).columns) == 11
    title = comparison.table(alone).markdown().splitlines()[0]
    assert title == "| benchmark | bias | metric | ideal | base | 95% interval | n |"


def test_markdown_cells_cannot_break_the_table() -> None:
    text = comparison.table(comparison.rows(figures("stereoset", "SS", 60, 55, -8, -2, "a|b"))).markdown()
    assert "| a\\|b |" in text
    assert "**-5.0**" in text


def test_plots_are_the_same_bytes_for_the_same_figures() -> None:
    rows = comparison.rows(story(), "gender")
    assert plots.before_after(rows) == plots.before_after(rows)
    assert "var(--after)" in str(plots.before_after(rows))
    assert plots.before_after([]) is None
    assert "from 4.00 to 3.00 nats" in plots.loss_curve([(1, 4.0), (2, 2.0)])


def test_page_escapes_all_text_from_data(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    change = Change("1", evil, evil, evil, evil, 1.0, -1.0)
    rows = comparison.rows(figures("stereoset", "SS", 60, 55, -8, -2, evil))
    several = [*rows, *(row._replace(base=row.base._replace(protocol=evil)) for row in rows)]
    status = {"started": evil, "versions": {"torch": evil}, "git_commit": evil}
    cost = {"seconds": 1.0, "tokens": 1, "peak_memory_gb": 1.0, "dollars": 0.0,
            "stages": {evil: {"seconds": 1.0, "tokens": 1}}}  # fmt: skip
    diagnosis = of_triplets(evil, [Triplet(f"A nurse, {evil}, sang.", evil, "absent", evil, evil, 0, 1)])
    facts = {
        "title": evil, "verdict": outcome(story(), evil), "figures": comparison.table(rows), "compared": True,
        "legend": comparison.LEGEND, "intervals": comparison.INTERVALS,
        "notes": [evil], "protocols": comparison.protocols(several, evil),
        "plot": plots.before_after(rows), "curve": None, "sentences": sentences([change], [change]),
        "config": evil, "data": None, "base": evil, "version": "0", "bounds": Bounds(), "status": status,
        "cost": cost, "stages": stages(cost), "provenance": provenance(status, {"config_sha256": evil}, None, {}),
        "writes": written.grid([written.Written(evil, [evil], [evil])]),
        **data_quality.facts(diagnosis),
    }  # fmt: skip
    page = fill("run.html.j2", facts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 20
    assert "http://" not in page.replace("http://www.w3.org/", "")  # namespaces of SVG, never fetched
    assert "https://" not in page


def sizes(configs: list[dict]) -> dict[str, int]:
    """Runs by what they have in common."""
    kept, notes = labelled([Run(Path("p/j"), config, story()) for config in configs])
    assert not notes
    return {configuration.name: len(configuration.members) for configuration in grouped(kept, lambda _: [])}


def test_runs_are_told_apart_by_what_differs() -> None:
    """Names say nothing, nor does a key that one config alone has; runs that differ in their seed belong together."""
    same = {"training": {"lr": 0.1, "epochs": 1}, "objective": {"_target_": "a.b.Attribute"}}
    configs = [
        {**same, "seed": 1, "name": "x", "data": {"bias": "gender", "sources": {"cda": {"sides": "two"}}}},
        {**same, "seed": 2, "name": "y", "data": {"bias": "gender", "sources": {"cda": {"sides": "two"}}}},
        {**same, "seed": 1, "data": {"bias": "gender", "policy": "strict", "sources": {"a": {}, "b": {}}},
         "objective": {"_target_": "a.b.Unlikelihood"}},
    ]  # fmt: skip
    labels = differences(configs)
    assert labels == [
        {"data": "cda", "objective": "Attribute", "seed": "1"},
        {"data": "cda", "objective": "Attribute", "seed": "2"},
        {"data": "a+b", "objective": "Unlikelihood", "seed": "1"},
    ]
    assert sizes(configs) == {"data=cda objective=Attribute": 2, "data=a+b objective=Unlikelihood": 1}
    assert differences(configs[:1]) == [{}]


def test_a_key_that_some_configs_have_tells_those_apart() -> None:
    """Two margins of one objective beside an objective that has no margin."""
    attribute = {"_target_": "o.Attribute"}
    objectives = [{**attribute, "margin": 1}, {**attribute, "margin": None}, {"_target_": "o.E"}]
    labels = differences([{"seed": 1, "objective": objective} for objective in objectives])
    assert labels == [
        {"objective": "Attribute", "margin": "1"}, {"objective": "Attribute", "margin": "None"}, {"objective": "E"}
    ]  # fmt: skip


def test_files_of_one_source_are_no_seeds_of_each_other() -> None:
    """Two files of one source with two seeds each are two configurations, also beside a run that has no such file."""
    configs = [
        *({"seed": seed, "data": {"bias": "age", "sources": {"paper": {"bias": "age", "file": file}}}}
          for seed in (1, 2) for file in ("1S", "2S")),
        {"seed": 1, "data": {"bias": "age", "sources": {"cda": {"bias": "age"}}}},
    ]  # fmt: skip
    labels = differences(configs)
    assert [label["data"] for label in labels] == ["paper file=1S", "paper file=2S"] * 2 + ["cda"]
    assert sizes(configs) == {"data=paper file=1S": 2, "data=paper file=2S": 2, "data=cda": 1}


def test_a_file_is_named_once() -> None:
    """The source has it from the run."""
    configs = [
        {"data": {"path": path, "sources": {"targeted": {"bias": "age", "path": path}}}} for path in (None, "a.jsonl")
    ]
    assert differences(configs) == [{"path": "None"}, {"path": "a.jsonl"}]


def test_a_change_without_a_test_is_not_significant() -> None:
    """One unit alone: the interval is unknown. No unit changed: too few to tell, not a difference of 0 +- 0."""
    unknown = [f._replace(ci_low=NAN, ci_high=NAN) for f in figures("stereoset", "SS", 60, 55, -8, -2, p=NAN)]
    assert not comparison.rows(unknown)[0].significant
    assert comparison.rows(unknown)[0].texts()["95% interval"] == "unknown"
    assert outcome(unknown, "gender").verdict == "unchanged"
    still = figures("stereoset", "SS", 60, 60, NAN, NAN, p=NAN)
    texts = comparison.rows(still)[0].texts()
    assert (texts["difference"], texts["95% interval"], texts["p"]) == ("+0.0", "too few to tell", "")


def test_spread_over_seeds() -> None:
    assert spread([54.0, 55.0, 59.0], "SS") == "56.0 ± 2.6"  # sqrt((4 + 1 + 9) / 2)
    assert spread([54.0], "SS") == "54.0"
    assert spread([], "SS") == ""


def test_several_adapters_and_protocols_are_told_apart() -> None:
    first = figures("stereoset", "SS", 60, 55, -8, -2)
    second = [f._replace(protocol="conditional", value=f.value + 1) for f in first]
    rows = comparison.rows([*first, *second], "gender")
    assert texts(comparison.table(rows), "benchmark") == [("StereoSet (p)",), ("StereoSet (conditional)",)]
    assert texts(comparison.protocols(rows, "gender"), "protocol", "base", "after") == [
        ("p", "60.0", "55.0"), ("conditional", "61.0", "56.0"),
    ]  # fmt: skip
    assert not comparison.protocols(comparison.rows(first, "gender"), "gender").lines

    named = [f._replace(model=f"{f.model}:{n}") if f.model != "base" else f for n in "ab" for f in first]
    assert [row.adapter for row in comparison.rows(named, "gender")] == ["a", "b"]
    assert [verdict.verdict for verdict in outcomes(named, "gender").values()] == ["inconclusive", "inconclusive"]
    assert list(outcomes(named, "gender")) == ["a", "b"]
    assert list(outcomes(first, "gender")) == [""]


def test_a_difference_that_was_not_found_has_its_detectable_size() -> None:
    lost = [f._replace(mde=4.26) for f in figures("stereoset", "SS", 60, 58, -5, 1, p=0.2)]
    assert comparison.rows(lost)[0].texts()["MDE"] == "4.3"
