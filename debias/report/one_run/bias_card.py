"""What a bias card says about the adapter, and its metadata in the model hub's format."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from debias import __version__
from debias.models.adapter_folder import PROVENANCE
from debias.models.bert_tiny import NAME as BERT_TINY
from debias.models.bottleneck import BOTTLENECK
from debias.records import Figure
from debias.report.comparison import title_of
from debias.report.grid import Grid, row, text_columns

TASKS = {"causal": "text-generation", "masked": "fill-mask"}
HUB_IDS = {"stereoset": "McGill-NLP/stereoset", "crows_pairs": "nyu-mll/crows_pairs", "panda": "facebook/panda"}
CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}


def facts(
    adapter: Path,
    base: str,
    bias: str,
    figures: Sequence[Figure],
    sources: Sequence[str],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What the card's template needs besides the report's facts, from the adapter's folder and the run's config."""
    trained = json.loads((adapter / PROVENANCE).read_text(encoding="utf-8"))
    of_adapter = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    method = "DORA" if of_adapter.get("use_dora") else of_adapter["peft_type"]
    return {
        "metadata": metadata(figures, base, bias, method.lower(), trained["kind"], sources).to_yaml(),
        "settings": settings(config),
        "project": project(),
        "method": method,
        "trained": trained,
        "auto_class": CLASSES[trained["kind"]],
        "ours": method == BOTTLENECK,
    }


def project() -> str:
    """This program in Markdown, with a link if the installed package names an address."""
    try:
        addresses = importlib.metadata.metadata("debias").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:  # run from its folder
        addresses = []
    found = next((address.partition(",")[2].strip() for address in addresses), "")
    return f"[debias {__version__}]({found})" if found else f"debias {__version__}"


def settings(of_run: Mapping[str, Any]) -> Grid:
    """The objective and the hyperparameters of the training."""
    objective = of_run.get("objective") or {}
    rows = [row("objective", str(objective.get("_target_", "")).rpartition(".")[2])]
    rows += [row(f"objective.{key}", str(value)) for key, value in objective.items() if key != "_target_"]
    of_training = of_run.get("training") or {}
    rows += [row(f"training.{key}", str(value)) for key, value in of_training.items() if not isinstance(value, dict)]
    rows.append(row("seed", str(of_run.get("seed", ""))))
    return Grid(text_columns("setting", "value"), rows, name="Settings")


def metadata(
    figures: Sequence[Figure], base: str, bias: str, method: str, kind: str, sources: Sequence[str] = ()
) -> ModelCardData:
    """The card's metadata. Each figure of the debiased model is a result with its interval, n and the base's value."""
    of_base = {_key(f): f.value for f in figures if f.model == "base"}
    return ModelCardData(
        base_model=base if on_hub(base) else None,
        base_model_relation="adapter" if on_hub(base) else None,
        # A file of the user's own is not on the hub.
        datasets=[HUB_IDS.get(source, source) for source in sources if not Path(source).suffix] or None,
        language="en",
        library_name="peft",
        pipeline_tag=TASKS[kind],
        license="apache-2.0",
        tags=["debiasing", "bias", method],
        model_name=f"{base.rstrip('/').rpartition('/')[2]}-debiased-{bias}",
        eval_results=[
            _result(f, of_base[_key(f)], TASKS[kind])
            for f in figures
            if f.model == "debiased" and math.isfinite(f.value)
        ]
        or None,
    )


def on_hub(base: str) -> bool:
    """Whether the base is a model on the hub, not a folder or our own demonstration model."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)) and base != BERT_TINY and not Path(base).exists()


def _key(figure: Figure) -> tuple[str, str, str, str]:
    return figure.benchmark, figure.protocol, figure.bias, figure.metric


def _result(figure: Figure, base: float, task: str) -> EvalResult:
    low, high = round(figure.ci_low, 4), round(figure.ci_high, 4)
    return EvalResult(
        task_type=task,
        dataset_type=figure.benchmark,
        dataset_name=title_of(figure),
        metric_type=figure.metric,
        metric_name=f"{figure.metric}, {figure.bias} (95% interval {low:.1f} to {high:.1f}, n = {figure.n:,})",
        metric_value=round(figure.value, 4),
        metric_args={"bias": figure.bias, "protocol": figure.protocol, "n": figure.n, "base": round(base, 4)}
        | ({"ci_low": low, "ci_high": high} if math.isfinite(low) else {}),
    )
