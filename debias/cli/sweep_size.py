"""How many runs a sweep asks for, from the multirun.yaml that Hydra writes into the sweep's folder."""

from __future__ import annotations

from math import prod
from pathlib import Path


def planned(path: Path) -> int | None:
    """The product of the lengths of all comma lists and ranges; None if the file cannot be understood."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        hydra = OmegaConf.load(path).hydra
        own = [str(word) for word in hydra.overrides.task]
        named = {word.partition("=")[0].lstrip("+") for word in own}  # these override the sweep file
        params = (hydra.sweeper.get("params") or {}).items()
        words = own + [f"{key}={value}" for key, value in params if key not in named]
        overrides = OverridesParser.create().parse_overrides(words)
        return prod(len(list(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override())
    except (OSError, AttributeError, TypeError, ValueError, HydraException, OmegaConfBaseException, YAMLError):
        return None
