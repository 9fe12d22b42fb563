"""Several adapters as one model: stacked (all active at once) or averaged into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from debias.models import adapter as adapters
from debias.models.base import Base
from debias.records import UserError


def combined(
    base: Base, folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None = None
) -> peft.PeftModel:
    """Attach several saved adapters as one. Raises UserError if their method cannot be combined this way."""
    check(folders, combine, weights)
    for folder in folders[1:]:
        adapters.check_base(base, adapters.located(folder))
    model = adapters.load(base, folders[0], effect=False)  # in a sum it may add nothing
    names = ["default", *(f"part{i}" for i in range(2, len(folders) + 1))]
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(str(folder), name)
        shares = weights or [1.0] * len(names)
        assert isinstance(model.base_model, BaseTuner)
        COMBINATIONS[combine](model.base_model, names, [share / sum(shares) for share in shares])
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"adapter.combine={combine}: these adapters cannot be combined ({reason})") from error
    return model.eval()


def check(folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None) -> None:
    """Raise UserError for everything that the adapters' configs show to be impossible, before any weights load."""
    if combine not in COMBINATIONS:
        raise UserError(f"adapter.combine={combine!r} is unknown; choose {' or '.join(COMBINATIONS)}")
    if len(folders) < 2:
        raise UserError("adapter.combine needs several adapters: adapter.path=[a,b]")
    if weights is not None and combine != "average":
        raise UserError("adapter.weights belong to an average; set adapter.combine=average, or remove them")
    if weights is not None and (len(weights) != len(folders) or min(weights) < 0 or not sum(weights)):
        raise UserError(f"adapter.weights: give one weight of 0 or more for each of the {len(folders)} adapters")
    configs = [peft.PeftConfig.from_pretrained(str(adapters.located(folder))) for folder in folders]
    methods = list(dict.fromkeys(_method(config) for config in configs))
    if len(methods) > 1:
        raise UserError(
            f"adapter.combine: {' and '.join(methods)} adapters cannot be combined; choose adapters of one method"
        )
    if sum(bool(vars(config).get("modules_to_save")) for config in configs) > 1:
        raise UserError("adapter.combine: at most one of the adapters may have a trained prediction head")
    if not POSSIBLE[combine](configs[0]):
        ways = [way for way, possible in POSSIBLE.items() if possible(configs[0])]
        remedy = f"set adapter.combine={ways[0]}" if ways else "remove adapter.combine to compare them one by one"
        raise UserError(f"adapter.combine={combine} does not work for {methods[0]} adapters; {remedy}")


def _method(config: peft.PeftConfig) -> str:
    return "DORA" if vars(config).get("use_dora") else str(getattr(config.peft_type, "value", config.peft_type))


def _stack(tuner: BaseTuner, names: list[str], shares: list[float]) -> None:
    """Activate all adapters: each adds its own change to the base."""
    tuner.set_adapter(names, inference_mode=True)


def _average(tuner: BaseTuner, names: list[str], shares: list[float]) -> None:
    """Make a new adapter whose change to the base is the weighted mean of the adapters' changes."""
    if isinstance(tuner, peft.LoraModel):
        # PEFT's default, `linear`, sums the factors: (sum B)(sum A) has cross terms such as B1 A2, and the mean of an
        # adapter with itself would be twice the adapter. `cat` concatenates them: [B1 B2] [A1; A2] = B1 A1 + B2 A2.
        tuner.add_weighted_adapter(names, shares, "combined", combination_type="cat")
    else:
        assert isinstance(tuner, peft.IA3Model)
        tuner.add_weighted_adapter(names, shares, "combined")
    tuner.set_adapter("combined", inference_mode=True)


def _can_stack(config: peft.PeftConfig) -> bool:
    return not config.is_prompt_learning and config.peft_type != peft.PeftType.LN_TUNING


def _can_average(config: peft.PeftConfig) -> bool:
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)  # type: ignore[call-overload]
    return tuner in (peft.LoraModel, peft.IA3Model) and not vars(config).get("use_dora")


COMBINATIONS: dict[str, Callable[[BaseTuner, list[str], list[float]], None]] = {"stack": _stack, "average": _average}
POSSIBLE: dict[str, Callable[[peft.PeftConfig], bool]] = {"stack": _can_stack, "average": _can_average}
