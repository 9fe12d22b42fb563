"""The frozen language model and its tokenizer: an embedded asset, a Hugging Face id or a local folder."""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import peft
import torch
import transformers
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from debias.assets import network
from debias.assets.downloads import downloading
from debias.files import note
from debias.models import embedded
from debias.models.checkpoint import (
    check_architecture,
    check_loaded,
    check_vocabulary,
    check_weights,
    kind_of,
)
from debias.models.identity import check_files, more_precise_than_bf16, tensors_sha256
from debias.models.placement import device
from debias.models.ranks import launched_processes
from debias.records import AUTO, Tokens, UserError, one_line
from debias.wording import counted

log = logging.getLogger(__name__)

LanguageModel = PreTrainedModel | peft.PeftModel  # a base model, without or with an adapter attached

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "8bit": {"load_in_8bit": True},
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LOADERS: dict[str, Any] = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


class Base(NamedTuple):
    """A frozen language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str  # hub id or folder; a published adapter names its base by it
    sha256: str  # of the weights
    kind: str  # `causal` or `masked`
    rounded: bool = False  # whether dtype=auto rounded weights when they were loaded

    @property
    def tokens(self) -> Tokens:
        """The tokenizer and the kind of model."""
        return Tokens(self.tokenizer, self.kind)

    @property
    def max_positions(self) -> int | None:
        """How many tokens the model takes at once; None where its config sets no limit."""
        return max_positions(self.model)


def max_positions(model: Any) -> int | None:
    """How many tokens a model takes at once; None where its config sets no limit."""
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config  # of a multimodal wrapper
    # Under the names that families give it: MPT's is max_seq_len, XLM's and Falcon's ALiBi models have none.
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    limit = next((found for name in names if isinstance(found := getattr(text, name, None), int) and found > 0), None)
    for module in model.modules() if limit else ():
        # RoBERTa counts positions from behind the padding token's.
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            return limit - module.padding_idx - 1
    return limit


class BaseModel:
    """Where a base model comes from and how to load it.

    Args:
        path: `smollm2` or `bert-tiny` (embedded), a local folder or a Hugging Face id.
        revision: branch, tag or commit on the hub.
        kind: `causal` (predicts the next token) or `masked`; None reads it from the model's config.
        quantization: `4bit` or `8bit` weights (bitsandbytes, GPU only); None keeps full precision.
        dtype: of the weights in memory: `float32`, `bf16`, or `auto`: bf16 on a GPU, else float32.
        device_map: `auto` spreads the layers over all visible GPUs (accelerate); None uses one device.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        kind: Literal["causal", "masked"] | None = None,
        quantization: Literal["4bit", "8bit"] | None = None,
        dtype: Literal["auto", "float32", "bf16"] = AUTO,
        device_map: Literal["auto"] | None = None,
    ) -> None:
        self.path, self.revision, self.kind = str(path), revision, kind
        if self.path.startswith("~"):  # quoted in a shell, or written in a file
            self.path = str(Path(self.path).expanduser())
        self.quantization, self.dtype, self.device_map = quantization, dtype, device_map

    def load(self) -> Base:
        """Load the model to its device in eval mode, and freeze it.

        Raises UserError if `path` holds no model, or one that cannot be scored.
        """
        quantized = _quantized(self.quantization, self.dtype)  # fail before the weights are loaded
        if self.device_map:
            _check_can_spread()
        tokenizer, kind = self.tokens()
        with self._place() as (folder, options), downloading(self.path) as download:
            if not Path(folder).is_dir():
                options["tqdm_class"] = download.tqdm_class()
            on_gpu = device().type == "cuda"
            if on_gpu:  # straight from the file to the device: the host never holds the whole model
                options["device_map"] = {"": device()}
            dtype = DTYPES[("bf16" if on_gpu else "float32") if self.dtype == AUTO else self.dtype]
            # Other shapes, too, are told by the report: transformers' own error does not name them.
            how = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
            options |= quantized
            if self.device_map:
                options["device_map"] = self.device_map
            model, report = LOADERS[kind].from_pretrained(folder, dtype=dtype, **how, **options)
            files = _files(folder, self.revision)
            checksum = tensors_sha256(files) + (self.quantization or "")
            rounded = self.dtype == AUTO and dtype == torch.bfloat16 and more_precise_than_bf16(files)
            if download.came:
                note(files)
        if self.device_map:
            _check_spread(model, self.path)
        check_loaded(model, report, self.path)
        check_vocabulary(tokenizer, model, self.path)
        model.requires_grad_(False).eval()
        model.name_or_path = embedded.HUB_IDS.get(self.path, self.path)
        return Base(model, tokenizer, model.name_or_path, checksum, kind, rounded)

    def tokens(self) -> Tokens:
        """Load the tokenizer and the kind alone, in a fraction of a second.

        Raises UserError as `load` does for what config, tokenizer and the files' headers show.
        """
        with self._place() as (folder, options):
            local = Path(folder).is_dir()
            if local:
                check_weights(Path(folder))
            config = AutoConfig.from_pretrained(folder, **options)  # the smallest file first: a wrong path fails fast
            check_architecture(config, self.path)
            if not local:  # a hub's weights may not be here yet
                check_files(_files(folder, self.revision))
                self._fetch("tokenizer.json")
            kind = kind_of(config, self.kind, self.path)
            tokenizer = _tokenizer(folder, self.revision, _changed(folder))
        if not tokenizer.is_fast:
            raise UserError(f"model {self.path!r} has no fast tokenizer; debias needs one to locate words in sentences")
        return Tokens(tokenizer, kind)

    def _fetch(self, name: str) -> None:
        """Download a file that transformers would download without a bar; it then says what is wrong if this fails."""
        with downloading(f"{self.path}/{name}") as download, suppress(OSError, ValueError):
            hf_hub_download(self.path, name, revision=self.revision, tqdm_class=download.tqdm_class())

    @contextmanager
    def _place(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Folder or hub id, and the options to load from it. Turns loading errors into UserError."""
        transformers.utils.logging.disable_progress_bar()
        folder = embedded.folder(self.path)
        if not Path(folder).is_dir():
            network.check_hub()
        try:
            yield folder, {"revision": self.revision, "trust_remote_code": False}
        except (UserError, torch.OutOfMemoryError):
            raise
        except ImportError as error:  # quantised weights above all
            raise UserError(
                f"model {self.path!r} cannot be loaded ({one_line(error)}); install it, or choose another model"
            ) from error
        except Exception as error:  # transformers raises errors of many types for files that do not fit
            if (Path(folder) / "config.json").is_file():
                raise UserError(
                    f"model {self.path!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); "
                    "get its files again, or choose another model"
                ) from error
            raise UserError(
                f"model {self.path!r} is neither a local folder with safetensors weights nor a model that the hub "
                f"could deliver ({one_line(error)}); see `debias ls model`"
            ) from error


@lru_cache(maxsize=2)
def _tokenizer(folder: str, revision: str | None, changed: tuple[int, ...]) -> PreTrainedTokenizerBase:
    """A tokenizer, kept for the next job of this process.

    Its Rust part keeps per-thread caches that are never freed, so a fresh one per job leaks 9 MB each time.
    """
    return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)


def _changed(folder: str) -> tuple[int, ...]:
    """Modification times of a local tokenizer's files: a cached tokenizer must not outlive an edit."""
    place = Path(folder)
    files = sorted(p for p in place.iterdir() if p.suffix in (".json", ".txt")) if place.is_dir() else ()
    return tuple(p.stat().st_mtime_ns for p in files)


def bf16_is_native() -> bool:
    """Whether the CPU has bfloat16 instructions; without them bfloat16 is emulated and slow."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.machine() == "arm64"  # Apple's chips have them
    return any(name in flags for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert", " bf16"))


def _quantized(bits: str | None, dtype: str) -> dict[str, Any]:
    """Options that load quantised weights. Raises UserError without bitsandbytes, or for weights beside them."""
    if bits is None:
        return {}
    _check_can_quantize(bits)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"model.quantization={bits} needs bitsandbytes; install it: pip install 'debias[quantization]'")
    if dtype == "float32":
        raise UserError(f"model.quantization={bits} computes in 16 bits; leave out model.dtype=float32")
    if bits == "8bit":
        log.warning(
            "model.quantization=8bit: bitsandbytes keeps some features in 16 bits, and which ones depends on the whole "
            "batch, so a text's score depends on the texts beside it; with 4bit it does not"
        )
    return {"quantization_config": BitsAndBytesConfig(**QUANTIZATIONS[bits])}


def _check_can_quantize(bits: str) -> None:
    """Raise UserError on a CPU, where saving unpacks the weights of bitsandbytes 0.50 wrongly: the gate would fail."""
    if not torch.cuda.is_available():
        raise UserError(f"model.quantization={bits} needs a GPU, and this machine has none; remove it")


def _check_can_spread() -> None:
    """Raise UserError where `model.device_map=auto` has no GPUs of its own."""
    if not torch.cuda.is_available():
        raise UserError("model.device_map=auto spreads a model over GPUs, and this machine has none; remove it")
    if launched_processes() > 1:
        raise UserError(
            "model.device_map=auto gives all GPUs to one process, and a launcher has started several; "
            "start debias without torchrun or srun, or remove model.device_map"
        )


def _check_spread(model: PreTrainedModel, path: str) -> None:
    """Raise UserError if accelerate left layers to host memory or the disk: their weights cannot be checked."""
    left = {"cpu", "disk"}.intersection(map(str, getattr(model, "hf_device_map", {}).values()))
    gpus = counted(torch.cuda.device_count(), "visible GPU")
    if left:
        raise UserError(
            f"model {path!r} does not fit in the memory of {gpus}; "
            "set model.quantization=4bit, or run it where there are more"
        )
    log.info("the layers are spread over %s", gpus)


def _files(folder: str, revision: str | None) -> Path:
    """The local folder that holds the files of a folder or hub id, which has been loaded from there."""
    if Path(folder).is_dir():
        return Path(folder)
    return Path(str(cached_file(folder, "config.json", revision=revision, local_files_only=True))).parent
