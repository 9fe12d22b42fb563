"""`debias export`: merge an adapter into the model's weights, write several as one, or upload it to the model hub."""

from __future__ import annotations

from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from debias.jobs.export_plan import Export
from debias.jobs.merging import join, merge
from debias.jobs.weighing import weighed
from debias.models import adapter_folder
from debias.models.base import BaseModel
from debias.records import UserError

ALONE = "a sum of these adapters is no better there than one of them or the base; export one, or train others"


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


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to the model hub; returns its address. Raises UserError if the hub refuses it."""
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with debias export")
    except OfflineModeIsEnabled as error:
        raise UserError(f"{repo} cannot be uploaded while HF_HUB_OFFLINE is set; unset it") from error
    except (httpx2.HTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, httpx2.TransportError):
            raise UserError(f"the model hub cannot be reached ({reason}); run the same command again later") from error
        raise UserError(
            f"the model hub refused {repo} ({reason}); set HF_TOKEN to a token that may write there"
        ) from error
    return f"https://huggingface.co/{repo}"
