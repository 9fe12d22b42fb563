"""Checksums of weights in memory: of a base's, and of an adapter's with the settings that decide what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel


def checksum(model: nn.Module, wanted: Callable[[nn.Parameter], bool] = lambda _: True) -> str:
    """Checksum of the wanted parameters, computed where they are: sums of their bits, by row and weighted by row.

    For finding out whether training changed a weight. It costs one pass over the memory of the device, where a SHA-256
    would first copy a model of 8B parameters to the host.
    """
    sums: list[torch.Tensor] = []
    names: list[str] = []
    for name, parameter in sorted(model.named_parameters()):
        if wanted(parameter):
            integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
            bits = parameter.detach().contiguous().view(integers)
            row_R = bits.reshape(max(1, bits.shape[0] if bits.ndim > 1 else 1), -1).sum(1, dtype=torch.int64)
            weighted = (row_R * torch.arange(1, len(row_R) + 1, device=row_R.device)).sum()
            sums.append(torch.stack([row_R.sum(), weighted]).cpu())
            names.append(f"{name} {tuple(parameter.shape)} {parameter.dtype}")
    return f"{names} {torch.stack(sums).tolist() if sums else []}"


def weights_sha256(model: nn.Module, wanted: Callable[[nn.Parameter], bool] = lambda _: True) -> str:
    """SHA-256 of the names, shapes and bytes of the `wanted` parameters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if wanted(parameter):
            _add(digest, name, parameter)
    return digest.hexdigest()


def arithmetic(model: PreTrainedModel) -> str:
    """What a model's answers depend on beside its weights and the text: class, config, buffers and libraries."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    buffers = hashlib.sha256()
    for name, buffer in sorted(model.named_buffers()):
        buffers.update(f"{name} {tuple(buffer.shape)}".encode() + buffer.detach().cpu().float().numpy().tobytes())
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft")]
    return f"{type(model).__name__} {sorted(config.items(), key=str)!r} {buffers.hexdigest()} {versions}"


def tokenizer_sha256(tokenizer: Any) -> str:
    """Checksum of how a tokenizer reads and writes text, with its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = [tokenizer.special_tokens_map, tokenizer.all_special_ids]
    return hashlib.sha256(f"{type(tokenizer).__name__} {special} {rules}".encode()).hexdigest()


# Config fields that do not change what an adapter computes.
NOT_ARITHMETIC = {"base_model_name_or_path", "inference_mode", "peft_version", "auto_mapping", "revision", "task_type"}


def adapter_sha256(model: peft.PeftModel) -> str:
    """SHA-256 of the active adapters: their weights, and the config fields that decide how these are applied."""
    digest = hashlib.sha256()
    for adapter in model.active_adapters:
        config = {k: v for k, v in model.peft_config[adapter].to_dict().items() if k not in NOT_ARITHMETIC}
        plain = json.dumps(config, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
        digest.update(plain.encode())
        for name, tensor in sorted(model.state_dict().items()):
            if adapter in name.split("."):
                _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    """Add a tensor's name, shape, type and bytes to a checksum."""
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
