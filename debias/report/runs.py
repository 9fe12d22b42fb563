"""`debias report PATH...`: one table over many runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from debias.records import UserError
from debias.report.outcome import outcome
from debias.report.tables import Row, rows
from debias.results import read_figures


def report(paths: Sequence[Path], console: Console) -> None:
    """Print one line per finished run below the paths: bias and ability before and after, and the verdict.

    Raises UserError when there is no run to report, or a run's files are damaged.
    """
    folders = list(run_folders(paths or [Path("outputs")]))
    if not folders:
        raise UserError(f"no finished run below {', '.join(map(str, paths)) or 'outputs'}; start one with `debias run`")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold", min_width=16)
    table.add_column("bias")
    for name in ("SS", "difference", "LMS", "ICAT", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for folder in folders:
        figures = read_figures(folder)
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        bias = config.get("data", {}).get("bias", "overall")
        table.add_row(
            f"{folder.parent.name}/{folder.name}",
            bias,
            *_cells(rows(figures, bias), bias),
            outcome(figures, bias).verdict,
        )
    console.print(table)
    console.print(
        "base -> debiased; difference of SS with its 95% interval; StereoSet of the targeted bias", style="dim"
    )


def run_folders(paths: Sequence[Path]) -> Iterator[Path]:
    """Folders of finished runs at or below the paths, in order."""
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is no folder; name a run folder, or one that holds runs")
        for status in sorted(path.rglob("status.json")):
            try:
                content = json.loads(status.read_text(encoding="utf-8"))
                state = content["state"]
            except (ValueError, KeyError) as error:
                raise UserError(f"{status} is damaged ({error}); run this job again with overwrite=true") from error
            if state == "done" and "triplets" not in content:  # a generated set has no scores
                yield status.parent


def _cells(table_rows: Sequence[Row], bias: str) -> list[str]:
    by = {(r.base.benchmark, r.base.bias, r.base.metric): r for r in table_rows}
    of = bias if ("stereoset", bias, "SS") in by else "overall"
    ss = by.get(("stereoset", of, "SS"))
    delta = "" if ss is None else " ".join((ss.cells()[6], f"({ss.cells()[7]})")) if ss.delta else ""
    others = [by.get(("stereoset", of, m)) for m in ("LMS", "ICAT")] + [by.get(("perplexity", "all", "perplexity"))]
    return [_arrow(ss), delta, *map(_arrow, others)]


def _arrow(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.base.value:.1f}" + (f" -> {row.debiased.value:.1f}" if row.debiased else "")
