"""The README's picture and table, and the pictures in docs/: `python tests/pictures.py [RUN]` makes them.

They show the default run. Without RUN (its folder) the run is started here, which takes as long as `make demo`, or no
time if it is done. With RUN, today's program computes its figures and writes its page anew, from its scores. Figures
and scores are kept in docs/default_run.parquet, from which a test makes the table again. The picture of many runs shows
the study's figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from browser import Page, chromium
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from debias.benchmarks.evaluation import evaluation_of, prepared
from debias.cli.build import make_benchmarks
from debias.cli.config import make
from debias.records import Figure
from debias.report import comparison
from debias.report.one_run.report import RunReport, write_reports
from debias.report.outcome import Bounds
from debias.results import read_figures, read_likelihoods
from debias.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "docs/default_run.parquet"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BEGIN, END = "<!-- table: python tests/pictures.py -->\n", "<!-- end of table -->\n"
SHOWN = {  # rows of the README's table: benchmark, bias, metric
    *(("stereoset", bias, metric) for bias in ("gender", "overall") for metric in ("SS", "LMS", "ICAT")),
    ("crows_pairs", "gender", "SS"),
    ("winobias", "gender", "SS"),
    ("pronoun_gap", "gender", "slope"),
    ("pronoun_gap", "gender", "mean log-odds"),
    ("perplexity", "all", "perplexity"),
}


def table(figures: Sequence[Figure]) -> str:
    """The lines of the table that a run prints for `SHOWN`."""
    rows = [r for r in comparison.rows(figures, "gender") if (r.base.benchmark, r.base.bias, r.base.metric) in SHOWN]
    console = Console(width=100, color_system=None)
    with console.capture() as printed:
        console.print(comparison.table(rows).without("ideal").terminal(gap=1))
    return "".join(f"{line.rstrip()}\n" for line in printed.get().splitlines() if line.strip())


def write_table(figures: Sequence[Figure]) -> None:
    """Put the table between its marks in the README."""
    path = ROOT / "README.md"
    head, rest = path.read_text(encoding="utf-8").split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n```\n{table(figures)}```\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def write_page(run: Path) -> None:
    """Write the run's figures and report with today's program, from its scores."""
    text = (run / "config.yaml").read_text(encoding="utf-8")
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    cfg = OmegaConf.create(yaml.safe_load(text))
    model = make(cfg.model)
    to_score = prepared(make_benchmarks(cfg), model.tokens())
    evaluation = evaluation_of(
        to_score, [read_likelihoods(run)], positions=0, notes=(), start_tokens=status.get("start_tokens") or {}
    )
    folder = RunFolder(run, text, {key: value for key, value in status.items() if key.endswith("_sha256")})
    folder.write_figures(evaluation.figures)
    data = make(cfg.data).load(cfg.seed)
    write_reports(folder, evaluation, RunReport(cfg.data.bias, Bounds(**cfg.outcome)), data, MODEL, run / "adapter")


def picture(page: Page, report: Path, name: str, width: int, height: int) -> None:
    """The top of a page as docs/NAME.png, in 256 colours, which keeps it small."""
    path = ROOT / f"docs/{name}.png"
    page.open(report, width=width)
    page.picture(path, height)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def debias(*words: str | Path) -> None:
    """Run the program at the top of the checkout."""
    subprocess.run([sys.executable, "-m", "debias", *words], cwd=ROOT, check=True)


def scored_sentences(folder: Path) -> Path:
    """The quality page of the 60 labelled sentences, with the scores of the embedded model."""
    subprocess.run([sys.executable, ROOT / "benchmarks/judge.py", "llm=local"], cwd=folder, check=True)
    (scored,) = folder.glob("outputs/judge_labels/*smollm2.jsonl")
    debias("doctor", scored, "--html", "leakage=false", f"hydra.run.dir={folder}")
    return scored.with_suffix(".quality.html")


def main(run: Path) -> None:
    """Make everything anew."""
    write_table(read_figures(run))
    debias("archive", run, "--out", ARCHIVE, "--records", "overwrite=true")
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as page:
        debias("report", "docs/study/data_sources.parquet", "--out", folder)
        picture(page, run / "report.html", "report", 1280, 1180)
        verdict = page.value("document.querySelector('.verdict').className")
        assert verdict in ("verdict debiased", "verdict mixed"), f"the README shows a run that works, not: {verdict}"
        picture(page, run / "report.html", "report-phone", 390, 1000)
        picture(page, Path(folder) / "report.html", "comparison", 1280, 1500)
        picture(page, scored_sentences(Path(folder)), "judge", 1000, 620)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_page(Path(sys.argv[1]))
    else:
        debias("run")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs/run/default")
