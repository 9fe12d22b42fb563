"""Adapters: the small trained part, attached to a frozen base with PEFT, checked, and taken off again."""

from __future__ import annotations

from typing import Annotated

import peft
import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from debias.models import bottleneck, targets
from debias.models.adapter_dtype import hold_in_float32
from debias.models.base import Base, LanguageModel
from debias.models.placement import inputs_on, is_spread
from debias.records import Count, NotNegative, Positive, Range, Share, UserError

METHODS = peft.PEFT_TYPE_TO_CONFIG_MAPPING  # PEFT's methods and our bottleneck
assert bottleneck.BOTTLENECK in METHODS

# What PEFT's settings may be. PEFT itself says less, and much of it only once a model is there.
Modules = list[str] | str | None
PEFT_TYPES = {
    **dict.fromkeys(("r", "init_r", "target_r", "deltaT", "total_step", "num_virtual_tokens"), Count),
    **dict.fromkeys(("lora_dropout", "vera_dropout", "dropout", "beta1", "beta2"), Share),
    **dict.fromkeys(("tinit", "tfinal", "orth_reg_weight"), NotNegative),  # a share of the steps, in our config
    **dict.fromkeys(("target_modules", "feedforward_modules", "exclude_modules"), Modules),
    "lora_alpha": Positive,
    "reduction_factor": Annotated[float, Range(1)],
}


def attach(base: Base, config: peft.PeftConfig) -> peft.PeftModel:
    """Attach a new adapter to the base. Raises UserError if the method does not fit this architecture."""
    prompts = config.is_prompt_learning
    # PEFT has no task type for masked models. Without one it attaches every method but prompts, which need some type;
    # feature extraction returns the model's output as it is.
    masked = peft.TaskType.FEATURE_EXTRACTION if prompts else None
    config.task_type = peft.TaskType.CAUSAL_LM if base.kind == "causal" else masked
    if vars(config).get("modules_to_save") == [targets.PREDICTION_HEAD]:
        if base.kind == "causal":
            raise UserError(
                "adapter.train_head=true works with masked models only; remove it, or choose a masked model with model="
            )
        if prompts:  # PEFT can switch off a prompt, but not a module that is trained with it
            raise UserError("adapter.train_head=true does not work with prompts; choose adapter=lora or bottleneck")
    check_placement(base, config)
    if is_spread(base.model) and config.peft_type == peft.PeftType.ADALORA:
        raise UserError(f"adapter=adalora compares the ranks of all layers on one device; {UNSPREAD}")
    frozen = {id(parameter) for parameter in base.model.parameters()}
    try:
        targets.resolve(config, base.model)
        before = probe_logits(base.model)
        model = peft.get_peft_model(base.model, config)
        assert isinstance(model, peft.PeftModel)
        make_switchable(model)
        hold_in_float32(model, "default")
        _tie_copies(model)
        if any(p.requires_grad and id(p) in frozen for p in model.parameters()):
            raise UserError(CHANGES_BASE)
        check_base_kept(model, before)
        _check_effect(model)
    except UserError as error:
        if str(error) == CHANGES_BASE and getattr(base.model, "is_quantized", False):
            raise UserError(_misfit(config, base, ValueError("it changes the quantised weights"))) from error
        raise
    except Exception as error:  # PEFT's methods raise errors of many types for a model they do not know
        raise UserError(_misfit(config, base, error)) from error
    return model


UNSPREAD = "choose adapter=lora, or remove model.device_map"


def check_placement(base: Base, config: peft.PeftConfig) -> None:
    """Raise UserError for prompts and prefixes on a spread model: PEFT keeps them on one device, outside the layers."""
    if is_spread(base.model) and config.is_prompt_learning:
        raise UserError(f"prompts and prefixes do not work with a model on several devices; {UNSPREAD}")


def summary(error: Exception) -> str:
    """The type and the first sentence of an error that PEFT raised."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200]  # PEFT's messages are long


def _misfit(config: peft.PeftConfig, base: Base, error: Exception) -> str:
    remedy = "choose another method (`debias ls adapter`)"
    if "target_modules" in vars(config):
        remedy = f"name the modules with adapter.target_modules=[...], or {remedy}"
    if getattr(base.model, "is_quantized", False):
        remedy = "choose adapter=lora, or remove model.quantization"
    elif base.model.dtype != torch.float32:  # the adapter's own weights are in float32
        remedy = f"set model.dtype=float32, {remedy}"
    return f"{type(config).__name__} does not fit {type(base.model).__name__} ({summary(error)}); {remedy}"


def make_switchable(model: peft.PeftModel) -> None:
    """Let `disable_adapter` work on a masked model with a prompt.

    To switch a prompt off, PEFT 0.21 swaps the base's `prepare_inputs_for_generation`, which masked models lack.
    """
    if model.active_peft_config.is_prompt_learning and not hasattr(model.base_model, "prepare_inputs_for_generation"):
        model.base_model.prepare_inputs_for_generation = None  # type: ignore[assignment]


def _tie_copies(model: peft.PeftModel) -> None:
    """Tie the trained copies of weights that the base ties (word embeddings and output layer).

    LN tuning, which `adapter=full` applies to every module, copies each module by itself; the copies would drift apart.
    """
    first: dict[int, torch.nn.Parameter] = {}
    for layer in model.modules():
        if isinstance(layer, LNTuningLayer):
            copy = layer.ln_tuning_layers["default"]
            for name, parameter in layer.base_layer.named_parameters(recurse=False):
                setattr(copy, name, first.setdefault(id(parameter), getattr(copy, name)))


CHANGES_BASE = (
    "the adapter changes the base's own weights, which cannot be switched off; "
    "train it with init_lora_weights=true, bias=none and without layer_replication"
)


@torch.no_grad()
def probe_logits(model: LanguageModel) -> torch.Tensor:
    """Answers to a short text, to tell whether two models are the same. Raises ValueError if they are NaN."""
    ids = torch.arange(1, 9, device=inputs_on(model))[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if logits.isnan().any():
        raise ValueError("its logits are NaN")
    return logits


def check_base_kept(model: peft.PeftModel, before: torch.Tensor) -> None:
    """Raise UserError unless the model without its adapter is the base as it was.

    Some options change the base's weights beside the adapter: `init_lora_weights=pissa` takes what it starts with out
    of them, and `bias=all` trains their biases.
    """
    with model.disable_adapter():
        if not torch.equal(probe_logits(model), before):
            raise UserError(CHANGES_BASE)


def _check_effect(model: peft.PeftModel) -> None:
    """Fail early if the model ignores the adapter (zero gradient), or if a second step of training would fail."""
    ids = torch.arange(1, 5, device=inputs_on(model))[None]
    trainable = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):  # a recurrent model may keep its state, and with it the graph of the step before
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        total = logits.float().logsumexp(-1).sum()
        gradients = torch.autograd.grad(total, trainable, allow_unused=True) if total.requires_grad else ()
        # Any non-zero gradient will do: a fresh LoRA has B = 0, so dL/dA is zero, but dL/dB is not.
        if not any(g is not None and g.any() for g in gradients):
            raise ValueError("the model ignores it")


def trainable_parameters(model: nn.Module) -> int:
    """Number of trained weights; a weight that several modules share counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def virtual_tokens(model: peft.PeftModel) -> int:
    """Number of the model's positions that the adapter's prompt or prefix takes up."""
    return prompt_length(model.active_peft_config)


def prompt_length(config: peft.PeftConfig) -> int:
    """Number of positions that an adapter's prompt or prefix takes up."""
    return config.num_virtual_tokens if isinstance(config, peft.PromptLearningConfig) else 0


def detach(model: peft.PeftModel) -> None:
    """Remove the adapter, so that the base can carry another one."""
    if not hasattr(model.base_model, "unload"):  # prompts and prefixes change no module of the base
        return
    base = model.get_base_model()
    # PEFT leaves the trained copy of a module (`modules_to_save`, a prediction head) in the base's place.
    originals = {name: m.original_module for name, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    # Its copies of modules without a `weight`, such as an activation with parameters, make `unload` fail.
    copied = {name: m.get_base_layer() for name, m in base.named_modules() if isinstance(m, LNTuningLayer)}
    for name, module in copied.items():
        base.set_submodule(name, module)
    model.base_model.unload()  # type: ignore[operator]
    for name, module in originals.items():
        base.set_submodule(name, module)
