"""Which modules of a model an adapter attaches to.

A config may name a place (`all-linear`, `pfeiffer`, `norms`, ...) instead of modules. Places are found from the model's
structure, not from a table of architectures such as PEFT's, so they also work on models that are newer than PEFT.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator

import peft
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from debias.records import UserError

log = logging.getLogger(__name__)

Modules = Iterator[tuple[str, nn.Module]]
LINEAR = (nn.Linear, Conv1D)  # GPT-2's Conv1D is a linear layer with a transposed weight


def resolve(config: peft.PeftConfig, model: PreTrainedModel) -> None:
    """Replace each place in a config by this model's modules. Raises UserError if the model has none there."""
    if vars(config).get("target_modules") == "all-linear":
        _reach_experts(config, model)
    for key in ("target_modules", "feedforward_modules"):
        place = vars(config).get(key)
        if isinstance(place, str) and place in PLACES:
            setattr(config, key, _pattern(_found(place, key, model), model))
    if vars(config).get("modules_to_save") == [PREDICTION_HEAD]:
        config.modules_to_save = _found(PREDICTION_HEAD, "modules_to_save", model)  # type: ignore[attr-defined]


def _found(place: str, key: str, model: PreTrainedModel) -> list[str]:
    names = [name for name, _ in PLACES[place](model)]
    if not names:
        name = type(model).__name__
        if experts(model):
            raise UserError(
                f"adapter.{key}={place}: {name} keeps its experts in fused parameters and has no such modules; "
                "choose adapter=lora, which reaches experts"
            )
        raise UserError(f"adapter.{key}={place}: {name} has no such modules; name the modules with adapter.{key}=[...]")
    return names


def _reach_experts(config: peft.PeftConfig, model: PreTrainedModel) -> None:
    """Let plain LoRA also adapt the experts, which are parameters and not linear layers; warn of other methods."""
    names = experts(model)
    if not names:
        return
    if type(config) is not peft.LoraConfig or config.use_dora or config.lora_dropout or config.lora_bias:
        log.warning(
            "%s keeps its experts in fused parameters, which this adapter does not reach; adapter=lora does "
            "(without dropout)",
            type(model).__name__,
        )
    elif config.target_parameters is None:
        # PEFT compares ends of names, so one entry serves all layers.
        config.target_parameters = sorted({re.sub(r"^.*\.\d+\.(?=\D)", "", name) for name in names})


def experts(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that hold all experts of a layer, shape (experts, in, out) or (experts, out, in)."""
    return [
        f"{name}.{own}"
        for name, module in _body(model)
        if "expert" in name.lower()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def reached_parameters(model: peft.PeftModel) -> int:
    """Number of the base's parameters in modules that the adapter changes; a shared one counts once.

    A prompt changes no module: 0.
    """
    reached: dict[int, int] = {}
    for module in model.modules():
        found: Iterable[nn.Parameter] = ()
        if isinstance(module, ParamWrapper):
            found = [module.get_param()]
        elif isinstance(module, BaseTunerLayer):
            found = module.get_base_layer().parameters()
        elif isinstance(module, ModulesToSaveWrapper):
            found = module.original_module.parameters()
        reached |= {id(parameter): parameter.numel() for parameter in found}
    return sum(reached.values())


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
    inside, body = f"{model.base_model_prefix}.", {name for name, _ in _body(model)}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or (name.startswith(inside) and name not in body):  # of an image's encoder, which no text reaches
            continue
        in_children = {id(p) for child in module.children() for p in child.parameters()}
        if not in_children and hasattr(module, "weight"):  # PEFT looks at it; fused experts have none
            yield name, module
            continue
        if not all(id(p) in in_children for p in own):  # a bias tied to a child's is trained with the child
            why = "has parameters of its own beside modules with parameters" if in_children else "is fused parameters"
            raise UserError(
                f"{name or type(model).__name__} cannot be trained as a whole: it {why}; "
                "choose another adapter, such as adapter=lora adapter.r=64"
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
    """The modules before the prediction head, under their names in the whole model; of multimodal ones the text's."""
    prefix = f"{model.base_model_prefix}."
    if model.config.get_text_config() is not model.config:
        text = model.get_decoder()
        prefix = next((f"{name}." for name, module in model.named_modules() if module is text and name), prefix)
    return ((name, module) for name, module in model.named_modules() if name.startswith(prefix))


def layers(model: PreTrainedModel) -> Modules:
    """The model's layers: the items of the longest `ModuleList` in its body, lists within lists apart."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in _body(model):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer, _ in lists):
            lists.append((name, module))
    name, found = max(lists, key=lambda item: len(item[1]), default=("", []))
    return ((f"{name}.{i}", layer) for i, layer in enumerate(found))


def _linear_of_layers(model: PreTrainedModel) -> Iterator[list[tuple[str, nn.Module]]]:
    """The linear modules of each layer, in order."""
    for name, layer in layers(model):
        yield [(f"{name}.{n}", m) for n, m in layer.named_modules() if isinstance(m, LINEAR)]


def _last_of_each_layer(model: PreTrainedModel, attention: bool) -> Modules:
    """The last linear module of each layer, in or outside attention, whose output has the model's width."""
    hidden = model.config.get_text_config().hidden_size
    for linear in _linear_of_layers(model):
        ends = [(n, m) for n, m in linear if _in_attention(n) is attention and width(m) == hidden]
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
