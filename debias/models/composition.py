"""Several adapters as one model: all active at once, or averaged into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from debias.models import adapter as adapters
from debias.models.base import Base
from debias.records import UserError


def combined(base: Base, folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None = None) -> Any:
    """Put several saved adapters on the base as one. Raises UserError where their method cannot do that."""
    check(folders, combine, weights)
    for folder in folders[1:]:
        adapters.check_base(base, adapters.located(folder))
    model = adapters.load(base, folders[0])
    names = ["default", *(f"part{i}" for i in range(2, len(folders) + 1))]
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(str(folder), name)
        COMBINATIONS[combine](model, names, _shares(weights, len(names)))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"adapter.combine={combine}: these adapters cannot be combined ({reason})") from error
    return model.eval()


def check(folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None) -> None:
    """Raise UserError for what can be known from the adapters' configs alone."""
    if combine not in COMBINATIONS:
        raise UserError(f"adapter.combine={combine!r} is unknown; choose {' or '.join(COMBINATIONS)}")
    if len(folders) < 2:
        raise UserError("adapter.combine needs several adapters: adapter.path=[a,b]")
    if weights is not None and combine != "average":
        raise UserError("adapter.weights are those of an average; set adapter.combine=average, or leave them out")
    if weights is not None and (len(weights) != len(folders) or min(weights) < 0 or not sum(weights)):
        raise UserError(f"adapter.weights: give one weight, not negative, for each of the {len(folders)} adapters")
    configs = [peft.PeftConfig.from_pretrained(str(adapters.located(folder))) for folder in folders]
    methods = list(dict.fromkeys(_method(config) for config in configs))
    if len(methods) > 1:
        raise UserError(
            f"adapter.combine: {' and '.join(methods)} adapters cannot be combined; choose those of one method"
        )
    if sum(bool(vars(config).get("modules_to_save")) for config in configs) > 1:
        raise UserError("adapter.combine: several of these adapters bring a whole prediction head; at most one may")
    if not POSSIBLE[combine](configs[0]):
        ways = [way for way, possible in POSSIBLE.items() if possible(configs[0])]
        remedy = f"set adapter.combine={ways[0]}" if ways else "leave adapter.combine out to compare them one by one"
        raise UserError(f"adapter.combine={combine}: {methods[0]} adapters have no such form; {remedy}")


def _method(config: Any) -> str:
    return "DORA" if vars(config).get("use_dora") else str(getattr(config.peft_type, "value", config.peft_type))


def _shares(weights: Sequence[float] | None, number: int) -> list[float]:
    weights = weights or [1.0] * number
    return [weight / sum(weights) for weight in weights]


def _stack(model: Any, names: list[str], shares: list[float]) -> None:
    """All active at once: what each adds to the base is added."""
    model.base_model.set_adapter(names, inference_mode=True)


def _average(model: Any, names: list[str], shares: list[float]) -> None:
    """A new adapter whose change is the weighted mean of the changes.

    PEFT's `linear` averages LoRA's two factors one by one, which brings in products of one adapter's factor with
    another's (the mean of an adapter with itself would be twice the adapter); `cat` puts the factors side by side.
    """
    options = {"combination_type": "cat"} if isinstance(model.base_model, peft.LoraModel) else {}
    model.base_model.add_weighted_adapter(names, shares, "combined", **options)
    model.base_model.set_adapter("combined", inference_mode=True)


def _one_at_a_time(config: Any) -> bool:
    return config.is_prompt_learning or config.peft_type == peft.PeftType.LN_TUNING


def _averages(config: Any) -> bool:
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    return tuner in (peft.LoraModel, peft.IA3Model) and not vars(config).get("use_dora")


COMBINATIONS: dict[str, Callable[[Any, list[str], list[float]], None]] = {"stack": _stack, "average": _average}
POSSIBLE: dict[str, Callable[[Any], bool]] = {"stack": lambda config: not _one_at_a_time(config), "average": _averages}
