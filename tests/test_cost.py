"""cost.json: what every attempt took, and what is unknown stays unknown."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import config, scores, write_run

from debias.generation.exchange import Bound
from debias.generation.ledger import Memory, Sent
from debias.jobs import cost
from debias.jobs.cost import Cost
from debias.report.many_runs import study_tables
from debias.report.many_runs.collection import collect
from debias.report.many_runs.configurations import grouped, labelled
from debias.report.many_runs.study_tables import Study


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cost.json").read_text())
    return found


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    monkeypatch.setattr(cost.time, "perf_counter", iter(times).__next__)


def test_an_interrupted_stage_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 s and 30 tokens before the interruption, 7 s and 60 tokens after it: 12 s and 90 tokens."""
    clock(monkeypatch, 0, 5, 100, 107)
    with contextlib.suppress(KeyboardInterrupt), Cost(tmp_path).stage("evaluate") as spent:
        spent["tokens"] = 30
        raise KeyboardInterrupt
    assert written(tmp_path)["stages"] == {"evaluate": {"tokens": 30, "seconds": 5}}
    with Cost(tmp_path).stage("evaluate") as spent:
        spent["tokens"] = 60
    assert written(tmp_path)["stages"] == {"evaluate": {"tokens": 90, "seconds": 12}}
    assert (written(tmp_path)["tokens"], written(tmp_path)["seconds"]) == (90, 12)


def test_unknown_dollars_stay_unknown(tmp_path: Path) -> None:
    """One answer without a price, then one of 2 dollars: unknown, and nothing else of the stage is lost."""
    found = Cost(tmp_path)
    found.add("generate", {"tokens": 5, "dollars": None, "seconds": 1.0})
    found.add("generate", {"tokens": 5, "dollars": 2.0, "seconds": 1.0})
    found.add("train", {"tokens": 7, "steps": 3, "seconds": 1.0})
    found.add("train", {"tokens": 0, "seconds": 1.0})
    assert written(tmp_path)["dollars"] is None
    assert written(tmp_path)["stages"]["generate"] == {"tokens": 10, "dollars": None, "seconds": 2.0}
    assert written(tmp_path)["stages"]["train"] == {"tokens": 7, "steps": 3, "seconds": 2.0}


def test_peak_memory_of_the_gpu_is_that_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job before it, in the same process, took 9 GB. Its own first launch took 3 GB, the second one 2 GB."""
    peak = [9e9]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda number: peak.__setitem__(number, 0.0))
    for used in (3e9, 2e9):
        job = Cost(tmp_path)
        peak[0] = max(peak[0], used)
        job.write()
    assert written(tmp_path)["peak_gpu_memory_gb"] == 3


@pytest.mark.parametrize("paid", [None, "missing"])
def test_a_report_never_counts_unknown_dollars_as_zero(tmp_path: Path, paid: str | None) -> None:
    """Two seeds, of which one has no known price: neither the mean nor dollars per point are numbers."""
    for seed in (1, 2):
        write_run(tmp_path / f"s/{seed}", config(seed=seed), scores(55))
    content = written(tmp_path / "s/2")
    content.pop("dollars") if paid else content.update(dollars=None)
    (tmp_path / "s/2/cost.json").write_text(json.dumps(content))
    study = Study(grouped(labelled(collect([tmp_path]).runs)[0], lambda _: []), [])
    grid = study_tables.cost(study)
    cells = {column.name: cell.text for column, cell in zip(grid.columns, grid.lines[0].cells, strict=True)}
    assert (cells["dollars"], cells["dollars per point"], cells["training s"]) == ("unknown", "unknown", "20.0")


def test_a_call_that_was_lost_at_an_unknown_price_is_not_free() -> None:
    """10 tokens each way at 2 and 4 dollars per million: 0.00006 dollars; without a price: unknown."""
    for prices, most in (((2.0, 4.0), pytest.approx(6e-5)), ((None, None), None)):
        memory = Memory()
        memory.lost["attempt"] = Sent("attempt", "key", Bound(10, 10, *prices), None)
        assert memory.spent.lost_dollars == most
