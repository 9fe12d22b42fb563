"""Where in a model an adapter goes, found by structure: no table of architectures that ends where a new one begins.

A place has a name (`all-linear`, `pfeiffer`, `norms`, ...) which a config may hold in place of module names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import peft
from torch import nn
from transformers.pytorch_utils import Conv1D

from debias.records import UserError

Modules = Iterator[tuple[str, nn.Module]]
LINEAR = (nn.Linear, Conv1D)


def resolve(config: peft.PeftConfig, model: Any) -> None:
    """Replace names of places in a config by the modules of this model. Raises UserError where it has none."""
    for key in ("target_modules", "feedforward_modules"):
        place = vars(config).get(key)
        if isinstance(place, str) and place in PLACES:
            setattr(config, key, _pattern(_found(place, key, model), model))
    if vars(config).get("modules_to_save") == [PREDICTION_HEAD]:
        config.modules_to_save = _found(PREDICTION_HEAD, "modules_to_save", model)  # type: ignore[attr-defined]


def _found(place: str, key: str, model: Any) -> list[str]:
    names = [name for name, _ in PLACES[place](model)]
    if not names:
        raise UserError(
            f"adapter.{key}={place}: nothing of that kind was found in {type(model).__name__}; "
            f"name the modules with adapter.{key}=[...]"
        )
    return names


def _pattern(names: list[str], model: Any) -> str | list[str]:
    """A regular expression in which layers share a line, or the names where that would say too much."""
    lines = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names)
    pattern = "|".join(lines)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    return pattern if matched == set(names) else names


# ---------------------------------------------------------------- the places


def all_linear(model: Any) -> Modules:
    """Every linear layer but the prediction head's."""
    return ((name, module) for name, module in _body(model) if isinstance(module, LINEAR))


def norms(model: Any) -> Modules:
    """Every layer norm (or RMS norm) but the prediction head's."""
    return ((name, module) for name, module in _body(model) if "norm" in type(module).__name__.lower())


def everything(model: Any) -> Modules:
    """Every module that has parameters of its own. Raises UserError where one contains another."""
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if not list(module.children()):
            yield name, module
        elif not _elsewhere(own, module):
            raise UserError(
                f"{name or type(model).__name__} cannot be trained whole: its parameters stand beside modules with "
                "parameters; choose another adapter, such as adapter=lora adapter.r=64"
            )


def _elsewhere(parameters: list[nn.Parameter], module: nn.Module) -> bool:
    """Whether the module's own parameters are those of a child too, as a tied bias is."""
    below = {id(p) for child in module.children() for p in child.parameters()}
    return all(id(p) in below for p in parameters)


def feed_forward_outputs(model: Any) -> Modules:
    """The linear layer in which each layer's feed-forward block ends."""
    return _last_of_each_layer(model, attention=False)


def attention_outputs(model: Any) -> Modules:
    """The linear layer in which each layer's attention ends."""
    return _last_of_each_layer(model, attention=True)


def houlsby(model: Any) -> Modules:
    """Both of each layer."""
    yield from attention_outputs(model)
    yield from feed_forward_outputs(model)


def keys_values_feed_forward(model: Any) -> Modules:
    """What (IA)3 scales: keys, values (with the queries where one layer makes all three) and the feed-forward block."""
    ends = {name for name, _ in attention_outputs(model)}
    for linear in _linear_of_layers(model):
        inputs = [(n, m) for n, m in linear if _in_attention(n) and n not in ends]
        apart = [(n, m) for n, m in inputs if n.rpartition(".")[2][0] in "kv"]
        yield from apart or inputs
    yield from feed_forward_outputs(model)


def prediction_head(model: Any) -> Modules:
    """The modules after a masked model's body, without those that share weights with it (the word embeddings)."""
    inside = {name for name, _ in _body(model)}
    shared = {id(p) for p in model.base_model.parameters()}
    for name, module in everything(model):
        if name not in inside and not any(id(p) in shared for p in module.parameters()):
            yield name, module


PREDICTION_HEAD = "prediction-head"
PLACES: dict[str, Callable[[Any], Modules]] = {
    "all-linear": all_linear,
    "norms": norms,
    "everything": everything,
    "pfeiffer": feed_forward_outputs,
    "houlsby": houlsby,
    "feed-forward": feed_forward_outputs,
    "keys-values-feed-forward": keys_values_feed_forward,
    PREDICTION_HEAD: prediction_head,
}


# ---------------------------------------------------------------- the structure of a model


def _body(model: Any) -> Modules:
    """Modules before the prediction head, by their names in the whole model."""
    prefix = f"{model.base_model_prefix}."
    return ((name, module) for name, module in model.named_modules() if name.startswith(prefix))


def layers(model: Any) -> Modules:
    """The layers of a model, which stand in the longest list of modules in its body."""
    lists = [(name, module) for name, module in _body(model) if isinstance(module, nn.ModuleList)]
    name, found = max(lists, key=lambda item: len(item[1]), default=("", []))
    return ((f"{name}.{i}", layer) for i, layer in enumerate(found))


def _linear_of_layers(model: Any) -> Iterator[list[tuple[str, nn.Module]]]:
    """Each layer's linear modules in order."""
    for name, layer in layers(model):
        yield [(f"{name}.{n}", m) for n, m in layer.named_modules() if isinstance(m, LINEAR)]


def _last_of_each_layer(model: Any, attention: bool) -> Modules:
    """The last linear module of each layer, in attention or outside, that leads back to the width of the model."""
    for linear in _linear_of_layers(model):
        ends = [(n, m) for n, m in linear if _in_attention(n) is attention and width(m) == model.config.hidden_size]
        yield from ends[-1:]


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def width(module: Any) -> int:
    """How many numbers a linear module gives. Raises ValueError for other modules."""
    if isinstance(module, Conv1D):
        return module.nf
    if isinstance(module, nn.Linear):
        return module.out_features
    raise ValueError(f"{type(module).__name__} is no linear layer")
