"""Run folders as tests need them: figures and records that are written down, not measured. No model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from debias.records import Candidate, Figure, Tokens

RECORD = (  # columns of likelihoods.parquet
    "benchmark", "protocol", "example", "candidate", "bias", "target", "model", "logprob", "num_tokens", "score",
)  # fmt: skip


def figure(metric: str, base: float, after: float, p: float = 0.001, **more: Any) -> list[Figure]:
    """Base, debiased and difference, each with an interval of 2 to either side."""
    name = ("perplexity", "conditional", "all") if metric == "perplexity" else ("stereoset", "bias_bench", "gender")
    base, after = float(base), float(after)
    ideal = {"SS": 50.0, "perplexity": 1.0}.get(metric, 100.0)
    rows = [
        Figure(*name, metric, "base", base, base - 2, base + 2, 771, ideal),
        Figure(*name, metric, "debiased", after, after - 2, after + 2, 771, ideal),
        Figure(*name, metric, "delta", after - base, after - base - 2, after - base + 2, 771, None, p),
    ]
    return [row._replace(**more) for row in rows]


def scores(ss: float, lms: float = 91, ppl: float = 40, p: float = 0.001) -> list[Figure]:
    """Base: SS 64, LMS 91, ICAT 65.52, perplexity 40."""
    icat = lms * min(ss, 100 - ss) / 50
    return [*figure("SS", 64, ss, p), *figure("LMS", 91, lms), *figure("ICAT", 65.52, icat),
            *figure("perplexity", 40, ppl)]  # fmt: skip


def config(data: str = "targeted", seed: int = 1, n: int = 8, **more: Any) -> dict[str, Any]:
    """A resolved config, as far as a report reads it."""
    sources = {"bias": "gender", "n": n, "sources": {data: {"bias": "gender"}}}
    return {"seed": seed, "data": sources, **more}


def write_run(
    folder: Path,
    of: Mapping[str, Any],
    figures: Sequence[Figure],
    state: str = "done",
    code: str = "a" * 64,
    **facts: Any,
) -> Path:
    """A reduced run folder: what a study would keep. `facts` are further keys of status.json."""
    folder.mkdir(parents=True)
    versions = {"debias": "0.1.0", "torch": "2.13.0"}
    status = {"state": state, "ended": "2026-01-01", "versions": versions, "git_commit": "f" * 40, "code_sha256": code}
    (folder / "status.json").write_text(json.dumps(status | facts))
    (folder / "config.yaml").write_text(yaml.safe_dump(of))
    lines = [json.dumps(f._asdict()) for f in figures]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    stages = {"train": {"tokens": 1000, "seconds": 20.0}}
    (folder / "cost.json").write_text(json.dumps({"seconds": 60.0, "dollars": 0.5, "stages": stages}))
    (folder / "train.csv").write_text("step,loss\n1,3.5\n2,2.5\n")
    return folder


def write_records(folder: Path, leans: Mapping[str, tuple[str, float, float]]) -> None:
    """likelihoods.parquet with one StereoSet pair by name: its bias, and the preference before and after."""
    rows = [
        ("stereoset", "bias_bench", name, candidate, bias, "term", model, 10 * score, 10, score)
        for name, (bias, before, after) in leans.items()
        for model, lean in (("base", before), ("debiased", after))
        for candidate, score in (("stereotype", lean - 5), ("anti-stereotype", -5.0), ("unrelated", -9.0))
    ]
    pd.DataFrame(rows, columns=RECORD).to_parquet(folder / "likelihoods.parquet", index=False)


class Sentences:
    """A stand-in for StereoSet: the texts alone, by the names of the pairs."""

    name, protocol_name = "stereoset", "bias_bench"

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def candidates(self, _: Tokens) -> list[Candidate]:
        return [
            Candidate(name, candidate, "gender", "term", f"{text} ({candidate})")
            for name, text in self.texts.items()
            for candidate in ("stereotype", "anti-stereotype", "unrelated")
        ]
