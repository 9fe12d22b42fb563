"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021) for PEFT, which has none.

Importing this module adds the method `BOTTLENECK` to PEFT: `peft.get_peft_model`, `PeftModel.from_pretrained` and
everything built on them then work as for PEFT's own methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from debias.models import targets

BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """Where bottlenecks are inserted and how narrow they are.

    Args:
        target_modules: linear modules to put a bottleneck after: `pfeiffer` (each feed-forward block), `houlsby`
            (attention too), module names or a regular expression.
        reduction_factor: width of the model / width of the bottleneck.
        non_linearity: any activation of transformers, such as `relu`, `gelu` or `silu`.
        dropout: on the bottleneck's input, in training only.
        exclude_modules: module names or a regular expression that get no bottleneck.
        modules_to_save: other modules to train in full, as in PEFT's own methods.
    """

    target_modules: list[str] | str | None = "pfeiffer"
    reduction_factor: float = 16
    non_linearity: str = "relu"
    dropout: float = 0.0
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if self.non_linearity not in ACT2FN:
            raise ValueError(f"adapter.non_linearity={self.non_linearity!r} is not an activation of transformers")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """y = f(x) becomes y + up(act(down(y))); several active adapters each add their term."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_act")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_dropout, self.bottleneck_act = nn.ModuleDict(), nn.ModuleDict()
        self.merged_adapters: list[str] = []

    def add(self, adapter: str, config: BottleneckConfig) -> None:
        """Add a bottleneck that changes nothing yet: up is zero, so training starts from the base's function."""
        width = targets.width(self.get_base_layer())
        narrow = max(1, int(width / config.reduction_factor))
        self.bottleneck_down[adapter] = nn.Linear(width, narrow)
        self.bottleneck_up[adapter] = up = nn.Linear(narrow, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_dropout[adapter] = nn.Dropout(config.dropout)
        self.bottleneck_act[adapter] = ACT2FN[config.non_linearity]
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the active bottlenecks'."""
        y = self.base_layer(*args, **kwargs)
        return y if self.disable_adapters else y + sum(self._addition(a, y) for a in self.active_adapters)

    def _addition(self, adapter: str, y: Tensor) -> Tensor | int:
        if adapter not in self.bottleneck_down:
            return 0
        down, up = self.bottleneck_down[adapter], self.bottleneck_up[adapter]
        assert isinstance(down, nn.Linear)
        x = self.bottleneck_dropout[adapter](self._cast_input_dtype(y, down.weight.dtype))
        return up(self.bottleneck_act[adapter](down(x))).to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always raises ValueError: f is linear and the bottleneck is not, so no weights of f can absorb it."""
        raise ValueError("a bottleneck is not linear, so it cannot be merged into the base's weights")


class BottleneckModel(BaseTuner):
    """A model with a bottleneck after each module that the config names."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's interface)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config  # PEFT would look the modules up in a table of architectures; `_prepare_model` finds them

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        assert isinstance(model, PreTrainedModel)
        targets.resolve(peft_config, model)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target)
        layer.add(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)


# `peft.register_peft_method` accepts members of the enum `PeftType` only, and an enum with members cannot be extended.
# So write to the tables that it fills: PEFT looks methods up by the string in adapter_config.json (PeftType is a str).
PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = BottleneckModel.prefix  # type: ignore[index]
