"""`debias export`: merge an adapter into the model's weights, or upload it to the model hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from debias.files import whole_folder
from debias.models import adapter as adapters
from debias.models.base import Base, BaseModel
from debias.records import UserError

CARD = "README.md"


class Export(NamedTuple):
    """What to export, and where to.

    Args:
        adapter: the adapter's folder.
        merge: merge the adapter into the base's weights and write them to `folder`.
        folder: where merged weights go.
        repo: OWNER/NAME on the model hub, or None.
        private: whether a new repo is private.
        overwrite: whether `folder` may be replaced.
    """

    adapter: Path
    merge: bool
    folder: Path
    repo: str | None
    private: bool
    overwrite: bool

    @property
    def source(self) -> Path:
        """The folder that is uploaded."""
        return self.folder if self.merge else self.adapter


def planned(
    path: str, merge: bool, folder: str | None, repo: str | None, private: bool = True, overwrite: bool = False
) -> Export:
    """Check the request before anything is loaded. Raises UserError."""
    adapter = adapters.located(path)
    if not merge and not repo:
        raise UserError("say what to do with the adapter: merge=true writes full weights, repo=OWNER/NAME uploads it")
    if repo:
        _check_repo(repo)
    target = Path(folder).expanduser() if folder else adapter.with_name(f"{adapter.name}-merged")
    if merge and target.exists() and not overwrite:
        raise UserError(f"{target} exists already; choose another folder=..., or set overwrite=true")
    return Export(adapter, merge, target, repo, private, overwrite)


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo!r} is not a valid name on the model hub; write OWNER/NAME") from error


def steps(export: Export) -> list[str]:
    """The steps in words."""
    config = json.loads((export.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    words = []
    if export.merge:
        base = config["base_model_name_or_path"]
        words.append(f"merge {export.adapter} into the weights of {base} and write them to {export.folder}")
    if export.repo:
        kind = "private" if export.private else "public"
        words.append(f"create the {kind} model repo {export.repo} unless it exists")
        files = sorted(p for p in export.adapter.rglob("*") if p.is_file()) if not export.merge else []
        size = sum(p.stat().st_size for p in files) / 1e6
        listed = f" ({', '.join(p.name for p in files)}; {size:.1f} MB)" if files else ""
        words.append(f"upload {export.source}{listed} to it")
    return words


def carry_out(export: Export, model: BaseModel) -> list[str]:
    """Merge and upload as planned; returns where things are now."""
    done = []
    if export.merge:
        merge(export, model.load())
        done.append(f"merged: {export.folder}")
    if export.repo:
        done.append(f"uploaded: {upload(export.source, export.repo, export.private)}")
    return done


def merge(export: Export, base: Base) -> None:
    """Write the merged model with its tokenizer and card, completely or not at all.

    Raises UserError if the adapter's method cannot be merged.
    """
    adapted = adapters.load(base, export.adapter)
    method = str(getattr(adapted.peft_type, "value", adapted.peft_type))
    if adapted.active_peft_config.is_prompt_learning:
        raise UserError(_not_merged(method, "a prompt does not change weights"))
    try:
        merged: Any = adapted.merge_and_unload()
    except (ValueError, NotImplementedError) as error:
        raise UserError(_not_merged(method, str(error))) from error
    merged.tie_weights()
    with whole_folder(export.folder, replace=export.overwrite) as unfinished:
        merged.save_pretrained(unfinished)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(unfinished)
        if (export.adapter / CARD).is_file():
            (unfinished / CARD).write_text(merged_card(export.adapter / CARD, base), encoding="utf-8")


def _not_merged(method: str, reason: str) -> str:
    return f"{method} cannot be merged ({reason}); leave merge=true out and upload the adapter with repo=OWNER/NAME"


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
