"""README.md and docs/: as long as they may be, links that lead somewhere, and commands that the program accepts."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from pictures import ARCHIVE, BEGIN, END, table
from PIL import Image

from debias import cli
from debias.cli import launch  # noqa: F401 (the resolver of job names)
from debias.cli.config import any_model, config_dir
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


def test_the_readme_shows_todays_default_run() -> None:
    """Its table is that of the archived figures. Their run was a good one, with today's defaults.

    Keys that are new since then do not count, nor does where a class is.
    """
    (run,) = collect([ARCHIVE]).runs
    shown = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip("\n`") == table(run.figures).strip("\n"), STALE
    assert len(table(run.figures).splitlines()) == 12
    assert outcome(run.figures, run.bias, run.bounds).verdict == "debiased"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        today = leaves(OmegaConf.to_container(compose("run"), resolve=True))
    kept = {key: value for key, value in leaves(run.config).items() if key in today and not key.endswith("_target_")}
    assert kept == {key: today[key] for key in kept}, STALE


@pytest.mark.parametrize(("name", "width"), [("report", 1280), ("report-phone", 390), ("comparison", 1280)])
def test_pictures_are_small(name: str, width: int) -> None:
    path = ROOT / f"docs/{name}.png"
    assert path.stat().st_size < 300_000
    assert Image.open(path).width == width
