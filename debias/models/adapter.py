"""The small trained part: attached to a frozen base with PEFT, saved in PEFT's own folder format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer

from debias.files import whole_folder
from debias.models import bottleneck, targets
from debias.models.base import Base
from debias.records import UserError

PROVENANCE = "debias.json"  # which base the adapter belongs to, and how much is trained; PEFT ignores the file
METHODS = peft.PEFT_TYPE_TO_CONFIG_MAPPING  # with ours
assert bottleneck.BOTTLENECK in METHODS


def attach(base: Base, config: peft.PeftConfig) -> peft.PeftModel:
    """Put a fresh adapter on the base. Raises UserError when the method cannot be used on this architecture."""
    prompts = config.is_prompt_learning
    masked = peft.TaskType.FEATURE_EXTRACTION if prompts else None  # PEFT has no masked task
    config.task_type = peft.TaskType.CAUSAL_LM if base.kind == "causal" else masked
    if vars(config).get("modules_to_save") == [targets.PREDICTION_HEAD]:
        _check_head(base, prompts)
    try:
        targets.resolve(config, base.model)
        model = _switchable(peft.get_peft_model(base.model, config))
        _tie_copies(model)
        _check_effect(model)
    except UserError:
        raise
    except Exception as error:  # each method of PEFT has errors of its own for a model that it does not know
        raise UserError(_misfit(config, base, error)) from error
    return model


def _misfit(config: peft.PeftConfig, base: Base, error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    reason = kind + " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:200]  # PEFT goes on for paragraphs
    remedy = "choose another method (`debias ls adapter`)"
    if "target_modules" in vars(config):
        remedy = f"name the modules with adapter.target_modules=[...], or {remedy}"
    return f"{type(config).__name__} does not fit {type(base.model).__name__} ({reason}); {remedy}"


def _check_head(base: Base, prompts: bool) -> None:
    if base.kind == "causal":
        raise UserError(
            "adapter.train_head=true is for masked models; leave it out, or choose a masked model with model="
        )
    if prompts:  # PEFT switches a prompt off, but not what is trained beside it
        raise UserError("adapter.train_head=true cannot be combined with prompts; choose adapter=lora or bottleneck")


def _switchable(model: Any) -> Any:
    """To switch a prompt off PEFT 0.21 asks the base for a method of text generation, which a masked model has not."""
    if model.active_peft_config.is_prompt_learning and not hasattr(model.base_model, "prepare_inputs_for_generation"):
        model.base_model.prepare_inputs_for_generation = None
    return model


def _tie_copies(model: peft.PeftModel) -> None:
    """Weights that the base's modules share (embeddings and output layer) stay shared in their trained copies."""
    first: dict[int, torch.nn.Parameter] = {}
    for layer in model.modules():
        if isinstance(layer, LNTuningLayer):
            copy = layer.ln_tuning_layers["default"]
            for name, parameter in layer.base_layer.named_parameters(recurse=False):
                setattr(copy, name, first.setdefault(id(parameter), getattr(copy, name)))


def _check_effect(model: peft.PeftModel) -> None:
    """Four tokens forward and back: an adapter that the architecture ignores shall not be trained in vain."""
    ids = torch.arange(1, 5, device=next(model.parameters()).device)[None]
    trainable = [p for p in model.parameters() if p.requires_grad]
    total = (
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().logsumexp(-1).sum()
    )
    gradients = torch.autograd.grad(total, trainable, allow_unused=True) if total.requires_grad else ()
    if not any(g is not None and g.any() for g in gradients):
        raise ValueError("the model ignores it")


def trainable_parameters(model: Any) -> int:
    """How many numbers are trained; what modules share counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def virtual_tokens(model: Any) -> int:
    """How many of the model's positions an adapter's prompt or prefix takes."""
    config = model.active_peft_config
    return config.num_virtual_tokens if config.is_prompt_learning else 0


def save(model: peft.PeftModel, base: Base, folder: Path) -> None:
    """Write the adapter as a whole or not at all: PEFT's files, the base's fingerprint and what was trained."""
    provenance = {
        "base_model": base.name,
        "base_sha256": base.sha256,
        "kind": base.kind,
        "trainable_parameters": trainable_parameters(model),
        "base_parameters": sum(p.numel() for n, p in base.model.named_parameters() if "default" not in n.split(".")),
        "prediction_head": vars(model.active_peft_config).get("modules_to_save") or [],
    }
    with whole_folder(folder, replace=True) as unfinished:  # a rejected or diverged training may have left one
        model.save_pretrained(str(unfinished), save_embedding_layers=False)
        (unfinished / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the bias card takes its place
        (unfinished / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def located(path: str | Path) -> Path:
    """An adapter's folder. Raises UserError when it is none."""
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is no adapter folder (it has no adapter_config.json); check adapter.path")
    return folder


def load(base: Base, folder: str | Path) -> peft.PeftModel:
    """Put a saved adapter on the base. Raises UserError when it is none, or was trained on another base."""
    folder = located(folder)
    check_base(base, folder)
    try:
        return _switchable(peft.PeftModel.from_pretrained(base.model, str(folder))).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"adapter {folder} does not fit {base.name!r} ({reason}); choose its base with model="
        ) from error


def check_base(base: Base, folder: Path) -> None:
    """Raise UserError when an adapter was trained on another base."""
    provenance = folder / PROVENANCE
    known = json.loads(provenance.read_text()) if provenance.is_file() else {"base_sha256": base.sha256}
    if known["base_sha256"] != base.sha256:
        raise UserError(
            f"adapter {folder} was trained on {known['base_model']!r} (weights {known['base_sha256'][:12]}...), "
            f"not on {base.name!r} ({base.sha256[:12]}...); choose its base with model="
        )


@contextmanager
def reloaded(model: peft.PeftModel, folder: Path) -> Iterator[Any]:
    """The same base with the adapter as it was saved, inside the block."""
    model.load_adapter(str(folder), adapter_name="reloaded")
    try:
        model.set_adapter("reloaded")
        yield model
    finally:
        model.set_adapter("default")
        model.delete_adapter("reloaded")


def detach(model: peft.PeftModel) -> None:
    """Take the adapter off again, so that the base can carry another one."""
    if hasattr(model.base_model, "unload"):
        model.base_model.unload()  # type: ignore[operator] # prompts and prefixes have nothing to take off


NOT_ARITHMETIC = {"base_model_name_or_path", "inference_mode", "peft_version", "auto_mapping", "revision", "task_type"}


def adapter_sha256(model: Any) -> str:
    """SHA-256 of everything that the active adapters add to the base: their numbers, and how they are applied."""
    digest = hashlib.sha256()
    for adapter in model.active_adapters:
        config = {k: v for k, v in model.peft_config[adapter].to_dict().items() if k not in NOT_ARITHMETIC}
        plain = json.dumps(config, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
        digest.update(plain.encode())
        for name, tensor in sorted(model.state_dict().items()):
            if adapter in name.split("."):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
