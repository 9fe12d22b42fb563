"""An adapter's weights in float32 beside a base in bfloat16, where AdamW's small updates would be rounded away.

PEFT holds the layers that a method adds in float32. Copies of the base's own modules (layer norm tuning, full
fine-tuning, a trained prediction head) it leaves in the base's type, and what it loads into either passes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import peft
import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn


@torch.no_grad()
def hold_in_float32(model: peft.PeftModel, name: str, saved: Mapping[str, Tensor] | None = None) -> None:
    """Hold the weights of the adapter `name` in float32, whatever the type of the base.

    Args:
        saved: the tensors of the file from which PEFT loaded the adapter, which restore what it rounded.
    """
    if model.get_base_model().dtype == torch.float32:
        return
    for full_name, parameter in model.named_parameters():
        if name in full_name.split(".") and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module, original in _copies(model, name):
        module.register_forward_pre_hook(_take, with_kwargs=True)
        module.register_forward_hook(partial(_give, original))
    for layer in model.modules():
        if isinstance(layer, AdaLoraLayer) and name in layer.ranknum:
            layer.ranknum[name].requires_grad_(False)  # PEFT's own cast makes this constant, never saved, trainable
    if saved is not None and not model.active_peft_config.is_prompt_learning:  # a prompt is in float32 from the start
        state = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        for key, tensor in state.items():
            tensor.copy_(saved[key])


def _copies(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The trained copies of the base's modules, each with its original."""
    for module in model.modules():
        if isinstance(module, LNTuningLayer) and name in module.ln_tuning_layers:
            yield module.ln_tuning_layers[name], module.base_layer
        elif isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            yield module.modules_to_save[name], module.original_module


def _take(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A copy computes in the type of its weights ..."""
    return _cast(args, module), _cast(kwargs, module)


def _give(original: nn.Module, _: nn.Module, __: Any, output: Any) -> Any:
    """... and answers in that of the original, as the rest of the model expects."""
    return _cast(output, original)


def _cast(values: Any, like: nn.Module) -> Any:
    """The same values, floating point tensors in the type of a module's weights."""
    if isinstance(values, Tensor):
        return values.to(next(like.parameters()).dtype) if values.is_floating_point() else values
    if isinstance(values, tuple):
        return tuple(_cast(value, like) for value in values)
    return {key: _cast(value, like) for key, value in values.items()} if isinstance(values, dict) else values
