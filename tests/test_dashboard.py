"""The W&B page shows what the tracker records, and the W&B sweep starts commands that exist."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from debias.cli.config import keys
from debias.cli.sweepfiles import sweeps_dir
from debias.jobs.tracking import headline_values
from debias.records import Figure


def recorded() -> set[str]:
    """Names of the headline figures that a run with StereoSet and perplexity leaves."""
    names = [("stereoset", "gender", m) for m in ("SS", "LMS", "ICAT")] + [("perplexity", "all", "perplexity")]
    figures = [
        Figure(b, "p", of, m, model, 1, 0, 2, 9, 50) for b, of, m in names for model in ("base", "debiased", "delta")
    ]
    return set(headline_values(figures, "gender"))


def test_every_panel_shows_a_figure_that_is_recorded() -> None:
    pytest.importorskip("wandb_workspaces")
    from debias.jobs.dashboard import workspace

    page = workspace("someone", "debias")
    assert len(page.sections) == 4
    text = json.dumps(page._to_model().model_dump(mode="json"))
    shown = set(re.findall(r"headline/\w+/(?:base|debiased|delta)(?:_low|_high)?", text))
    assert shown
    assert shown <= recorded()


def test_the_sweep_definition_starts_debias_run() -> None:
    content = yaml.safe_load((sweeps_dir() / "wandb/recipe.yaml").read_text(encoding="utf-8"))
    assert content["command"][1:4] == ["debias", "run", "logger=wandb"]
    assert content["command"][-1] == "${args_no_hyphens}"
    assert content["metric"]["name"] in recorded()
    known = keys("run")
    fixed = [word.partition("=")[0] for word in content["command"] if "=" in word]
    assert {*content["parameters"], *fixed} <= {*known}
