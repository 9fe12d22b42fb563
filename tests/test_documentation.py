"""README.md and docs/: as long as they may be, links that lead somewhere, and commands that the program accepts."""

from __future__ import annotations

import re
import shlex
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from pictures import ARCHIVE, BEGIN, END, SHOWN, table
from PIL import Image

from debias import cli
from debias.cli import launch  # noqa: F401 (the resolver of job names)
from debias.cli.config import config_dir, shorthands
from debias.cli.jobs import JOBS
from debias.jobs.archive import Archived
from debias.report.many_runs.collection import collect
from debias.report.outcome import outcome

STALE = "the README shows another run than today's default: run `python tests/pictures.py`"
Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Bash itself tells what `debias` would be given: one line a command, words ended by NUL. No other program is found.
RECORDER = """\
PATH=
command_not_found_handle() { return 0; }
debias() { printf 'debias\\0'; printf '%s\\0' "$@"; printf '\\n'; }
"""


def commands(page: Path) -> list[tuple[str, ...]]:
    """Words of each `debias` command in the page's code blocks, with the shell's variables filled in."""
    blocks = [code for language, code in FENCED.findall(page.read_text(encoding="utf-8")) if not language]
    script = RECORDER + "\n".join(block for block in blocks if "debias" in block)
    told = subprocess.run(
        ["bash", "-c", script], cwd=ROOT / "tests", check=False, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = (line for line in told.stdout.splitlines() if line.startswith("debias\0"))
    return list(dict.fromkeys(tuple(line.rstrip("\0").split("\0")[1:]) for line in lines))


PAGES_OF = {words: page.stem for page in reversed(PAGES) for words in commands(page)}  # each command once
COMMANDS = [pytest.param(words, id=f"{page}: {shlex.join(words)}") for words, page in PAGES_OF.items()]


def choices(override: Override) -> Iterator[str]:
    """The overrides that a sweep makes of one."""
    if not override.is_sweep_override():
        return iter([str(override.input_line)])
    return (f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())


@pytest.mark.parametrize("words", COMMANDS)
def test_the_program_accepts_every_command(
    words: tuple[str, ...], debias: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs compose with every value of a grid, sweeps are planned, `ls` lists, the words of other verbs are parsed."""
    verb, rest = words[0], list(words[1:])
    if verb in JOBS:
        rest = [
            word
            for word in cli._plain_words(verb, rest)
            if word not in ("-m", "--cfg", "job", "--resolve", "--dry-run")
        ]
        grid = [list(choices(o)) for o in OverridesParser.create().parse_overrides(shorthands(rest))]
        for i in range(max(map(len, grid), default=1)):
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                cfg = compose(verb, [values[i % len(values)] for values in grid])
            assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    elif verb == "sweep" and rest:
        (tmp_path / "my.yaml").write_text((ROOT / "sweeps/smoke.yaml").read_text(encoding="utf-8"))
        assert debias(*words, "--dry-run")[0] == 0
    elif verb in ("report", "archive"):
        asked: list[Path] = []

        def report(paths: Sequence[Path], *_: object) -> list[str]:
            asked.extend(paths)
            return []

        def archive(paths: Sequence[Path], out: Path, *_: object) -> Archived:
            asked.extend(paths)
            out.touch()
            return Archived(1, 0, [])

        def leaderboard(paths: Sequence[Path]) -> tuple[str, list[str]]:
            asked.extend(paths)
            return "", []

        monkeypatch.setattr("debias.report.many_runs.report.report", report)
        monkeypatch.setattr("debias.report.many_runs.leaderboard.leaderboard", leaderboard)
        monkeypatch.setattr("debias.jobs.archive.archive", archive)
        assert debias(*words)[0] == 0
        behind_out = rest[rest.index("--out") + 1] if "--out" in rest else None
        assert asked == [Path(word) for word in rest if not word.startswith("-") and word != behind_out]
    elif verb in ("ls", "explain"):
        assert debias(*words)[0] == 0
    else:
        assert words == ("sweep",)  # the listing, which test_sweepfiles.py runs


def test_commands_are_found() -> None:
    """Six everyday commands and four on a model of one's own, as bash splits them."""
    found = commands(README)
    assert len(found) == 10
    assert ("evaluate", "adapter.path=[a,b,c]", "eval=full") in found
    assert len(COMMANDS) > 80


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    assert max(map(len, text.splitlines())) <= 100


def test_the_readme_keeps_its_order() -> None:
    text = README.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
        "Install, and a first run",
        "What you see",
        "On your own model",
        "Everyday commands",
        "Which training data debiases best?",
        "Why not another tool?",
        "How it works",
        "Licences and a warning",
        "Citation",
    ]


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda p: p.name)
def test_lines_are_wrapped(page: Path) -> None:
    """At 100 characters; only a table's row cannot be."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Links to files, pictures and headings, and the modules that the text names."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if ":" in target:
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        titles = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
    for name in re.findall(r"`((?:debias|tests|conf|sweeps|benchmarks|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists() or {"mine", "NAME"} & set(re.split(r"\W", name)), name
    for label in re.findall(r"\[(\d+)\](?!:)", FENCED.sub("", text)):
        assert f"\n[{label}]: https://github.com/" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_has_every_target(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make ([\w-]+)", text) + re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    assert set(named) <= set(targets)


def test_the_demo_is_the_default_run() -> None:
    """Behind the set-up that continuous integration does as well, `make demo` is `debias run` and nothing else."""
    words = ["--no-print-directory", "--dry-run", "--assume-old=.venv/installed", "demo"]  # inside `make test`, too
    told = subprocess.run(["make", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[-1] == ".venv/bin/debias run"
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "\nmake check\nmake test" in ci


def leaves(node: object, prefix: str = "") -> dict[str, object]:
    """The values of a config by their dotted keys."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {key: value for name, inner in node.items() for key, value in leaves(inner, f"{prefix}.{name}").items()}


def benchmarks_in(config: dict[str, object]) -> list[str]:
    """The benchmarks in the leaves of a config."""
    return [key.split(".")[2] for key in config if re.fullmatch(r"\.eval\.\w+\._target_", key)]


def test_the_readme_shows_todays_default_run() -> None:
    """Its table is that of the archived figures, and it names their verdict. Their run had today's defaults.

    Keys that are new since then do not count, nor do the run's name, its threads and where a class is. A benchmark that
    joined the defaults since then is a warning: only a new default run can show it.
    """
    (run,) = collect([ARCHIVE]).runs
    shown = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip("\n`") == table(run.figures).strip("\n"), STALE
    assert len(table(run.figures).splitlines()) <= 2 * len(SHOWN)
    verdict = outcome(run.figures, run.bias, run.bounds).verdict
    assert verdict == "debiased" or f"The verdict is `{verdict}`" in README.read_text(encoding="utf-8")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        today = leaves(OmegaConf.to_container(compose("run"), resolve=True))
    if lacking := [name for name in benchmarks_in(today) if name not in benchmarks_in(leaves(run.config))]:
        warnings.warn(f"{STALE}; it lacks {', '.join(lacking)}", stacklevel=1)
    kept = {key: value for key, value in leaves(run.config).items() if key in today and not key.endswith("_target_")}
    assert kept | {key: today[key] for key in (".name", ".threads")} == {key: today[key] for key in kept}, STALE


@pytest.mark.parametrize(("name", "width"), [("report", 1280), ("report-phone", 390), ("comparison", 1280)])
def test_pictures_are_small(name: str, width: int) -> None:
    path = ROOT / f"docs/{name}.png"
    assert path.stat().st_size < 300_000
    assert Image.open(path).width == width
