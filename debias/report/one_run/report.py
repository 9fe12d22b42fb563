"""What a run folder holds for people: report.md, report.html and the adapter's bias card."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from debias import __version__
from debias.benchmarks.evaluation import Evaluation
from debias.data.doctor import of_triplets
from debias.data.triplets import Checked
from debias.files import write_text
from debias.report import comparison, plots
from debias.report.comparison import number
from debias.report.grid import Grid, number_columns, row, text_columns
from debias.report.one_run import bias_card, data_quality, written
from debias.report.outcome import Bounds, Outcome, outcomes
from debias.report.templating import fill
from debias.results import settled
from debias.run_folder import RunFolder


class RunReport(NamedTuple):
    """The targeted bias, which comes first in a report, and the bounds within which ability counts as kept."""

    bias: str
    bounds: Bounds


class Change(NamedTuple):
    """A sentence pair, and by how many nats per token the model prefers the stereotype before and after training."""

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
    texts: Sequence[written.Written] = (),
) -> None:
    """Write report.md and report.html, and the bias card into the folder of the adapter if one was trained."""
    rows = comparison.rows(evaluation.figures, report.bias)
    cost = json.loads((folder.path / "cost.json").read_text(encoding="utf-8"))
    status = json.loads((folder.path / "status.json").read_text(encoding="utf-8"))
    config = settled(yaml.safe_load(folder.config), status)
    curve = _loss_curve(folder.path / "train.csv", config)
    has_attributes = data is not None and any(t.attribute for t in data.triplets)
    diagnosis = of_triplets("training data", data.triplets) if data and has_attributes else None
    facts: dict[str, Any] = {
        "title": f"{folder.path.parent.name}/{folder.path.name}",
        "verdict": _together(outcomes(evaluation.figures, report.bias, report.bounds)),
        "figures": comparison.table(rows),
        "compared": any(row.delta for row in rows),
        "legend": comparison.LEGEND,
        "intervals": comparison.INTERVALS,
        "protocols": comparison.protocols(rows, report.bias),
        "notes": (*filter(None, [data.warning if data else ""]), *(data.notes if data else ()), *evaluation.notes),
        "plot": plots.before_after(rows),
        "curve": curve,
        "sentences": sentences(*changes(evaluation)),
        "writes": written.grid(texts) if texts else None,
        "config": folder.config,
        "cost": cost,
        "stages": stages(cost),
        "status": status,
        "provenance": provenance(status, folder.identity, data, config),
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
        sources = list(dict.fromkeys(t.source for t in data.triplets if t.source)) if data else []
        of_card = bias_card.facts(adapter, base_name, report.bias, evaluation.figures, sources, config)
        write_text(adapter / "README.md", fill("bias_card.md.j2", facts | of_card))


def _together(verdicts: Mapping[str, Outcome]) -> Outcome:
    """The outcome at the top of the page; several adapters have a sentence each."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    return Outcome("scored", " ".join(f"{name}: {verdict.text}" for name, verdict in verdicts.items()))


def changes(evaluation: Evaluation, most: int = 20, least: int = 10) -> tuple[list[Change], list[Change]]:
    """The StereoSet pairs whose preference changed most, and some of those that changed least."""
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


def sentences(most: Sequence[Change], least: Sequence[Change]) -> list[Grid]:
    """The tables of changed pairs; none if nothing was compared."""
    columns = [*text_columns("bias", "stereotype", "anti-stereotype"), *number_columns("before", "after")]
    return [
        Grid(columns, [
            row(c.bias, c.stereotype, c.anti_stereotype, *(number(v, "nats", "+") for v in (c.before, c.after)))
            for c in found
        ], caption=caption)
        for caption, found in (("Changed most", most), ("Changed least", least)) if found
    ]  # fmt: skip


def stages(cost: Mapping[str, Any]) -> Grid:
    """Seconds and tokens of each stage of cost.json."""
    lines = [row(name, f"{stage['seconds']:.1f}", f"{stage['tokens']:,}") for name, stage in cost["stages"].items()]
    return Grid([*text_columns("stage"), *number_columns("seconds", "tokens")], lines, name="Stages")


def provenance(
    status: Mapping[str, Any], identity: Mapping[str, str], data: Checked | None, config: Mapping[str, Any]
) -> Grid:
    """What the run was made of: versions, the commit, checksums, and the training records that were dropped."""
    facts = {**status["versions"], "git commit": status["git_commit"] or "not from a checkout", **identity}
    starts = status.get("start_tokens") or {}
    facts |= {f"start token, {protocol}": token for protocol, token in starts.items()}
    facts |= {f"{key}, chosen for the data": _class(config[key]) for key in status.get("chosen", {})}
    if data:
        facts["dropped records"] = "; ".join(f"{n} {reason}" for reason, n in data.dropped.items()) or "none"
    lines = [row(name, str(value)) for name, value in facts.items()]
    return Grid(text_columns("what", "value"), lines, name="Provenance")


def _class(part: Mapping[str, Any]) -> str:
    return str(part["_target_"]).rpartition(".")[2]


def _loss_curve(path: Path, config: Mapping[str, Any]) -> Markup | None:
    """The plot of the loss and, where the KL term has a weight, of its two parts as they enter it."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    if not found:
        return None
    retention = float(config.get("training", {}).get("retention") or 0)
    parts = {}
    if retention and all(row.get("kl") for row in found):
        parts["bias loss"] = [float(row["bias_loss"]) for row in found]
        parts[f"{retention:g} x KL"] = [retention * float(row["kl"]) for row in found]
    return plots.loss_curve([(int(row["step"]), float(row["loss"])) for row in found], parts)
