"""What a model's files hold: a checksum of its tensors, however they are sharded over files."""

from __future__ import annotations

import hashlib
import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from debias import assets
from debias.files import write_json
from debias.records import UserError, one_line

LFS = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched


def check_files(folder: Path) -> None:
    """Raise UserError for files that only look like a model's: not fetched by Git LFS, truncated or empty."""
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".model") and p.is_file()):
        try:
            with file.open("rb") as opened:
                begin = opened.read(len(LFS))
            if begin and begin != LFS and file.suffix == ".safetensors":
                safe_open(file, framework="numpy")  # reads the header, and compares it with the size
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file} is truncated or not in safetensors format ({one_line(error)}); get it again"
            ) from error
        if begin == LFS:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}")
        if not begin:
            raise UserError(f"{file} is empty; get it again")


def content_sha256(path: str, revision: str | None = None) -> str:
    """What a model or an adapter is made of: of a folder a checksum of its tensors, its configs and its tokenizer.

    A hub id's commit stands for all of its files; without hub and cache the id is returned as it is, and loading will
    say what is wrong. Raises UserError for damaged files.
    """
    if path in assets.ASSETS:
        return assets.ASSETS[path].sha256
    if path == "bert-tiny":  # trained on this machine, so its name does not say what it holds
        from debias.models import bert_tiny  # takes torch to import

        path = str(bert_tiny.folder())
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return f"{path} {_commit(path, revision)}"
    check_files(folder)
    digest = hashlib.sha256(tensors_sha256(folder).encode())
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model") and p.is_file()):
        digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def _commit(hub_id: str, revision: str | None) -> str | None:
    """The commit that loading would take: the hub's, or that of the local cache if the hub cannot be reached."""
    from huggingface_hub import HfApi, constants  # not needed by most jobs

    try:
        return HfApi().resolve_revision(hub_id, revision=revision, local_files_only=constants.HF_HUB_OFFLINE).resolved
    except Exception:  # no such model, no access, no network: errors of many types
        return None


def tensors_sha256(folder: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors in a folder's safetensors files.

    Files are read once: what they hold is kept in the cache until their size or time changes. Raises ValueError for a
    file that is not in safetensors format.
    """
    tensors: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= _tensors(path)
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()


def more_precise_than_bf16(folder: Path) -> bool:
    """Whether bfloat16 would round most tensors of a folder's safetensors files; their headers alone are read."""
    kinds: list[bool] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            kinds += [file.get_slice(name).get_dtype() in ("F16", "F32", "F64") for name in file.keys()]  # noqa: SIM118
    return 2 * sum(kinds) > len(kinds)


def _tensors(path: Path) -> dict[str, str]:
    real = path.resolve()  # the hub's cache holds links
    stamp = [str(real), real.stat().st_size, real.stat().st_mtime_ns]
    kept = assets.cache_dir() / "checksums" / f"{hashlib.sha256(str(real).encode()).hexdigest()}.json"
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["stamp"] == stamp:
            return before["tensors"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with real.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = int.from_bytes(data[:8], "little")
        if size > len(data) - 8:
            raise ValueError(f"{path} is truncated or not in safetensors format")
        header = json.loads(data[8 : 8 + size])
        view = memoryview(data)[8 + size :]

        def digest(info: dict[str, Any]) -> str:
            begin, end = info["data_offsets"]
            return hashlib.sha256(view[begin:end]).hexdigest()

        names = sorted(name for name in header if name != "__metadata__")
        with ThreadPoolExecutor() as threads:  # hashlib lets other threads run
            found = dict(zip(names, threads.map(digest, (header[name] for name in names)), strict=True))
        view.release()
    tensors = {name: f"{header[name]['dtype']} {header[name]['shape']} {found[name]}" for name in names}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"stamp": stamp, "tensors": tensors})
    except OSError:  # a cache that cannot be written costs time alone
        pass
    return tensors
