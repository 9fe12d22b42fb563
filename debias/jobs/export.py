"""`debias export`: merge an adapter into the model's weights, write several as one, or upload it to the model hub."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2
import huggingface_hub
import peft
import torch
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from debias.assets import network, sha256_of
from debias.files import unknown, whole_folder, write_json
from debias.jobs.weighing import weighed
from debias.models import adapter as adapters
from debias.models import adapter_folder, composition
from debias.models.base import LOADERS, Base, BaseModel, LanguageModel
from debias.models.placement import release
from debias.models.shared_weights import Ties, separate
from debias.records import AUTO, UserError

CARD = "README.md"
MANIFEST = "debias_export.json"  # the names of what was written, which overwrite=true may replace


class Export(NamedTuple):
    """What to export, and where to.

    Args:
        adapters: the adapter's folder, or several that are combined into one.
        combine: how several are combined.
        weights: of an average or a sum.
        weigh: choose the weights of the sum on StereoSet dev.
        merge: merge the adapter into the base's weights and write them to `folder`.
        folder: where merged weights go, or the one adapter that several make.
        repo: OWNER/NAME on the model hub, or None.
        private: whether a new repo is private.
        overwrite: whether `folder` may be replaced.
    """

    adapters: tuple[Path, ...]
    combine: str | None
    weights: Sequence[float] | None
    weigh: bool
    merge: bool
    folder: Path
    repo: str | None
    private: bool
    overwrite: bool

    @property
    def adapter(self) -> Path:
        """The only adapter, or the first."""
        return self.adapters[0]

    @property
    def source(self) -> Path:
        """The folder that is uploaded."""
        return self.folder if self.merge or self.combine else self.adapter


def planned(
    path: str | Sequence[str],
    merge: bool,
    folder: str | None,
    repo: str | None,
    private: bool = True,
    overwrite: bool = False,
    combine: str | None = None,
    weights: Sequence[float] | Literal["auto"] | None = None,
) -> Export:
    """Check the request before anything is loaded. Raises UserError."""
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise UserError("adapter.path=[] names no adapter; name a folder")
    located = tuple(adapter_folder.located(path) for path in paths)
    adapter = located[0]
    weigh = weights == AUTO
    given = None if isinstance(weights, str) else weights
    if combine:
        if weigh and combine != "sum":
            raise UserError("adapter.weights=auto chooses the weights of a sum; set adapter.combine=sum")
        (composition.check if merge else composition.check_joined)(paths, combine, given)
        if not folder:
            raise UserError(f"adapter.combine={combine} needs a place for what it makes; set folder=NAME")
    elif len(paths) > 1:
        raise UserError("several adapters are exported as one: set adapter.combine=average, or name one of them")
    elif weights is not None:
        raise UserError(composition.MISPLACED_WEIGHTS)
    if not merge and not repo and not combine:
        raise UserError("say what to do with the adapter: merge=true writes full weights, repo=OWNER/NAME uploads it")
    if repo:
        _check_repo(repo)
        network.check_hub()  # before weights are merged for minutes
    target = Path(folder).expanduser() if folder else adapter.with_name(f"{adapter.name}-merged")
    if merge or combine:
        _check_target(target, located, overwrite)
    return Export(located, combine, given, weigh, merge, target, repo, private, overwrite)


def _check_target(target: Path, located: Sequence[Path], overwrite: bool) -> None:
    """Raise UserError for a folder that must not be replaced."""
    here, other = target.resolve(), "choose another folder=..."
    if any(here == adapter.resolve() or here in adapter.resolve().parents for adapter in located):
        raise UserError(f"folder={target} holds the adapter itself; {other}")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UserError(f"{target} exists already; {other}, or set overwrite=true")
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"{target} is not a folder that debias export wrote; {other}")
    try:
        written = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{target} was not written by debias export; {other}, or remove it yourself") from error
    foreign = unknown(target, [*map(glob.escape, written), MANIFEST])
    if names := sorted(str(path.relative_to(target)) for path in foreign):
        raise UserError(f"{target} holds files that debias export did not write ({', '.join(names[:3])}); {other}")


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo!r} is not a valid name on the model hub; write OWNER/NAME") from error


def steps(export: Export) -> list[str]:
    """The steps in words."""
    config = adapter_folder.saved_config(export.adapter)
    words = []
    what = str(export.adapter)
    if export.weigh:
        words.append("choose the weights of the sum on StereoSet dev, so that no bias overshoots")
    if export.combine:
        what = f"the {export.combine} of {' and '.join(map(str, export.adapters))}"
    if export.merge:
        words.append(
            f"merge {what} into the weights of {config.base_model_name_or_path} and write them to {export.folder}"
        )
    elif export.combine:
        words.append(f"write {what} to {export.folder} as one adapter")
    if export.repo:
        kind = "private" if export.private else "public"
        words.append(f"create the {kind} model repo {export.repo} unless it exists")
        files = [] if export.merge or export.combine else sorted(p for p in export.adapter.rglob("*") if p.is_file())
        size = sum(p.stat().st_size for p in files) / 1e6
        listed = f" ({', '.join(p.name for p in files)}; {size:.1f} MB)" if files else ""
        words.append(f"upload {export.source}{listed} to it")
    return words


def carry_out(export: Export, model: BaseModel) -> list[str]:
    """Merge and upload as planned; returns where things are now."""
    done: list[str] = []
    if export.weigh:
        weighing = weighed(model.load(), export.adapters)
        done += weighing.lines(export.adapters)
        used = [(one, weight) for one, weight in zip(export.adapters, weighing.weights, strict=True) if weight]
        if len(used) < 2:
            raise UserError(f"{done[0]}: {ALONE}")
        export = export._replace(adapters=tuple(one for one, _ in used), weights=[weight for _, weight in used])
    base = model.load()  # scoring may have changed the precision of the first one
    if export.merge:
        difference = merge(export, base)
        done.append(f"merged: {export.folder} (largest difference from the adapter: {difference:.1g} nats per token)")
    elif export.combine:
        difference = join(export, base)
        done.append(
            f"wrote: {export.folder} (largest difference from the {export.combine}: {difference:.1g} nats per token)"
        )
    else:
        adapter_folder.load(base, export.adapter)  # raises UserError for an adapter that nobody could use
    if export.repo:
        done.append(f"uploaded: {upload(export.source, export.repo, export.private)}")
    return done


ALONE = "a sum of these adapters is no better there than one of them or the base; export one, or train others"

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
    _check_target(export.folder, export.adapters, export.overwrite)
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
            (unfinished / CARD).write_text(merged_card(export.adapter / CARD, base), encoding="utf-8")
        _list_files(unfinished)
    return difference


def join(export: Export, base: Base) -> float:
    """Write several adapters as one, completely or not at all; the base stays as it was.

    Returns the largest difference between the log-probabilities of the adapter that was written and of the combination
    as `debias evaluate` computes it, in nats. Raises UserError if that difference is more than rounding.
    """
    assert export.combine
    if getattr(base.model, "is_quantized", False):
        raise UserError("several adapters become one beside the plain base; leave model.quantization out")
    _check_target(export.folder, export.adapters, export.overwrite)
    nn.Module.to(base.model, torch.float32)  # PEFT makes the new adapter in the base's type, and would round it
    how = (base, export.adapters, export.combine, export.weights)
    adapted = composition.combined(*how)
    texts = _texts(base.model.config.get_text_config().vocab_size, adapted.active_peft_config)
    expected = _logprobs(adapted, texts)
    adapters.detach(adapted)
    one = composition.joined(*how)
    trained = sum(p.numel() for n, p in one.named_parameters() if composition.JOINED in n.split("."))
    with whole_folder(export.folder, replace=export.overwrite) as unfinished:
        adapter_folder.write(one, base, unfinished, trained)
        adapters.detach(one)
        written = adapter_folder.load(base, unfinished)
        difference = _largest(expected, _logprobs(written, texts))
        adapters.detach(written)
        if not difference <= TOLERANCES[torch.float32]:  # also NaN
            raise UserError(
                f"as one adapter folder they would answer otherwise (by {difference:.2g} nats): PEFT does not carry "
                "over one of their options; set merge=true to write full weights"
            )
        (unfinished / CARD).write_text(_joined_card(export, base), encoding="utf-8")
        _list_files(unfinished)
    return difference


def _joined_card(export: Export, base: Base) -> str:
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
        f"(`debias export`):\n\n{parts}\nIt has not been scored: `debias evaluate adapter.path=FOLDER`.\n"
    )


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


def merged_card(card: Path, base: Base) -> str:
    """The adapter's card changed for the merged model, which loads without PEFT."""
    content = huggingface_hub.ModelCard.load(card)
    content.data.library_name = "transformers"
    name = "AutoModelForCausalLM" if base.kind == "causal" else "AutoModelForMaskedLM"
    code = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("path/to/this/folder")\n'
    text = re.sub(r"(?s)```python\n.*?```", lambda _: f"```python\n{code}```", str(content), count=1)
    text = text.replace("the base model's weights are unchanged.", "the adapter is merged into these weights.")
    return text.replace("# Debiasing adapter for", "# Debiased:", 1)


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to the model hub; returns its address. Raises UserError if the hub refuses it."""
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with debias export")
    except (httpx2.HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model hub refused {repo} ({reason}); set HF_TOKEN to a token that may write there"
        ) from error
    return f"https://huggingface.co/{repo}"
