"""Weights that several modules of a model share, before and after an adapter is merged into them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def separate(model: nn.Module) -> None:
    """Give every module parameters of its own: PEFT merges in place, and would change all modules that share them."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))


class Ties:
    """What a model shares between modules, such as the word embeddings with the output layer.

    Args:
        model: the base, before an adapter is attached.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.configs = [model.config, model.config.get_text_config()]
        self.before = [config.tie_word_embeddings for config in self.configs]
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        self.shared = [same for same in names.values() if len(same) > 1]

    def restore(self, model: PreTrainedModel) -> None:
        """Share the same again, unless merging has changed one of them: then the config says that none is shared."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        equal = all(torch.equal(parameters[one], parameters[name]) for one, *others in self.shared for name in others)
        for config, tied in zip(self.configs, self.before, strict=True):
            config.tie_word_embeddings = tied and equal
        if equal:
            model.tie_weights()
