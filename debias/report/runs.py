"""`debias report PATH...`: one table over many runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from debias.benchmarks import Benchmark
from debias.evaluation import figures_of, records_of
from debias.records import Figure, UserError
from debias.report.outcome import by_adapter, outcome
from debias.report.tables import Row, rows
from debias.results import read_figures, read_likelihoods
from debias.statistics import Seeds, over_seeds

log = logging.getLogger(__name__)

BESIDE = ("name", "overwrite", "logger", "threads")  # what says nothing about a run's result


class Run(NamedTuple):
    """A finished run: its folder, its config and its rows of figures."""

    folder: Path
    config: dict[str, Any]
    figures: list[Figure]

    @property
    def bias(self) -> str:
        """The targeted bias."""
        return self.config.get("data", {}).get("bias", "overall")


Benchmarks = Callable[[dict[str, Any]], Sequence[Benchmark]]  # a run's config -> the benchmarks it was scored with


def report(paths: Sequence[Path], console: Console, benchmarks_of: Benchmarks, recompute: bool = False) -> None:
    """Print one line per finished run below the paths, and the runs that differ in nothing but the seed combined.

    Args:
        recompute: compute every figure of every run again from its records, and say whether they are the same.

    Raises UserError when there is no run to report, a run's files are damaged, or a figure is not what it should be.
    """
    folders = list(run_folders(paths or [Path("outputs")]))
    if not folders:
        raise UserError(f"no finished run below {', '.join(map(str, paths)) or 'outputs'}; start one with `debias run`")
    runs = [Run(f, yaml.safe_load((f / "config.yaml").read_text(encoding="utf-8")), read_figures(f)) for f in folders]
    labels = differences([run.config for run in runs])
    table = _table("run", "bias", "SS", "difference", "LMS", "ICAT", "perplexity", "verdict")
    for run, label in zip(runs, labels, strict=True):
        words = " ".join(f"{k}={v}" for k, v in label.items()) or f"{run.folder.parent.name}/{run.folder.name}"
        for name, figures in by_adapter(run.figures).items():
            cells = headline_cells(rows(figures, run.bias), run.bias)
            table.add_row(f"{words} {name}".rstrip(), run.bias, *cells, outcome(figures, run.bias).verdict)
    console.print(table)
    console.print(
        "base -> debiased; difference of SS with its 95% interval; StereoSet of the targeted bias", style="dim"
    )
    groups = by_choice(runs, labels)
    if any(len(group) > 1 for group in groups.values()):
        console.print(Text("\nover seeds: mean ± standard deviation", style="bold"))
        console.print(_means(groups, benchmarks_of))
        console.print(
            "difference of SS with a 95% interval for seeds and examples alike (hierarchical bootstrap)", style="dim"
        )
    if recompute:
        console.print(f"\n{recomputed(runs, benchmarks_of)}", highlight=False, soft_wrap=True)


def recomputed(runs: Sequence[Run], benchmarks_of: Benchmarks) -> str:
    """Every figure from likelihoods.parquet alone, against metrics.jsonl. Raises UserError where they differ."""
    count = 0
    for run in runs:
        records = read_likelihoods(run.folder)
        fresh = {_name(f): f for f in figures_of(scored(benchmarks_of(run.config), records), records)}
        for figure in run.figures:
            other = fresh.get(_name(figure))
            if other is None or not np.allclose(_numbers(other), _numbers(figure), rtol=1e-6, equal_nan=True):
                raise UserError(f"{run.folder / 'metrics.jsonl'}: {' '.join(_name(figure))} is {figure.value}, "
                                f"but its records give {other.value if other else 'nothing'}")  # fmt: skip
        count += len(run.figures)
    return f"recomputed {count:,} figures of {len(runs):,} runs from their records alone: all are the same"


def scored(benchmarks: Sequence[Benchmark], records: pd.DataFrame) -> list[Benchmark]:
    """The benchmarks of which there are records."""
    known = set(zip(records["benchmark"], records["protocol"], strict=True))
    return [b for b in benchmarks if (b.name, b.protocol_name) in known]


def _name(figure: Figure) -> tuple[str, ...]:
    return figure[:5]


def _numbers(figure: Figure) -> np.ndarray:
    return np.array([figure.value, figure.ci_low, figure.ci_high, figure.n], dtype=float)


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What tells the runs apart: the keys that all configs have, under their shortest name, where values differ."""
    flat = [dict(_flat(config)) for config in configs]
    for entries, label in zip(flat, _sources(configs), strict=True):
        if label:
            entries["data"] = label
    common = [key for key in flat[0] if all(key in other for other in flat)]
    varying = [key for key in common if len({str(f[key]) for f in flat}) > 1]
    varying.sort(key=lambda key: (key == "seed", key))
    short = {key: key.removesuffix("._target_").rsplit(".", 1)[-1] for key in varying}
    names = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    return [{names[key]: str(f[key]).rsplit(".", 1)[-1] if "_target_" in key else str(f[key]) for key in varying}
            for f in flat]  # fmt: skip


def _sources(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data sources of each run, with those of their settings that differ from other runs' on the same source.

    A source's bias is left out: it is the run's, which is a key of its own.
    """
    sources = [config.get("data", {}).get("sources", {}) for config in configs]
    values: dict[tuple[str, str], set[str]] = {}
    for name, key, value in ((n, k, v) for of in sources for n, settings in of.items() for k, v in settings.items()):
        values.setdefault((name, key), set()).add(str(value))
    return [
        "+".join(
            name + "".join(f" {k}={v}" for k, v in settings.items() if k != "bias" and len(values[name, k]) > 1)
            for name, settings in of.items()
        )
        for of in sources
    ]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if prefix == "data." and key == "sources":
            continue  # see `_sources`
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or key not in BESIDE:
            yield f"{prefix}{key}", value


def by_choice(runs: Sequence[Run], labels: Sequence[Mapping[str, str]]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the seed, under what they have in common."""
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels, strict=True):
        name = " ".join(f"{k}={v}" for k, v in label.items() if k != "seed") or run.folder.parent.name
        groups.setdefault(name, []).append(run)
    return groups


def _means(groups: Mapping[str, Sequence[Run]], benchmarks_of: Benchmarks) -> Table:
    table = _table("runs", "seeds", "SS", "difference", "certain", "LMS", "ICAT", "perplexity")
    for name, group in groups.items():
        found = [_headlines(rows(run.figures, run.bias), run.bias) for run in group]
        if any(f[0] is None or f[0].debiased is None for f in found):
            continue  # base models alone
        certain = sum(f[0].certain for f in found if f[0])
        spread = [_spread([f[i] for f in found]) for i in range(4)]
        try:
            seeds = difference_over_seeds(group, benchmarks_of)
            delta = f"{seeds.mean:+.1f} ({seeds.low:+.1f} to {seeds.high:+.1f})"
        except UserError as error:  # the rest of the table needs no records
            log.debug("%s: %s", name, error)
            delta = "unknown"
        table.add_row(name, str(len(group)), spread[0], delta, f"{certain} of {len(group)}", *spread[1:])
    return table


def difference_over_seeds(group: Sequence[Run], benchmarks_of: Benchmarks) -> Seeds:
    """The difference of StereoSet's SS for the targeted bias (else overall), over runs that differ in their seed."""
    found = []
    for run in group:
        records = read_likelihoods(run.folder)
        mine = records[(records["benchmark"] == "stereoset")]
        mine = mine[mine["bias"] == run.bias] if run.bias in set(mine["bias"]) else mine
        benchmark = scored(benchmarks_of(run.config), mine)[0]
        by_model = records_of(benchmark, mine)
        comparisons = benchmark.comparisons(by_model["base"], by_model["debiased"])
        found.append(next(c for c in comparisons if c.metric == "SS"))
    return over_seeds([c.delta.value for c in found], [c.samples[2] for c in found])


def _spread(found: Sequence[Row | None]) -> str:
    values = [row.debiased.value for row in found if row and row.debiased]
    if not values:
        return ""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.1f}"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        left = name in ("run", "runs", "bias", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return table


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


def _headlines(table_rows: Sequence[Row], bias: str) -> list[Row | None]:
    """SS, LMS and ICAT of the targeted bias (else overall), and perplexity."""
    by: dict[tuple[str, str, str], Row] = {}
    for row in table_rows:
        by.setdefault((row.base.benchmark, row.base.bias, row.base.metric), row)  # of several protocols the first
    of = bias if ("stereoset", bias, "SS") in by else "overall"
    return [by.get(("stereoset", of, m)) for m in ("SS", "LMS", "ICAT")] + [by.get(("perplexity", "all", "perplexity"))]


def headline_cells(table_rows: Sequence[Row], bias: str) -> list[str]:
    """SS, its change with the interval, LMS, ICAT and perplexity as text, base and debiased."""
    ss, *others = _headlines(table_rows, bias)
    delta = "" if ss is None else " ".join((ss.cells()[6], f"({ss.cells()[7]})")) if ss.delta else ""
    return [_arrow(ss), delta, *map(_arrow, others)]


def _arrow(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.base.value:.1f}" + (f" -> {row.debiased.value:.1f}" if row.debiased else "")
