"""The files of a report over many runs: report.md, report.tex and report.csv."""

from __future__ import annotations

from pathlib import Path

from debias.records import UserError
from debias.report.choices import Benchmarks
from debias.report.formats import latex, markdown, table_csv
from debias.report.grids import Study
from debias.results import write_text


def write_page(folder: Path, study: Study, benchmarks_of: Benchmarks) -> Path:
    """Write the report in all its forms into a folder; returns the one to look at.

    Raises UserError when the folder is a run's own, or cannot be written to.
    """
    if (folder / "status.json").exists():
        raise UserError(f"{folder} is a run's own folder, whose report stays as it is; choose another with --out")
    grids = study.grids()
    files = {
        "report.md": markdown(study, grids),
        "report.tex": latex(study, grids),
        "report.csv": table_csv(study),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the report ({error.strerror}); choose another with --out") from error
    return folder / "report.md"
