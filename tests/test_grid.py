"""One table of cells, and what becomes of it in each format."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from debias.report.grid import Cell, Grid, Line, latex_text, markdown_text, number_columns, row, text_columns
from debias.report.templating import fill

GRID = Grid(
    [*text_columns("benchmark", "bias"), *number_columns("SS")],
    [
        Line((Cell("StereoSet"), Cell("base"), Cell("61.0", 61.0)), ("a", "b"), baseline=True),
        Line((Cell("StereoSet"), Cell("gender"), Cell("55.0", 55.0, "good")), ("a",)),
        Line((Cell("BBQ"), Cell("gender"), Cell("70.0", 70.0, "bad")), ("b",)),
    ],
    name="main",
    caption="Scores",
    note="50 is best.",
    by=("benchmark",),
)


def shown(grid: Grid, gap: int = 2, width: int = 60) -> list[str]:
    """The lines that a terminal shows, without the blanks at their ends."""
    text = io.StringIO()
    Console(file=text, width=width).print(grid.terminal(gap))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def html(grid: Grid, sortable: bool = False) -> str:
    """What the page's macro makes of a grid."""
    import jinja2

    from debias.report.templating import TEMPLATES

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("grid.html.j2").module.table(grid, sortable)  # type: ignore[attr-defined]


def test_the_terminal_has_a_heading_for_each_group() -> None:
    assert shown(GRID) == [
        "Scores",
        "bias         SS",
        "StereoSet",
        "base       61.0",
        "gender     55.0",
        "",
        "BBQ",
        "gender     70.0",
    ]


def test_the_terminal_shows_a_repeated_first_value_once() -> None:
    grid = Grid(text_columns("", ""), [row("data", "cda"), row("data", "panda"), row("eval", "bbq")])
    assert shown(grid, gap=1) == ["data cda", "     panda", "eval bbq"]


def test_text_from_data_is_not_markup_on_the_terminal() -> None:
    assert shown(Grid(text_columns("a"), [row("[red]x[/red]")])) == ["a", "[red]x[/red]"]


def test_markdown_marks_emphasis_and_baselines() -> None:
    assert GRID.markdown().splitlines() == [
        "| benchmark | bias | SS |",
        "| --- | --- | --: |",
        "| *StereoSet* | *base* | *61.0* |",
        "| StereoSet | gender | **55.0** |",
        "| BBQ | gender | **70.0** |",
    ]


def test_markdown_text_stays_in_its_cell_and_opens_no_tag() -> None:
    assert markdown_text("a|b\\|c*\n<b> <.001") == "a\\|b\\\\\\|c\\* &lt;b> <.001"


def test_latex_draws_lines_between_groups_and_below_baselines() -> None:
    tex = GRID.latex().splitlines()
    assert tex[2:6] == [r"\caption{Scores. 50 is best.}", r"\label{tab:main}", r"\begin{tabular}{llr}", r"\toprule"]
    assert tex[6:13] == [
        r"benchmark & bias & SS \\", r"\midrule", r"StereoSet & base & 61.0 \\", r"\midrule",
        r"StereoSet & gender & 55.0 \\", r"\midrule", r"BBQ & gender & 70.0 \\",
    ]  # fmt: skip


def test_latex_text_holds_no_command() -> None:
    assert latex_text("50% & more ★") == r"50\% \& more $\star$"
    assert latex_text("[a]") == "{[}a]"  # after \\ LaTeX would read [a] as an optional argument


def test_csv_quotes_what_needs_it() -> None:
    assert Grid(text_columns("a", "b"), [row('x, "y"', "1")]).csv() == 'a,b\n"x, ""y""",1\n'


def test_html_marks_numbers_groups_and_configurations() -> None:
    text = html(GRID)
    assert '<th scope="col" class="text">bias</th><th scope="col">SS</th>' in text
    assert '<tr data-configurations="a b" class="baseline"><th scope=row class="text">StereoSet</th>' in text
    assert '<tr data-configurations="b" class="first">' in text
    assert '<td class="good" data-value="55.0">55.0</td>' in text
    assert '<p class="note">50 is best.</p>' in text
    assert "<button" not in text
    assert html(GRID, sortable=True).count('<button type="button" class="sort">') == 3


def test_html_escapes_and_wraps_text() -> None:
    evil = '"><script>alert(1)</script> and a long sentence'
    text = html(Grid(text_columns("a", "b"), [row("x", Cell(evil, parts={evil: 1.0}))]))
    assert "<script" not in text
    assert 'class="text wrap"' in text


def test_a_column_can_be_left_out() -> None:
    assert GRID.without("bias").csv() == "benchmark,SS\nStereoSet,61.0\nStereoSet,55.0\nBBQ,70.0\n"


def test_templates_fail_on_a_fact_that_is_missing() -> None:
    import jinja2
    import pytest

    with pytest.raises(jinja2.UndefinedError, match="quality"):
        fill("data_quality.html.j2", {})


WIDE = Grid(
    [*text_columns("run", "bias"),
     *number_columns("SS", "change of SS", "LMS", "ICAT", "perplexity", extra=("LMS", "ICAT")),
     *text_columns("verdict")],
    [
        row(f"data={data} training.lr=1e-3 seed={seed}", "gender", "61.0 -> 54.0", "-7.0 (-10.5 to -3.5)",
            "90.0 -> 89.5", "70.2 -> 82.3", "48.5 -> 50.5", "debiased")
        for data in ("targeted", "generated") for seed in (1, 2)
    ],
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_a_wide_table_keeps_its_first_column_and_whole_numbers(width: int) -> None:
    """The lines are no longer than the terminal; only LMS and ICAT may be missing, and only below 160."""
    lines = shown(WIDE, width=width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    assert all(text.count(cell) == 4 for cell in ("-7.0 (-10.5 to -3.5)", "61.0 -> 54.0", "48.5 -> 50.5", "debiased"))
    assert text.count("data=targeted") == text.count("data=generated") == 2
    assert text.count("training.lr=1e-3") == text.count("gender") == 4
    assert text.count("70.2 -> 82.3") == (0 if width in (100, 120) else 4)


def test_a_narrow_terminal_shows_a_line_as_a_paragraph() -> None:
    grid = Grid(
        [*text_columns("run", "of"), *number_columns("SS")], [row("a" * 18, "b" * 18, "61.0"), row("c", "", "1")]
    )
    assert shown(grid, width=30) == ["a" * 18, f"  of {'b' * 18}", "  SS 61.0", "c", "  SS 1"]
