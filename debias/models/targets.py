"""Which modules of a model an adapter attaches to.

A config may name a place (`all-linear`, `pfeiffer`, `norms`, ...) instead of modules. Places are found from the model's
structure, not from a table of architectures such as PEFT's, so they also work on models that are newer than PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from debias.records import UserError

Modules = Iterator[tuple[str, nn.Module]]
LINEAR = (nn.Linear, Conv1D)  # GPT-2's Conv1D is a linear layer with a transposed weight


def resolve(config: peft.PeftConfig, model: PreTrainedModel) -> None:
    """Replace each place in a config by this model's modules. Raises UserError if the model has none there."""
    for key in ("target_modules", "feedforward_modules"):
        place = vars(config).get(key)
        if isinstance(place, str) and place in PLACES:
            setattr(config, key, _pattern(_found(place, key, model), model))
    if vars(config).get("modules_to_save") == [PREDICTION_HEAD]:
        config.modules_to_save = _found(PREDICTION_HEAD, "modules_to_save", model)  # type: ignore[attr-defined]


def _found(place: str, key: str, model: PreTrainedModel) -> list[str]:
    names = [name for name, _ in PLACES[place](model)]
    if not names:
        raise UserError(
            f"adapter.{key}={place}: {type(model).__name__} has no such modules; "
            f"name the modules with adapter.{key}=[...]"
        )
    return names


def _pattern(names: list[str], model: PreTrainedModel) -> str | list[str]:
    """Module names as a regular expression with `\\d+` for the layer, or as a list if that would match more modules.

    The saved adapter_config.json then has one entry for all layers, not one for each.
    """
    lines = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names)
    pattern = "|".join(lines)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    return pattern if matched == set(names) else names


# ---------------------------------------------------------------- the places


def all_linear(model: PreTrainedModel) -> Modules:
    """Every linear layer outside the prediction head."""
    return ((name, module) for name, module in _body(model) if isinstance(module, LINEAR))


def norms(model: PreTrainedModel) -> Modules:
    """Every layer norm or RMS norm with weights outside the prediction head."""
    return (
        (name, module)
        for name, module in _body(model)
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    )


def everything(model: PreTrainedModel) -> Modules:
    """Every module with parameters of its own. Raises UserError if such a module also contains others.

    LN tuning trains a copy of each module, so copies of a module and of its child would train the same weights twice.
    """
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if not list(module.children()):
            yield name, module
            continue
        in_children = {id(p) for child in module.children() for p in child.parameters()}
        if not all(id(p) in in_children for p in own):  # a bias tied to a child's is trained with the child
            raise UserError(
                f"{name or type(model).__name__} cannot be trained as a whole: it has parameters of its own beside "
                "modules with parameters; choose another adapter, such as adapter=lora adapter.r=64"
            )


def feed_forward_outputs(model: PreTrainedModel) -> Modules:
    """The last linear module of each layer's feed-forward block (Pfeiffer et al. 2021)."""
    return _last_of_each_layer(model, attention=False)


def attention_outputs(model: PreTrainedModel) -> Modules:
    """The last linear module of each layer's attention."""
    return _last_of_each_layer(model, attention=True)


def houlsby(model: PreTrainedModel) -> Modules:
    """The last linear module of attention and of the feed-forward block (Houlsby et al. 2019)."""
    yield from attention_outputs(model)
    yield from feed_forward_outputs(model)


def keys_values_feed_forward(model: PreTrainedModel) -> Modules:
    """What (IA)3 scales: keys, values and the feed-forward block (Liu et al. 2022).

    Where one module computes queries, keys and values together, as in GPT-2, the queries are scaled too.
    """
    ends = {name for name, _ in attention_outputs(model)}
    for linear in _linear_of_layers(model):
        inputs = [(n, m) for n, m in linear if _in_attention(n) and n not in ends]
        keys_values = [(n, m) for n, m in inputs if n.rpartition(".")[2][0] in "kv"]  # k_proj, key, v_lin, ...
        yield from keys_values or inputs
    yield from feed_forward_outputs(model)


def prediction_head(model: PreTrainedModel) -> Modules:
    """The modules after a masked model's body, except those that share the body's weights (word embeddings)."""
    inside = {name for name, _ in _body(model)}
    shared = {id(p) for p in model.base_model.parameters()}
    for name, module in everything(model):
        if name not in inside and not any(id(p) in shared for p in module.parameters()):
            yield name, module


PREDICTION_HEAD = "prediction-head"
PLACES: dict[str, Callable[[PreTrainedModel], Modules]] = {
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


def _body(model: PreTrainedModel) -> Modules:
    """The modules before the prediction head, under their names in the whole model."""
    prefix = f"{model.base_model_prefix}."
    return ((name, module) for name, module in model.named_modules() if name.startswith(prefix))


def layers(model: PreTrainedModel) -> Modules:
    """The model's layers: the items of the longest `ModuleList` in its body."""
    lists = [(name, module) for name, module in _body(model) if isinstance(module, nn.ModuleList)]
    name, found = max(lists, key=lambda item: len(item[1]), default=("", []))
    return ((f"{name}.{i}", layer) for i, layer in enumerate(found))


def _linear_of_layers(model: PreTrainedModel) -> Iterator[list[tuple[str, nn.Module]]]:
    """The linear modules of each layer, in order."""
    for name, layer in layers(model):
        yield [(f"{name}.{n}", m) for n, m in layer.named_modules() if isinstance(m, LINEAR)]


def _last_of_each_layer(model: PreTrainedModel, attention: bool) -> Modules:
    """The last linear module of each layer, in or outside attention, whose output has the model's width."""
    for linear in _linear_of_layers(model):
        ends = [(n, m) for n, m in linear if _in_attention(n) is attention and width(m) == model.config.hidden_size]
        yield from ends[-1:]


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def width(module: nn.Module) -> int:
    """Output width of a linear module. Raises ValueError for other modules."""
    if isinstance(module, Conv1D):
        return module.nf
    if isinstance(module, nn.Linear):
        return module.out_features
    raise ValueError(f"{type(module).__name__} is not a linear layer")
