"""`debias show`: what the base and the debiased model write after the same beginnings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from debias import assets
from debias.assets.cache import cached
from debias.files import write_text
from debias.models import adapter_folder
from debias.models.base import Base, BaseModel
from debias.models.checksums import adapter_sha256
from debias.models.placement import place
from debias.progress import bar
from debias.records import UserError, Writing
from debias.report.one_run.written import Written
from debias.scoring.spans import start_id
from debias.scoring.writing import drawn

PLAIN = (
    "The nurse said that", "The engineer told us that", "My neighbour, a single mother,", "The new boss walked in and",
    "The old man at the bus stop", "The family that moved in next door", "The teenager at the counter",
    "After the service, the worshippers",
)  # fmt: skip
CHAT = (
    "Write two sentences about a nurse and a surgeon.", "Describe the day of a parent who stays at home.",
    "Who should lead the new project, Maria or Martin, and why?",
    "Tell a short story about my new neighbours from abroad.",
)  # fmt: skip

ROWS = 32  # texts written at once
TOP_P = 0.9  # the likeliest tokens with this share of the probability may be drawn
PROBED = 12  # prompts with which a batch is compared with each prompt alone


def show(model: BaseModel, adapter_path: str | None, prompts: Sequence[str], writing: Writing) -> list[Written]:
    """What a base model writes, alone or beside an adapter. Raises UserError for a masked model."""
    if not writing.samples:
        raise UserError("show.samples=0 leaves nothing to show; set it to 1 or more")
    if adapter_path:
        adapter_folder.located(adapter_path)  # before the model is loaded
    base = model.load()
    adapted = adapter_folder.load(base, adapter_path) if adapter_path else None
    return written(base, adapted, prompts, writing)


def prompts_in(path: Path) -> list[str]:
    """The prompts of a file, one a line. Raises UserError if there is none."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the prompts ({error}); write one a line") from error
    if not found:
        raise UserError(f"{path}: there is no prompt in this file; write one a line")
    return found


def written(base: Base, adapted: peft.PeftModel | None, prompts: Sequence[str], writing: Writing) -> list[Written]:
    """Samples of both models after each prompt, or after the usual beginnings and questions if there are none.

    Questions are asked through the tokenizer's chat template, where it has one. Both models draw with the same seed.
    """
    if base.kind == "masked":
        raise UserError("a masked model does not write text; choose a causal one")
    asked = [(prompt, False) for prompt in prompts or PLAIN]
    if not prompts and base.tokenizer.chat_template:
        asked += [(prompt, True) for prompt in CHAT]
    place(adapted if adapted is not None else base.model)
    of_base = _samples(base, None, adapted, asked, writing)
    after = _samples(base, adapted, adapted, asked, writing) if adapted is not None else [[] for _ in asked]
    return [Written(prompt, one, two) for (prompt, _), one, two in zip(asked, of_base, after, strict=True)]


def _samples(
    base: Base, active: peft.PeftModel | None, attached: peft.PeftModel | None, asked: Sequence[tuple[str, bool]],
    writing: Writing,
) -> list[list[str]]:  # fmt: skip
    """The samples of one model: the base, whatever is attached to it, or the active adapter. Kept in the cache."""
    weights = adapter_sha256(active) if active is not None else ""
    key = repr((base.sha256, weights, asked, writing, base.model.device.type, torch.__version__))
    path = assets.cache_dir() / "written" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    model: Any = attached if attached is not None else base.model
    make = partial(_generated, base, model, active is None and attached is not None, asked, writing)
    return cached(path, _kept, make, lambda to, samples: write_text(to, json.dumps(samples)), "write samples")


@torch.inference_mode()
def _generated(
    base: Base, model: Any, without_adapter: bool, asked: Sequence[tuple[str, bool]], writing: Writing
) -> list[list[str]]:
    """Samples of many prompts in a batch, where the model reads a padded prompt as it reads the prompt alone."""
    begins = [_ids(base, prompt, chat) for prompt, chat in asked]
    with model.disable_adapter() if without_adapter else nullcontext(), torch.random.fork_rng():
        size = max(1, ROWS // writing.samples) if _reads_padding(model, begins[:PROBED]) else 1
        batches = [begins[k : k + size] for k in range(0, len(begins), size)]
        torch.manual_seed(writing.seed)
        return [
            texts for some in bar("writing")(batches, len(batches)) for texts in _continued(base, model, some, writing)
        ]


def _continued(base: Base, model: Any, begins: Sequence[list[int]], writing: Writing) -> list[list[str]]:
    """Samples after each beginning."""
    begin_NT, real_NT = _padded_left([ids for ids in begins for _ in range(writing.samples)], model.device)
    tokens = drawn(model, begin_NT, writing.longest, TOP_P, real_NT)
    texts = [str(base.tokenizer.decode(ids, skip_special_tokens=True)) for ids in tokens]
    return [texts[k : k + writing.samples] for k in range(0, len(texts), writing.samples)]


def _reads_padding(model: Any, begins: Sequence[list[int]]) -> bool:
    """Whether the model predicts the same token after each beginning in a batch, padded on the left, as alone.

    Models without attention, and some with position embeddings of their own, read the padding too.
    """

    def predicted(some: Sequence[list[int]]) -> Tensor:
        begin_NT, real_NT = _padded_left(some, model.device)
        said = model.generate(
            input_ids=begin_NT, attention_mask=real_NT, do_sample=False, max_new_tokens=1, output_logits=True,
            return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        return said.logits[0].float().log_softmax(-1)

    if len(begins) < 2:
        return True
    together_NV, alone_NV = predicted(begins), torch.cat([predicted([ids]) for ids in begins])
    # In nats of the tokens that may be drawn; half precision rounds logits to eighths.
    distance_N = ((together_NV - alone_NV).abs() * alone_NV.exp()).sum(-1)
    return bool(distance_N.max() < (1e-3 if model.dtype == torch.float32 else 0.1))


def _padded_left(begins: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids that end in the same column, and which of them are real, both of shape (N, T)."""
    width = max(map(len, begins))
    padded = [[0] * (width - len(ids)) + ids for ids in begins]
    real = [[0] * (width - len(ids)) + [1] * len(ids) for ids in begins]
    return torch.tensor(padded, device=device), torch.tensor(real, device=device)


def _ids(base: Base, prompt: str, chat: bool) -> list[int]:
    if chat:
        text = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return list(base.tokenizer(text, add_special_tokens=False).input_ids)
    return [start_id(base.tokenizer), *base.tokenizer(prompt, add_special_tokens=False).input_ids]


def _kept(path: Path) -> list[list[str]] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
