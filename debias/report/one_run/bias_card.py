"""What a bias card says about the adapter, and its metadata in the model hub's format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from debias.models.adapter import PROVENANCE
from debias.models.bert_tiny import NAME as BERT_TINY
from debias.models.bottleneck import BOTTLENECK
from debias.records import Figure
from debias.report.comparison import title_of

TASKS = {"causal": "text-generation", "masked": "fill-mask"}
CLASSES = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}


def facts(adapter: Path, base: str, bias: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """What the card's template needs besides the report's facts, read from the adapter's folder."""
    trained = json.loads((adapter / PROVENANCE).read_text(encoding="utf-8"))
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    method = "DORA" if config.get("use_dora") else config["peft_type"]
    return {
        "metadata": metadata(figures, base, bias, method.lower(), trained["kind"]).to_yaml(),
        "method": method,
        "trained": trained,
        "auto_class": CLASSES[trained["kind"]],
        "ours": method == BOTTLENECK,
    }


def metadata(figures: Sequence[Figure], base: str, bias: str, method: str, kind: str) -> ModelCardData:
    """The card's metadata. Each figure of the debiased model is a result with its interval, n and the base's value."""
    of_base = {_key(f): f.value for f in figures if f.model == "base"}
    return ModelCardData(
        base_model=base if on_hub(base) else None,
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
