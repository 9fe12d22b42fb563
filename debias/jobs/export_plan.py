"""What `debias export` is asked to do: checked before anything is loaded, and told in words."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from debias.assets import network
from debias.files import unknown
from debias.models import adapter_folder, composition
from debias.records import AUTO, UserError

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
        again = next((p for k, p in enumerate(located) if p.resolve() in [q.resolve() for q in located[:k]]), None)
        if weigh and again:  # half of the weight on each of two would cost half of the price
            raise UserError(f"adapter.path names {again} twice; with adapter.weights=auto, name each adapter once")
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
        check_target(target, located, overwrite)
    return Export(located, combine, given, weigh, merge, target, repo, private, overwrite)


def check_target(target: Path, located: Sequence[Path], overwrite: bool) -> None:
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
        words.append("choose the weights of the sum on StereoSet dev, so that SS is near 50")
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
