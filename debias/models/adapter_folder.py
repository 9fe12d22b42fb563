"""An adapter's folder in PEFT's own format: written whole, and attached again where every weight of it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from debias.files import whole_folder
from debias.models import targets
from debias.models.adapter import (
    check_base_kept,
    check_placement,
    detach,
    make_switchable,
    probe_logits,
    summary,
    trainable_parameters,
)
from debias.models.adapter_dtype import hold_in_float32
from debias.models.base import Base
from debias.models.checksums import weights_sha256
from debias.records import UserError

PROVENANCE = "debias.json"  # base model and parameter counts; PEFT ignores this file


def save(model: peft.PeftModel, base: Base, folder: Path) -> None:
    """Write PEFT's files and the provenance file. The folder appears complete or not at all."""
    with whole_folder(folder, replace=True) as unfinished:  # a training that failed the gate may have left one
        write(model, base, unfinished, trainable_parameters(model))


def write(model: peft.PeftModel, base: Base, folder: Path, trained: int) -> None:
    """Write the files of the active adapter into a folder.

    Args:
        trained: number of its weights.
    """
    name = model.active_adapter
    provenance = {
        "base_model": base.name,
        "base_tensors_sha256": base.sha256,
        "kind": base.kind,
        "trainable_parameters": trained,
        "reached_parameters": targets.reached_parameters(model),  # of the base, in modules that the adapter changes
        "base_parameters": sum(p.numel() for n, p in base.model.named_parameters() if not _added(n, model)),
        "prediction_head": vars(model.active_peft_config).get("modules_to_save") or [],
    }
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[name])
    if name != "default":  # PEFT puts it into a folder of its name
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty template; the bias card replaces it
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")


def _added(name: str, model: peft.PeftModel) -> bool:
    """Whether a parameter belongs to an adapter and not to the base."""
    return not model.peft_config.keys().isdisjoint(name.split("."))


def share_reached(folder: Path) -> str:
    """The share of the base's parameters that lies in modules which a saved adapter changes, as in `77%`."""
    known = json.loads((folder / PROVENANCE).read_text())
    return f"{known['reached_parameters'] / known['base_parameters']:.0%}"


def located(path: str | Path) -> Path:
    """The adapter folder at `path`. Raises UserError if there is none."""
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is not an adapter folder (it has no adapter_config.json); check adapter.path")
    return folder


def saved_config(folder: Path) -> peft.PeftConfig:
    """The config in an adapter's folder. Raises UserError if it is damaged or not of a language model's adapter."""
    file = folder / "adapter_config.json"
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT reads whatever is there
        raise UserError(f"{file} is not the config of a PEFT adapter ({summary(error)}); check adapter.path") from error
    if config.task_type not in (None, peft.TaskType.CAUSAL_LM, peft.TaskType.FEATURE_EXTRACTION):
        raise UserError(f"{file} is of an adapter for {config.task_type}, not for a language model; check adapter.path")
    return config


def load(base: Base, folder: str | Path, effect: bool = True) -> peft.PeftModel:
    """Attach a saved adapter.

    Args:
        effect: refuse an adapter that changes nothing.

    Raises UserError if the folder holds no adapter, a damaged one, or one that was trained on another base.
    """
    folder = located(folder)
    check_placement(base, saved_config(folder))
    check_base(base, folder)
    saved = _tensors(folder)
    try:
        before = probe_logits(base.model)
    except ValueError as error:
        raise UserError(f"the base model {base.name!r} is broken: {error}; get its files again") from error
    try:
        model = peft.PeftModel.from_pretrained(base.model, str(folder))
    except Exception as error:  # PEFT's methods raise errors of many types
        raise UserError(_unfit(base, folder, error)) from error
    make_switchable(model)
    model.eval()
    try:
        _check_loaded(model, "default", saved, folder)
        hold_in_float32(model, "default", saved)
        after = probe_logits(model)[:, -before.shape[1] :]  # a prompt's own positions come first
        if effect and torch.equal(before, after):
            raise UserError(f"adapter {folder} changes nothing: its weights or its scaling are zero; train it again")
        check_base_kept(model, before)
    except UserError:
        detach(model)  # the base is as it was
        raise
    except ValueError as error:
        detach(model)
        raise UserError(_unfit(base, folder, error)) from error
    return model


def add(model: peft.PeftModel, base: Base, folder: str | Path, name: str) -> None:
    """Load another saved adapter of the same method beside those that a model has; it is not active yet.

    Raises UserError as `load` does.
    """
    folder = located(folder)
    check_base(base, folder)
    saved = _tensors(folder)
    with model.disable_adapter():
        before = probe_logits(model)
    try:
        model.load_adapter(str(folder), name)
    except Exception as error:  # PEFT's methods raise errors of many types
        raise UserError(_unfit(base, folder, error)) from error
    _check_loaded(model, name, saved, folder)
    hold_in_float32(model, name, saved)
    check_base_kept(model, before)


def _unfit(base: Base, folder: Path, error: Exception) -> str:
    return f"adapter {folder} does not fit {base.name!r} ({summary(error)}); choose its base with model="


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in an adapter's folder. Raises UserError if they are not there, damaged or not finite."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{folder} has no adapter_model.safetensors; save the adapter in safetensors format")
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is truncated or not in safetensors format; get it again") from error
    if broken := sorted(name for name, tensor in saved.items() if not torch.isfinite(tensor.float()).all()):
        raise UserError(f"{file} holds NaN or inf in {broken[0]}: its training diverged; train it again")
    return saved


def _check_loaded(model: peft.PeftModel, name: str, saved: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise UserError unless every tensor of the file went into the adapter `name` of the model.

    PEFT loads what has a known name and leaves the rest as a new adapter begins: random, or without effect.
    """
    wanted = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).keys()
    for what, names in (("lacks", wanted - saved.keys()), ("holds unknown", saved.keys() - wanted)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{folder / 'adapter_model.safetensors'} {what} {min(names)}{more}: it was saved for another model, "
                "or its tensors were renamed; choose its base with model="
            )


def check_base(base: Base, folder: Path) -> None:
    """Raise UserError if an adapter was trained on another base. Adapters made by other programs do not say."""
    provenance = folder / PROVENANCE
    known = json.loads(provenance.read_text()) if provenance.is_file() else {}
    trained_on, here = known.get("base_tensors_sha256"), base.sha256
    if "base_sha256" in known:  # an adapter of the first version, which hashed the float32 weights in memory
        trained_on, here = known["base_sha256"], weights_sha256(base.model)
    if trained_on not in (None, here):
        if trained_on[:64] == here[:64]:  # the same files; behind their checksum is how they were quantised
            raise UserError(f"adapter {folder} was trained beside {_bits(trained_on)}, this base has {_bits(here)}; "
                            f"set model.quantization={trained_on[64:] or 'null'}")  # fmt: skip
        raise UserError(
            f"adapter {folder} was trained on {known['base_model']!r} (weights {trained_on[:12]}...), "
            f"not on {base.name!r} ({here[:12]}...); choose its base with model="
        )


def _bits(checksum: str) -> str:
    return f"weights in {checksum[64:]}" if checksum[64:] else "weights that are not quantised"


@contextmanager
def reloaded(model: peft.PeftModel, folder: Path) -> Iterator[None]:
    """Inside the block, the model uses the adapter as it was saved in `folder`."""
    model.load_adapter(str(folder), adapter_name="reloaded")
    try:
        hold_in_float32(model, "reloaded", _tensors(folder))
        model.set_adapter("reloaded")
        yield
    finally:
        model.set_adapter("default")
        model.delete_adapter("reloaded")
