"""The frozen language model and its tokenizer: an embedded asset, a Hugging Face id or a local folder."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from filelock import FileLock
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from debias import assets
from debias.records import UserError

log = logging.getLogger(__name__)

# Embedded models: asset name -> the id under which the same model is published on the hub.
EMBEDDED = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


class Base(NamedTuple):
    """A loaded model, its tokenizer, the name adapters are published for, and the checksum of its weights."""

    model: Any
    tokenizer: Any
    name: str
    sha256: str


class BaseModel:
    """Where a base model comes from.

    Args:
        path: `smollm2` (embedded), a local folder or a Hugging Face id.
        revision: branch, tag or commit on the hub.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path, self.revision = str(path), revision

    def load(self) -> Base:
        """Load in float32, frozen, in eval mode. Raises UserError when the path is no causal language model."""
        tokenizer = self.tokenizer()
        with self._place() as (folder, options):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
        model.requires_grad_(False).eval()
        model.name_or_path = EMBEDDED.get(self.path, self.path)
        return Base(model, tokenizer, model.name_or_path, weights_sha256(model))

    def tokenizer(self) -> Any:
        """The tokenizer alone, which takes a fraction of a second. Raises UserError as `load` does."""
        with self._place() as (folder, options):
            AutoConfig.from_pretrained(folder, **options)  # the smallest file first: a wrong path fails at once
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        if not tokenizer.is_fast:
            raise UserError(f"model {self.path!r} has no fast tokenizer; debias needs one to find words in sentences")
        return tokenizer

    @contextmanager
    def _place(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Folder or id and options of a load; what goes wrong with them is the user's error."""
        transformers.utils.logging.disable_progress_bar()
        folder = str(_converted(self.path)) if self.path in EMBEDDED else self.path
        try:
            yield folder, {"revision": self.revision, "trust_remote_code": False}
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {self.path!r} is neither a folder with a causal language model in safetensors format nor a "
                f"model that could be fetched from the hub ({reason}); see `debias ls model`"
            ) from error


def weights_sha256(model: nn.Module, prefix: str = "") -> str:
    """SHA-256 over the names, shapes and bytes of the parameters whose name contains `prefix`."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if prefix in name:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _converted(name: str) -> Path:
    """Folder with the embedded GGUF model dequantised to float32 safetensors, converted once and kept in the cache."""
    asset = assets.ASSETS[name]
    folder = assets.cache_dir() / "models" / f"{name}-{asset.sha256[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process was faster
            return folder
        source = assets.locate(name)
        log.info("converting %s to float32, once (about 20 s) ...", source.name)
        where: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
        loaded = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where)
        config = AutoConfig.from_pretrained(**where)
        # `save_pretrained` refuses a model that says it is quantised: rebuild it from a config that does not.
        config.__dict__.pop("quantization_config", None)
        config.dtype = torch.float32
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict())
        half = folder.with_suffix(".tmp")
        shutil.rmtree(half, ignore_errors=True)
        model.save_pretrained(half)
        AutoTokenizer.from_pretrained(**where).save_pretrained(half)
        half.rename(folder)
    return folder
