"""Several adapters as one model: stacked (all active at once), averaged, or added with weights; LoRA as one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import peft
import torch
from peft.tuners.ia3.layer import IA3Layer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import nn

from debias.models import adapter_folder
from debias.models.base import Base
from debias.models.bottleneck import BOTTLENECK
from debias.records import UserError

MISPLACED_WEIGHTS = "adapter.weights belong to an average or a sum; set adapter.combine=average, or remove them"


def combined(
    base: Base, folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None = None
) -> peft.PeftModel:
    """Attach several saved adapters as one. Raises UserError if their method cannot be combined this way."""
    check(folders, combine, weights)
    model, names = _side_by_side(base, folders, combine)
    assert isinstance(model.base_model, BaseTuner)
    try:
        COMBINATIONS[combine](model.base_model, names, shares(len(names), combine, weights))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(_not_combined(combine, error)) from error
    return model.eval()


JOINED = "joined"  # the name of the one adapter


def joined(
    base: Base, folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None = None
) -> peft.PeftModel:
    """The same as one LoRA adapter, `joined`, whose rank is the sum of theirs.

    Raises UserError for other methods. Options that PEFT does not carry over make it answer otherwise, so compare.
    """
    check_joined(folders, combine, weights)
    model, names = _side_by_side(base, folders, combine)
    tuner, config = model.base_model, model.peft_config[names[0]]
    assert isinstance(tuner, peft.LoraModel)
    assert isinstance(config, peft.LoraConfig)
    # The joined config will be this one with another rank, and the joined factors hold the scaling already.
    config.use_rslora = False
    try:
        tuner.add_weighted_adapter(names, shares(len(names), combine, weights), JOINED, combination_type="cat")
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(_not_combined(combine, error)) from error
    model.set_adapter(JOINED, inference_mode=True)
    return model.eval()


def _side_by_side(base: Base, folders: Sequence[str | Path], combine: str) -> tuple[peft.PeftModel, list[str]]:
    """Load all adapters into one model, of which the first is active; returns their names, too."""
    model = adapter_folder.load(base, folders[0], effect=False)  # in a sum it may add nothing
    names = ["default", *(f"part{i}" for i in range(2, len(folders) + 1))]
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            adapter_folder.add(model, base, folder, name)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(_not_combined(combine, error)) from error
    return model, names


def shares(number: int, combine: str, weights: Sequence[float] | None) -> list[float]:
    """What each adapter is multiplied with: an average divides the weights by their sum."""
    given = list(weights or [1.0] * number)
    return [weight / sum(given) for weight in given] if combine == "average" else given


def _not_combined(combine: str, error: Exception) -> str:
    return f"adapter.combine={combine}: these adapters cannot be combined ({' '.join(str(error).split())[:200]})"


def check(folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None) -> None:
    """Raise UserError for everything that the adapters' configs show to be impossible, before any weights load."""
    if combine not in COMBINATIONS:
        raise UserError(f"adapter.combine={combine!r} is unknown; choose {', '.join(COMBINATIONS)}")
    if len(folders) < 2:
        raise UserError("adapter.combine needs several adapters: adapter.path=[a,b]")
    if weights is not None and combine == "stack":
        raise UserError(MISPLACED_WEIGHTS)
    if weights is not None and (len(weights) != len(folders) or min(weights) < 0 or not sum(weights)):
        raise UserError(f"adapter.weights: give one weight of 0 or more for each of the {len(folders)} adapters")
    configs = [adapter_folder.saved_config(adapter_folder.located(folder)) for folder in folders]
    methods = list(dict.fromkeys(_method(config) for config in configs))
    if len(methods) > 1:
        raise UserError(
            f"adapter.combine: {' and '.join(methods)} adapters cannot be combined; choose adapters of one method"
        )
    for config in configs:
        if option := next((key for key in NOT_COMBINED if vars(config).get(key)), None):
            raise UserError(f"adapter.combine does not work with {option}; remove adapter.combine to compare adapters")
    heads = sum(bool(vars(config).get("modules_to_save")) for config in configs)
    if (combine == "stack" and heads > 1) or (combine == "sum" and heads):
        most = "at most one" if combine == "stack" else "none"
        raise UserError(
            f"adapter.combine={combine}: {most} of the adapters may have a trained prediction head; "
            "set adapter.combine=average"
        )
    if not all(map(POSSIBLE[combine], configs)):
        ways = [way for way, possible in POSSIBLE.items() if all(map(possible, configs))]
        remedy = f"set adapter.combine={ways[0]}" if ways else "remove adapter.combine to compare them one by one"
        raise UserError(f"adapter.combine={combine} does not work for {methods[0]} adapters; {remedy}")


def check_joined(folders: Sequence[str | Path], combine: str, weights: Sequence[float] | None) -> None:
    """Raise UserError for adapters that cannot be one adapter folder, before any weights load."""
    check(folders, combine, weights)
    configs = [adapter_folder.saved_config(adapter_folder.located(folder)) for folder in folders]
    other = next((method for method in map(_method, configs) if method != "LORA"), None)
    option = next(
        (key for config in configs for key in ("lora_bias", "modules_to_save") if vars(config).get(key)), None
    )
    if other or option:
        what = f"{other} adapters" if other else f"LoRA adapters with {option}"
        raise UserError(f"several {what} cannot be one adapter folder; set merge=true to write full weights")


def _method(config: peft.PeftConfig) -> str:
    return "DORA" if vars(config).get("use_dora") else str(getattr(config.peft_type, "value", config.peft_type))


def _stack(tuner: BaseTuner, names: list[str], shares: list[float]) -> None:
    """Activate all adapters: each adds its own change to the base."""
    tuner.set_adapter(names, inference_mode=True)


def _add(tuner: BaseTuner, names: list[str], shares: list[float]) -> None:
    """Every module adds the sum of what the adapters add to it, each times its share.

    PEFT's own average of LoRA is wrong in silence: sqrt(r) times too large with `use_rslora`, and without `lora_bias`
    and the trained prediction heads. So the adapters are stacked, each with its last factor times its share.
    """
    tuner.set_adapter(names[:1], inference_mode=True)
    for module in list(tuner.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            kept = _average_copies(module.modules_to_save, module.original_module, names, shares)
            for name in [name for name in names if name in module.modules_to_save and name != kept]:
                module.delete_adapter(name, [kept])
        elif isinstance(module, LNTuningLayer):  # one copy at a time
            kept = _average_copies(module.ln_tuning_layers, module.get_base_layer(), names, shares)
        elif isinstance(module, IA3Layer):
            _average_scales(module.ia3_l, names, shares)
        else:
            for factor in LAST_FACTORS:
                for name, share in zip(names, shares, strict=True):
                    if name in (adapters_of_layer := getattr(module, factor, {})):
                        _scale(adapters_of_layer[name], share)
    tuner.set_adapter(names, inference_mode=True)
    for module in tuner.modules():
        if isinstance(module, LNTuningLayer):
            module.set_adapter(next(name for name in names if name in module.ln_tuning_layers), inference_mode=True)


def _average_copies(copies: nn.ModuleDict, original: nn.Module, names: Sequence[str], shares: Sequence[float]) -> str:
    """Make the first of the trained copies their weighted mean; returns its name. Who has none uses the original."""
    trained: dict[str, nn.Module] = dict(copies.items())
    kept = next(name for name in names if name in trained)
    modules = [trained.get(name, original) for name in names]
    for target, *parameters in zip(trained[kept].parameters(), *(m.parameters() for m in modules), strict=True):
        target.data = sum(share * p.detach() for share, p in zip(shares, parameters, strict=True)).to(target.dtype)
    return kept


def _average_scales(scales: nn.ParameterDict, names: Sequence[str], shares: Sequence[float]) -> None:
    """Make the first of the scales their weighted mean and the others 1, which is also that of an adapter without."""
    here = [name for name in names if name in scales]
    if here:
        one = torch.ones_like(scales[here[0]])
        mean = sum(share * scales.get(name, one).detach() for name, share in zip(names, shares, strict=True))
        for name in here:
            scales[name].data = mean if name == here[0] else one.clone()


def _scale(factor: nn.Module | nn.Parameter, share: float) -> None:
    for parameter in [factor] if isinstance(factor, nn.Parameter) else factor.parameters():
        parameter.data.mul_(share)


def _can_stack(config: peft.PeftConfig) -> bool:
    return not config.is_prompt_learning and config.peft_type != peft.PeftType.LN_TUNING


def _can_add(config: peft.PeftConfig) -> bool:
    return _method(config) in LINEAR


def _can_average(config: peft.PeftConfig) -> bool:
    return _method(config) in AVERAGED


# What a LoRA, AdaLoRA, VeRA or bottleneck adds is linear in these.
LAST_FACTORS = ("lora_B", "lora_embedding_B", "vera_lambda_b", "bottleneck_up")
LINEAR = ("LORA", "ADALORA", "VERA", BOTTLENECK)
AVERAGED = (*LINEAR, "IA3", "LN_TUNING")
# Options of LoRA under which two adapters exclude each other or share their weights between modules.
NOT_COMBINED = (
    "trainable_token_indices", "ensure_weight_tying", "alora_invocation_tokens", "use_qalora", "use_bdlora",
    "velora_config", "kasa_config", "arrow_config", "monteclora_config",
)  # fmt: skip
COMBINATIONS: dict[str, Callable[[BaseTuner, list[str], list[float]], None]] = {
    "stack": _stack, "average": _add, "sum": _add,
}  # fmt: skip
POSSIBLE: dict[str, Callable[[peft.PeftConfig], bool]] = {
    "stack": _can_stack, "average": _can_average, "sum": _can_add,
}  # fmt: skip
