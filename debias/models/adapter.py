"""The small trained part: attached to a frozen base with PEFT, saved in PEFT's own folder format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft

from debias.models.base import Base, weights_sha256
from debias.records import UserError

PROVENANCE = "debias.json"  # which base the adapter belongs to; PEFT ignores the file


def attach(base: Base, config: peft.PeftConfig) -> peft.PeftModel:
    """Put a fresh adapter on the base. Raises UserError when PEFT knows no place for it in this architecture."""
    config.task_type = peft.TaskType.CAUSAL_LM if base.kind == "causal" else None  # PEFT has no masked task
    try:
        return peft.get_peft_model(base.model, config)
    except ValueError as error:
        raise UserError(
            f"{type(config).__name__} does not fit {type(base.model).__name__} ({error}); "
            "name the modules with adapter.target_modules=[...]"
        ) from error


def save(model: peft.PeftModel, base: Base, folder: Path) -> None:
    """Write the adapter as a whole or not at all: PEFT's files and the base's fingerprint."""
    half = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(half, ignore_errors=True)
    model.save_pretrained(str(half), save_embedding_layers=False)
    (half / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the bias card takes its place
    (half / PROVENANCE).write_text(json.dumps({"base_model": base.name, "base_sha256": base.sha256}, indent=2) + "\n")
    half.rename(folder)


def located(path: str | Path) -> Path:
    """An adapter's folder. Raises UserError when it is none."""
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is no adapter folder (it has no adapter_config.json); check adapter.path")
    return folder


def load(base: Base, folder: str | Path) -> peft.PeftModel:
    """Put a saved adapter on the base. Raises UserError when it is none, or was trained on another base."""
    folder = located(folder)
    provenance = folder / PROVENANCE
    known = json.loads(provenance.read_text()) if provenance.is_file() else {"base_sha256": base.sha256}
    if known["base_sha256"] != base.sha256:
        raise UserError(
            f"adapter {folder} was trained on {known['base_model']!r} (weights {known['base_sha256'][:12]}...), "
            f"not on {base.name!r} ({base.sha256[:12]}...); choose its base with model="
        )
    try:
        return peft.PeftModel.from_pretrained(base.model, str(folder)).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"adapter {folder} does not fit {base.name!r} ({reason}); choose its base with model="
        ) from error


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


def adapter_sha256(model: Any) -> str:
    """SHA-256 of the adapter's parameters alone."""
    return weights_sha256(model, prefix=model.prefix) if hasattr(model, "prefix") else weights_sha256(model)
