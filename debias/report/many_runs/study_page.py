"""The files of a report over many runs: report.html, and its tables as report.md, report.tex and report.csv."""

from __future__ import annotations

import base64
from pathlib import Path

from markupsafe import Markup

from debias import __version__
from debias.files import write_text
from debias.records import UserError
from debias.report.many_runs.configurations import Benchmarks, Configuration
from debias.report.many_runs.examples import Examples, examples
from debias.report.many_runs.provenance import provenance, versions
from debias.report.many_runs.study_files import latex, markdown, table_csv, title
from debias.report.many_runs.study_plots import colours, pictures
from debias.report.many_runs.study_tables import Study, transfer
from debias.report.templating import TEMPLATES, fill

HEADINGS = {
    "main": "Configurations", "others": "Other figures", "transfer": "Transfer", "cost": "Cost",
    "protocols": "Protocols",
}  # fmt: skip
TYPES = {"report.csv": "text/csv", "report.md": "text/markdown", "report.tex": "application/x-tex"}


def write_page(folder: Path, study: Study, benchmarks_of: Benchmarks) -> Path:
    """Write the report in all its forms into a folder; returns the one to look at.

    Raises UserError when the folder is a run's own, or cannot be written to.
    """
    if (folder / "status.json").exists():
        raise UserError(f"{folder} is a run's own folder, whose report stays as it is; choose another with --out")
    grids = study.grids()
    files = {
        "report.csv": table_csv(study),
        "report.md": markdown(study, grids),
        "report.tex": latex(study, grids),
    }
    files["report.html"] = page(study, examples(study.configurations, benchmarks_of), files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report ({error.strerror}); choose another with --out") from error
    return folder / "report.html"


def page(study: Study, pairs: Examples | None, files: dict[str, str]) -> str:
    """The page, with its other forms inside for those who are sent the page alone."""
    models = dict.fromkeys(str(run.config.get("model", {}).get("path") or "base model") for run in study.runs)
    facts = {
        "title": title(study),
        "subtitle": ", ".join(models),
        "notes": study.notes,
        "grids": study.grids(),
        "headings": HEADINGS,
        "transfer": transfer(study),
        "pictures": pictures(study),
        "colours": colours(),
        "filters": filters(study),
        "files": {name: _inside(text, TYPES[name]) for name, text in files.items()},
        "provenance": provenance(study),
        "versions": versions(study),
        "version": __version__,
        "examples": pairs,
        "data": {
            "configurations": [
                {"key": c.key, "name": c.name, "values": values(study, c)} for c in study.configurations
            ],
            "examples": pairs.data() if pairs else None,
        },
        "css": _ours("study.css"),
        "scripts": [_ours("examples.js"), _ours("study.js")],  # the second tells the first what is chosen
    }
    return fill("study.html.j2", facts)


def values(study: Study, configuration: Configuration) -> dict[str, str]:
    """What a configuration can be filtered by: what the configurations differ in, and what came of them."""
    label = dict(zip(study.keys, study.label(configuration), strict=False))
    return {**label, "targeted bias": configuration.bias, "verdict": configuration.outcome.verdict}


def filters(study: Study) -> dict[str, list[str]]:
    """The keys that have several values, with these values."""
    found: dict[str, list[str]] = {}
    for configuration in study.configurations:
        for key, value in values(study, configuration).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    if found.get("bias") == found.get("targeted bias"):
        found.pop("targeted bias", None)
    return {key: several for key, several in found.items() if len(several) > 1}


def _ours(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 (a file of the program)


def _inside(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
