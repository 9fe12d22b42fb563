"""A report over many runs as files: report.html, and its tables as report.md, report.tex and report.csv."""

from __future__ import annotations

import base64
from pathlib import Path

from debias import __version__
from debias.files import write_text
from debias.records import UserError
from debias.report.comparison import decimals
from debias.report.many_runs import answer, study_files
from debias.report.many_runs.configurations import Benchmarks, Configuration
from debias.report.many_runs.examples import Examples, examples
from debias.report.many_runs.provenance import provenance, versions
from debias.report.many_runs.study_plots import colours, pictures
from debias.report.many_runs.study_tables import Study
from debias.report.templating import fill

HEADINGS = {
    "main": "Configurations",
    "others": "Other figures",
    "transfer": "Transfer",
    "cost": "Cost",
    "protocols": "Protocols",
}
TYPES = {"report.csv": "text/csv", "report.md": "text/markdown", "report.tex": "application/x-tex"}


def write_page(folder: Path, study: Study, benchmarks_of: Benchmarks) -> Path:
    """Write the report in all its forms into a folder; returns the path of the page.

    Raises UserError if the folder is a run's own, or cannot be written to.
    """
    if (folder / "status.json").exists():
        raise UserError(f"{folder} is a run's own folder, and its report is kept; choose another folder with --out")
    grids = study.grids()
    files = {
        "report.csv": study_files.csv(study),
        "report.md": study_files.markdown(study, grids),
        "report.tex": study_files.latex(study, grids),
    }
    files["report.html"] = page(study, examples(study.configurations, benchmarks_of), files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the report ({error.strerror}); choose another folder with --out"
        ) from error
    return folder / "report.html"


def page(study: Study, pairs: Examples | None, files: dict[str, str]) -> str:
    """The page. It contains the other files, so that sending the page alone is enough."""
    facts = {
        "title": answer.title(study),
        "answers": answer.answers(study),
        "subtitle": answer.facts(study),
        "notes": study.notes,
        "grids": study.grids(),
        "headings": HEADINGS,
        "pictures": pictures(study),
        "colours": colours(),
        "filters": filters(study),
        "files": {name: _data_url(text, TYPES[name]) for name, text in files.items()},
        "provenance": provenance(study),
        "versions": versions(study),
        "version": __version__,
        "examples": pairs,
        "data": {
            "configurations": [
                {"key": c.key, "name": c.name, "values": values(study, c)} for c in study.configurations
            ],
            "examples": pairs.data() if pairs else None,
            "decimals": {"SS": decimals("SS"), "nats": decimals("nats")},
        },
    }
    return fill("study.html.j2", facts)


def values(study: Study, configuration: Configuration) -> dict[str, str]:
    """What a configuration can be filtered by: its label, the targeted bias and the verdict."""
    filterable = {"targeted bias": configuration.bias, "verdict": configuration.outcome.brief}
    return {**study.label(configuration), **filterable}


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


def _data_url(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
