"""The files for people in a run folder: report.md, report.html and the adapter's bias card."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from debias import __version__
from debias.benchmarks.evaluation import Evaluation
from debias.data.doctor import of_triplets
from debias.data.triplets import Checked
from debias.files import write_text
from debias.report import comparison, plots
from debias.report.one_run import bias_card, data_quality
from debias.report.outcome import Bounds, Outcome, outcomes
from debias.report.templating import fill
from debias.results import RunFolder


class RunReport(NamedTuple):
    """What a report stresses: the targeted bias, and the bounds within which ability counts as kept."""

    bias: str
    bounds: Bounds


class Change(NamedTuple):
    """A pair of sentences and by how much the model prefers the stereotype, in nats per token, before and after."""

    example: str
    bias: str
    target: str
    stereotype: str
    anti_stereotype: str
    before: float
    after: float


def write_reports(
    folder: RunFolder,
    evaluation: Evaluation,
    report: RunReport,
    data: Checked | None,
    base_name: str,
    adapter: Path | None,
) -> None:
    """Write report.md and report.html, and the bias card into the adapter's folder where one was trained."""
    rows = comparison.rows(evaluation.figures, report.bias)
    verdict = _together(outcomes(evaluation.figures, report.bias, report.bounds))
    cost = json.loads((folder.path / "cost.json").read_text(encoding="utf-8"))
    status = json.loads((folder.path / "status.json").read_text(encoding="utf-8"))
    curve = _loss_curve(folder.path / "train.csv")
    changed, unchanged = changes(evaluation)
    attributes = data is not None and any(t.attribute for t in data.triplets)
    diagnosis = of_triplets("training data", data.triplets) if data and attributes else None
    facts: dict[str, Any] = {
        "title": f"{folder.path.parent.name}/{folder.path.name}",
        "verdict": verdict,
        "rows": rows,
        "titles": comparison.titles(rows),
        "header": comparison.header(rows),
        "legend": comparison.LEGEND,
        "protocols": comparison.sensitivity(rows, report.bias),
        "protocols_header": comparison.SENSITIVITY,
        "notes": (*(data.notes if data else ()), *evaluation.notes),
        "markdown": comparison.markdown(rows),
        "plot": plots.before_after(rows),
        "curve": plots.loss_curve(curve) if curve else None,
        "losses": curve,
        "changed": changed,
        "unchanged": unchanged,
        "config": folder.config,
        "cost": cost,
        "status": status,
        "data": data,
        **data_quality.facts(diagnosis),
        "base": base_name,
        "bias": report.bias,
        "bounds": report.bounds,
        "version": __version__,
        "identity": folder.identity,
    }
    write_text(folder.path / "report.md", fill("run.md.j2", facts))
    write_text(folder.path / "report.html", fill("run.html.j2", facts))
    if adapter is not None:
        of_card = bias_card.facts(adapter, base_name, report.bias, evaluation.figures)
        write_text(adapter / "README.md", fill("bias_card.md.j2", facts | of_card))


def _together(verdicts: Mapping[str, Outcome]) -> Outcome:
    """One outcome for the top of the page, which has a sentence for each adapter."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return Outcome("scored", " ".join(f"{name}: {verdict.text}" for name, verdict in verdicts.items()))


def changes(evaluation: Evaluation, most: int = 20, least: int = 10) -> tuple[list[Change], list[Change]]:
    """The StereoSet pairs whose preference changed most, and some of those it changed least."""
    scores = evaluation.likelihoods
    scores = scores[(scores["benchmark"] == "stereoset") & scores["score"].notna()]
    if scores.empty or "debiased" not in set(scores["model"]):
        return [], []
    scores = scores[scores["protocol"] == scores["protocol"].iloc[0]]
    wide = scores.pivot(index=["bias", "target", "example"], columns=["model", "candidate"], values="score")
    lean = {m: wide[m]["stereotype"] - wide[m]["anti-stereotype"] for m in ("base", "debiased")}
    order = (lean["debiased"] - lean["base"]).abs().sort_values(ascending=False, kind="stable").index

    def change(key: tuple[str, str, str]) -> Change:
        bias, target, example = key
        stereotype, anti = (evaluation.texts["stereoset", example, c] for c in ("stereotype", "anti-stereotype"))
        return Change(example, bias, target, stereotype, anti, float(lean["base"][key]), float(lean["debiased"][key]))

    return [change(key) for key in order[:most]], [change(key) for key in order[-least:]]


def _loss_curve(path: Path) -> list[tuple[int, float]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
