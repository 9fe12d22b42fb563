"""The page in a real browser: no complaint, nothing fetched, filters, sorting and the example browser work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from browser import CHROMIUM, Page, chromium
from run_folders import Sentences, config, figure, scores, write_records, write_run

from debias.report.many_runs.collection import collect
from debias.report.many_runs.configurations import grouped, labelled
from debias.report.many_runs.study_page import write_page
from debias.report.many_runs.study_tables import Study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)")

EVIL = "<script>alert(1)</script> is a name"
TEXTS = {"a": "A nurse sang.", "b": "A boxer wept.", "c": EVIL}


def visible(selector: str) -> str:
    """A script for the elements that are to be seen."""
    return f"[...document.querySelectorAll('{selector}')].filter((e) => getComputedStyle(e).display !== 'none')"


ROWS = f"{visible('#main tbody tr:not(.baseline)')}.map((row) => row.cells[0].textContent)"
MARKS = f"{visible('#frontier-LMS [data-configurations]')}.length"
JOINTS = f"{visible('#efficiency [data-all]')}.length"
HEAT = "[...document.querySelectorAll('#transfer td:not(.text)')].map((cell) => cell.textContent)"
COUNT = "document.getElementById('count').textContent"
PAIRS = "[...document.querySelectorAll('#pairs tbody tr')].map((r) => [r.cells[1].textContent, r.cells[5].textContent])"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on two sources with two numbers of sentences each; SS 55 and 57 against 60 and 62."""
    root = tmp_path_factory.mktemp("page")
    for data, ss in (("targeted", 55), ("cda", 60)):
        for n in (8, 16):
            race = figure("SS", 60, 58, bias="race")
            run = write_run(root / f"s/{data}{n}", config(data, n=n), [*scores(ss + (n == 8) * 2), *race])
            leans = {"a": ("gender", 1.0, 0.5), "b": ("gender", 0.2, -0.8), "c": ("race", 0.1, 0.2)}
            write_records(run, leans)
    study = Study(grouped(labelled(collect([root]).runs)[0], lambda _: []), ["a note"])
    return write_page(root, study, lambda _: [Sentences(TEXTS)])


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, written: Path) -> Iterator[Page]:
    """The page, freshly loaded at the width of a desk's screen; what it complains about fails the test."""
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(written)
    yield tab
    assert not tab.complaints
    assert {url.partition(":")[0] for url in tab.requests} == {"file"}
    assert len(tab.requests) == 1


def tick(page: Page, key: str, value: str) -> None:
    page.value(f'document.querySelector(\'fieldset[data-key="{key}"] input[value="{value}"]\').click()')


def choose(page: Page, name: str, value: str) -> None:
    field = f"document.getElementById('browser').elements['{name}']"
    page.value(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def test_filters_act_on_tables_plots_and_heat_map(page: Page) -> None:
    assert page.value(ROWS) == ["cda", "cda", "targeted", "targeted"]
    assert page.value(COUNT) == "4 of 4 configurations shown"
    assert page.value(HEAT) == ["-3.0", "-2.0", "-8.0", "-2.0"]  # means of -4 and -2, and of -9 and -7
    marks = page.value(MARKS)
    assert page.value(JOINTS) == 2
    tick(page, "data", "cda")
    assert page.value(ROWS) == ["targeted", "targeted"]
    assert page.value(COUNT) == "2 of 4 configurations shown"
    assert page.value(HEAT) == ["", "", "-8.0", "-2.0"]
    assert page.value(MARKS) < marks
    assert page.value(JOINTS) == 1
    tick(page, "n", "8")
    assert page.value(ROWS) == ["targeted"]
    assert page.value(JOINTS) == 0  # a line needs both ends
    tick(page, "n", "16")
    assert page.value(COUNT) == "0 of 4 configurations shown: none matches all filters"
    assert page.value(f"{visible('#main tr.baseline')}.length") == 0
    page.value("document.querySelector('#filters [type=reset]').click()")
    page.value("new Promise((done) => setTimeout(done, 20))")
    assert page.value(COUNT) == "4 of 4 configurations shown"
    assert page.value(MARKS) == marks


def test_the_keyboard_sorts_and_filters(page: Page) -> None:
    """Enter on a header sorts by numbers, again: the other way round; base models stay on top. Space ticks a box."""
    column = "[...document.querySelectorAll('#main th button')].find((b) => b.textContent === 'SS')"
    values = "[...document.querySelectorAll('#main tbody tr')].map((r) => r.cells[3].textContent)"
    page.value(f"{column}.focus()")
    page.press("Enter", 13)
    assert page.value(f"{column}.closest('th').getAttribute('aria-sort')") == "ascending"
    assert page.value(values) == ["64.0", "55.0", "57.0", "60.0", "62.0"]
    page.press("Enter", 13)
    assert page.value(values) == ["64.0", "62.0", "60.0", "57.0", "55.0"]
    page.value("document.querySelector('#filters input').focus()")
    page.press(" ", 32)
    assert page.value(COUNT) == "2 of 4 configurations shown"


def test_examples_are_found_and_sorted(page: Page) -> None:
    """Sentences are text, whatever stands in them."""
    assert page.value(PAIRS) == [
        ["A boxer wept. (stereotype)", "-1.00"], ["A nurse sang. (stereotype)", "-0.50"],
        [f"{EVIL} (stereotype)", "+0.10"],
    ]  # fmt: skip
    choose(page, "order", "rose")
    assert page.value(PAIRS)[0][1] == "+0.10"
    choose(page, "bias", "gender")
    assert page.value("document.getElementById('found').textContent") == "2 of 2 pairs shown"
    choose(page, "words", "NURSE sang")
    assert page.value(PAIRS) == [["A nurse sang. (stereotype)", "-0.50"]]
    choose(page, "words", "nobody")
    assert page.value(PAIRS) == []


def test_what_a_screen_reader_needs(page: Page) -> None:
    assert page.value("document.documentElement.lang") == "en"
    assert page.value(
        "[...document.querySelectorAll('table')].every((t) => t.caption && t.querySelector('th[scope=col]'))"
    )
    assert page.value("[...document.querySelectorAll('svg')].every((s) => s.getAttribute('aria-label'))")
    assert page.value("[...document.querySelectorAll('.scroll')].every((s) => s.tabIndex === 0 && s.ariaLabel)")
    assert page.value("[...document.querySelectorAll('input, select')].every((field) => field.labels.length === 1)")
    ids = page.value("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(set(ids)) == len(ids)
    assert page.value("document.querySelectorAll('[aria-live=polite]').length") == 2
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_main_table_of_a_real_sweep_fits_on_a_desk(tab: Page, tmp_path: Path) -> None:
    """Its headings wrap, so that the last column is not cut at 1280 pixels."""
    archive = Path(__file__).resolve().parents[1] / "docs/study/data_sources.parquet"
    tab.open(write_page(tmp_path, Study(grouped(labelled(collect([archive]).runs)[0], lambda _: []), []), lambda _: []))
    assert tab.value("(box => box.scrollWidth - box.clientWidth)(document.querySelector('#main .scroll'))") == 0
    assert "seeds with p < .05" in tab.value("document.querySelector('#main thead').textContent")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_it_looks_right_on_a_desk_and_on_a_phone(page: Page, written: Path, width: int, dark: bool) -> None:
    """Nothing sticks out sideways, tables scroll inside their boxes, and the picture shows light or dark paper."""
    page.requests.clear()
    page.open(written, width=width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") == width
    boxes = page.value("[...document.querySelectorAll('.scroll')].map((s) => s.getBoundingClientRect().right)")
    assert max(boxes) <= width
    picture = written.with_name(f"{width}.png")
    page.picture(picture)
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (900, width)
    paper = float(np.median(pixels))
    assert paper < 0.15 if dark else paper > 0.95
    inked = np.abs(pixels.mean(axis=2) - paper) > 0.3
    assert 0.01 < inked.mean() < 0.3  # text and marks, neither a blank nor a covered page
