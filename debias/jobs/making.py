"""How adapters were made: noted in their folders, so that a run which only scores them, or joins them, can tell.

A note is JSON. Of a trained adapter it has `config` (the sections of its run's config that make an adapter, and the
seed), `trained_on_scored` (how many training sentences each benchmark of that run scores too) and `seconds`. Of several
adapters in one it has `combine`, `weights`, `chosen_on` and the notes of the `parts`; null where nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from debias.files import write_json
from debias.jobs.machine_paths import renamed
from debias.models.adapter_folder import PROVENANCE
from debias.report.many_runs.making import SECTIONS
from debias.results import ADAPTER, read_status, run_of, settled

MADE = "made"  # the key of PROVENANCE


def of_run(folder: Path) -> dict[str, Any] | None:
    """How the adapter of a run folder was trained; None if the folder does not tell."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        stages = json.loads((folder / "cost.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    if not isinstance(config, dict) or not config.get("objective"):
        return None
    status = read_status(folder)
    # The note travels with the adapter, so it names nothing of the machine.
    kept = renamed({key: value for key, value in settled(config, status).items() if key in ("seed", *SECTIONS)}, {})
    seconds = stages.get("train", {}).get("seconds")
    return {"config": kept, "trained_on_scored": status.get("trained_on_scored"), "seconds": seconds}


def of_adapter(folder: str | Path) -> dict[str, Any] | None:
    """How a saved adapter was made, by its own note or by the run folder it is in; None if neither tells."""
    folder = Path(folder).expanduser().resolve()
    try:
        noted = json.loads((folder / PROVENANCE).read_text(encoding="utf-8")).get(MADE)
    except (OSError, ValueError, AttributeError):  # made by another program
        noted = None
    return noted or (of_run(run_of(folder)) if folder.name == ADAPTER else None)


def of_several(
    folders: Sequence[Path], combine: str, weights: Sequence[float] | None, chosen_on: str | None
) -> dict[str, Any]:
    """How one adapter of several was made.

    Args:
        chosen_on: the sentences on which the program chose the weights.
    """
    given = None if weights is None else [float(weight) for weight in weights]
    return {"combine": combine, "weights": given, "chosen_on": chosen_on, "parts": [*map(of_adapter, folders)]}


def note(folder: Path, made: dict[str, Any] | None) -> None:
    """Write how an adapter was made, if it is known, into its folder or that of full weights."""
    if made is None:
        return
    file = folder / PROVENANCE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, {**known, MADE: made})
