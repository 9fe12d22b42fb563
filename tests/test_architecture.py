"""Imports go down only, and generic rooms do not exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "debias"

# Read from the top: a room imports rooms below it and no other.
ROOMS = [
    "__main__",
    "cli",  # verb -> Hydra -> job; the only room that knows Hydra
    "jobs",  # a verb's story, from start to end
    "report",  # figures -> what a person reads
    "generation",  # chat model -> checked triplets
    "training",  # sentences and a frozen base -> an adapter
    "baselines",  # a frozen base -> the same with a debiasing method that trains no adapter
    "benchmarks",  # candidates and their scores -> figures and how sure they are
    "scoring",  # tokens meet a model
    "models",  # base and adapter
    "data",  # text in
    "assets",  # where public data and weights come from
    "run_folder",  # claimed by one process and written
    "results",  # what a run folder holds, read
    "run_identity",  # what makes two runs the same
    "locks",  # between processes
    "schema",  # what a config may say
    "files",  # written whole or not at all
    "progress",
    "wording",  # counts in sentences
    "records",  # the types that travel
]
LEVEL = {room: level for level, room in enumerate(reversed(ROOMS))}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "debias":
            rooms |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("debias."):
            rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("debias.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    upward = {room for room in imported_rooms(path) if room != room_of(path) and LEVEL[room] >= LEVEL[room_of(path)]}
    assert not upward


def test_only_cli_knows_hydra() -> None:
    knowing = {room_of(p) for p in MODULES if "hydra" in {n.split(".")[0] for n in modules_imported(p)}}
    assert knowing == {"cli"}


def modules_imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def uses_only_what_comes_before(room: str, order: list[str]) -> bool:
    return not any(
        f"debias.{room}.{later}" in modules_imported(PACKAGE / room / f"{name}.py")
        for number, name in enumerate(order)
        for later in order[number:]
    )


def test_a_set_is_made_by_modules_in_one_order() -> None:
    """Each module of `debias generate` uses those before it; the price and the preview need no job."""
    order = ["generated_folder", "generate_loop", "generate_counterparts", "generate_preview", "generate"]
    assert uses_only_what_comes_before("jobs", order)
    assert "debias.jobs.generate_preview" not in modules_imported(PACKAGE / "jobs/generate.py")


def test_an_adapter_is_exported_by_modules_in_one_order() -> None:
    """A plan is made without merging, and weights are merged without uploading."""
    assert uses_only_what_comes_before("jobs", ["export_plan", "merging", "export"])


def test_scoring_is_built_in_one_order() -> None:
    """The forward pass of one batch knows neither the layout's trial nor the scoring of many spans."""
    order = ["layouts", "softmax", "likelihood", "layout_trial", "batched", "method", "reference", "scorer"]
    assert uses_only_what_comes_before("scoring", order)
    assert not uses_only_what_comes_before("scoring", order[::-1])


def test_there_are_no_generic_rooms() -> None:
    assert not {room_of(p) for p in MODULES} & {"utils", "core", "common", "helpers"}


def test_reports_and_sweeps_are_shown_without_torch() -> None:
    """Importing torch takes seconds, which a table of finished runs does not need."""
    rooms = [
        "debias.report.many_runs.report",
        "debias.report.many_runs.leaderboard",
        "debias.report.many_runs.sweep_progress",
        "debias.report.comparison",
    ]
    code = f"import sys, {', '.join(rooms)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
