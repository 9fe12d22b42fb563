"""An adapter merged into its base's weights, or several written as one; each is read back and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from debias.assets import sha256_of
from debias.files import whole_folder, write_json
from debias.jobs import making
from debias.jobs.export_plan import MANIFEST, Export, check_target
from debias.models import adapter_folder, composition
from debias.models.adapter import detach
from debias.models.base import LOADERS, Base, LanguageModel
from debias.models.placement import release
from debias.models.shared_weights import Ties, separate
from debias.records import UserError
from debias.report.many_runs.making import Making, of_note

CARD = "README.md"

# The largest difference between log-probabilities that rounding explains, in nats, computed in float32 by both models.
# Measured with SmolLM2 and LoRA of three sizes: 6e-4 with float32 weights; 0.37 with bf16 weights, because a sum that
# is rounded to 8 bits moves every weight. Embeddings that were merged wrongly showed differences of 0.8 to 6.8.
TOLERANCES = {torch.float32: 1e-2, torch.bfloat16: 0.5}


def merge(export: Export, base: Base) -> float:
    """Write the merged model with its tokenizer and card, completely or not at all; the base's memory is freed.

    Returns the largest difference between the log-probabilities of the written model and of the adapter, in nats.
    Raises UserError if the adapter's method cannot be merged, or if that difference is more than rounding.
    """
    if getattr(base.model, "is_quantized", False):
        raise UserError("merge=true would round the adapter to the base's few bits; leave merge=true out")
    check_target(export.folder, export.adapters, export.overwrite)
    dtype = base.model.dtype
    dtypes = {name: parameter.dtype for name, parameter in base.model.named_parameters(remove_duplicate=False)}
    ties = Ties(base.model)
    vocabulary = base.model.config.get_text_config().vocab_size
    adapted = (
        composition.combined(base, export.adapters, export.combine, export.weights)
        if export.combine
        else adapter_folder.load(base, export.adapter)
    )
    method = str(getattr(adapted.peft_type, "value", adapted.peft_type))
    if adapted.active_peft_config.is_prompt_learning:
        raise UserError(_not_merged(method, "a prompt does not change weights"))
    release(adapted)
    adapted.to("cpu", torch.float32)  # one rounding at the end, and a comparison that shows nothing else
    texts = _texts(vocabulary, adapted.active_peft_config)
    expected = _logprobs(adapted, texts)
    separate(adapted)
    try:
        merged: Any = adapted.merge_and_unload()
    except Exception as error:  # PEFT's methods raise errors of many types
        raise UserError(_not_merged(method, " ".join(str(error).split())[:200] or type(error).__name__)) from error
    ties.restore(merged)
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    with whole_folder(export.folder, replace=export.overwrite) as unfinished:
        merged.save_pretrained(unfinished)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(unfinished)
        merged.to("meta")  # makes room for the model that is read back
        difference = _difference(expected, unfinished, base.kind, texts)
        if not difference <= TOLERANCES[dtype]:  # also NaN
            reason = f"its log-probabilities differ from the merged model's by {difference:.2g} nats"
            raise UserError(_not_merged(method, reason))
        if not export.combine and (export.adapter / CARD).is_file():  # a card tells of one training
            (unfinished / CARD).write_text(_merged_card(export.adapter / CARD, base), encoding="utf-8")
        making.note(unfinished, _made(export) if export.combine else making.of_adapter(export.adapter))
        _list_files(unfinished)
    return difference


def join(export: Export, base: Base) -> float:
    """Write several adapters as one, completely or not at all; the base stays as it was.

    Returns the largest difference between the log-probabilities of the adapter that was written and of the combination
    as `debias evaluate` computes it, in nats. Raises UserError if that difference is more than rounding.
    """
    assert export.combine
    if getattr(base.model, "is_quantized", False):
        raise UserError(
            "adapters that were trained beside quantised weights do not become one folder; "
            "combine them where they are scored: debias evaluate with adapter.combine"
        )
    check_target(export.folder, export.adapters, export.overwrite)
    nn.Module.to(base.model, torch.float32)  # PEFT makes the new adapter in the base's type, and would round it
    how = (base, export.adapters, export.combine, export.weights)
    adapted = composition.combined(*how)
    texts = _texts(base.model.config.get_text_config().vocab_size, adapted.active_peft_config)
    expected = _logprobs(adapted, texts)
    detach(adapted)
    one = composition.joined(*how)
    trained = sum(p.numel() for n, p in one.named_parameters() if composition.JOINED in n.split("."))
    with whole_folder(export.folder, replace=export.overwrite) as unfinished:
        adapter_folder.write(one, base, unfinished, trained)
        detach(one)
        written = adapter_folder.load(base, unfinished)
        difference = _largest(expected, _logprobs(written, texts))
        detach(written)
        if not difference <= TOLERANCES[torch.float32]:  # also NaN
            raise UserError(
                f"as one adapter folder they would answer otherwise (by {difference:.2g} nats): PEFT does not carry "
                "over one of their options; set merge=true to write full weights"
            )
        made = _made(export)
        making.note(unfinished, made)
        (unfinished / CARD).write_text(_joined_card(export, base, of_note(made)), encoding="utf-8")
        _list_files(unfinished)
    return difference


def _made(export: Export) -> dict[str, Any]:
    """How the combination was made."""
    assert export.combine
    return making.of_several(export.adapters, export.combine, export.weights, "StereoSet dev" if export.weigh else None)


def _joined_card(export: Export, base: Base, made: Making | None) -> str:
    """What the folder holds; figures are those of its own evaluation, which nobody has run."""
    assert export.combine
    shares = composition.shares(len(export.adapters), export.combine, export.weights)
    parts = "".join(
        f"- {share:.3g} x {folder.resolve().parent.name}/{folder.resolve().name}, SHA-256 of the weights "
        f"`{sha256_of(folder / SAFETENSORS_WEIGHTS_NAME)}`\n"
        for share, folder in zip(shares, export.adapters, strict=True)
    )
    return (
        f"# Debiasing adapter for {base.name}\n\nThe {export.combine} of {len(export.adapters)} LoRA adapters, as one "
        f"(`debias export`):\n\n{parts}\n{_training(made)}\n\n"
        "It has not been scored: `debias evaluate adapter.path=FOLDER`.\n"
    )


def _training(made: Making | None) -> str:
    """What the parts were trained on, in a few sentences."""
    assert made is not None
    took = "" if made.seconds is None else f" ({made.seconds:,.0f} s in all)"
    return f"Trained on: {made.data}{took}. Saw sentences of StereoSet or CrowS-Pairs: {made.saw}."


def _list_files(folder: Path) -> None:
    """Note what was written, which overwrite=true may replace."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST, {"files": names})


def _not_merged(method: str, reason: str) -> str:
    return f"{method} cannot be merged ({reason}); leave merge=true out and upload the adapter with repo=OWNER/NAME"


def _texts(vocabulary: int, config: peft.PeftConfig) -> list[torch.Tensor]:
    """A few texts of tokens from the whole vocabulary, those with trained embeddings first; each of shape (1, T)."""
    trained = vars(config).get("trainable_token_indices") or vars(config).get("token_indices") or []
    first = trained if isinstance(trained, list) else [token for tokens in trained.values() for token in tokens]
    drawn = torch.randint(1, vocabulary, (64,), generator=torch.Generator().manual_seed(0))
    return list(torch.cat([torch.tensor(first[:16], dtype=torch.long), drawn])[:64].view(4, 1, 16))


@torch.inference_mode()
def _logprobs(model: LanguageModel, texts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].log_softmax(-1)
        for ids in texts
    ]


def _difference(expected: Sequence[torch.Tensor], folder: Path, kind: str, texts: Sequence[torch.Tensor]) -> float:
    """Largest difference from the log-probabilities of the model in a folder; NaN where one of them is NaN."""
    model = LOADERS[kind].from_pretrained(folder, dtype=torch.float32).eval()
    return _largest(expected, _logprobs(model, texts))


def _largest(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([(a - b).abs().max() for a, b in zip(expected, found, strict=True)]).max())


def _merged_card(card: Path, base: Base) -> str:
    """The adapter's card changed for the merged model, which loads without PEFT."""
    content = huggingface_hub.ModelCard.load(card)
    content.data.library_name = "transformers"
    name = "AutoModelForCausalLM" if base.kind == "causal" else "AutoModelForMaskedLM"
    code = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")\n'
    text = re.sub(r"(?s)```python\n.*?```", lambda _: f"```python\n{code}```", str(content), count=1)
    text = text.replace("the base model's weights are unchanged.", "the adapter is merged into these weights.")
    return text.replace("# Debiasing adapter for", "# Debiased:", 1)
