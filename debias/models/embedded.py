"""The embedded models as folders of safetensors: SmolLM2 is converted from GGUF once, BERT-tiny is trained here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from debias import assets
from debias.assets.cache import made_by_one, temporary_dir, warn
from debias.files import remove_unfinished, whole_folder
from debias.models import bert_tiny
from debias.progress import bar, stage

log = logging.getLogger(__name__)

# Embedded models: asset name -> hub id of the same model, which is the name that saved adapters refer to.
HUB_IDS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def folder(path: str) -> str:
    """The folder of an embedded model; any other path as it is."""
    if path == bert_tiny.NAME:
        return str(bert_tiny.folder())
    return str(converted(path)) if path in HUB_IDS else path


def converted(name: str) -> Path:
    """Folder of the embedded model, dequantised from GGUF to float32 safetensors once and kept in the cache."""
    asset = assets.ASSETS[name]
    folder = assets.cache_dir() / "models" / f"{name}-{asset.sha256[:12]}"
    if folder.is_dir():
        return folder
    with made_by_one(folder, f"convert {name}"):
        if folder.is_dir():  # another process converted it while this one waited
            return folder
        try:
            remove_unfinished(folder.parent, folder.name)
            _convert(name, folder)
        except OSError as error:
            warn(error)
            folder = temporary_dir() / folder.name
            if not folder.is_dir():
                _convert(name, folder)
    return folder


@contextmanager
def _own_bar(label: str) -> Iterator[None]:
    """Show our bar where transformers shows one of its own, which no setting turns off and which ends up in logs."""
    with patch.object(
        modeling_gguf_pytorch_utils, "tqdm", lambda tensors, **_: bar(label)(tensors, len(tensors)), create=True
    ):
        yield


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers parses a GGUF file four times, and makes the table of its tensors' names once for each module."""
    import gguf  # needed here alone

    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(patch.object(gguf, name, cache(getattr(gguf, name))))
        yield


def _convert(name: str, folder: Path) -> None:
    source = assets.locate(name)
    with whole_folder(folder) as unfinished, _read_once():  # fail on a full disk before the work
        log.info("converting %s to float32, once (about 10 s) ...", source.name)
        where: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
        with stage(f"convert {name}"), _own_bar(f"converting {name}, tensors"):
            loaded = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where)
        config = AutoConfig.from_pretrained(**where)
        # `save_pretrained` refuses a model whose config says it is quantised: rebuild it from one that does not.
        config.__dict__.pop("quantization_config", None)
        config.dtype = torch.float32
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(**where).save_pretrained(unfinished)
