"""Sections of a config as the dataclasses that say which types their values have."""

from __future__ import annotations

from typing import Any

from debias.records import UserError


def checked(schema: Any, cfg: Any, section: str) -> Any:
    """A section of the config as the dataclass `schema`. Raises UserError, which names the key, for a wrong value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg[section]))
    except MissingMandatoryValue as error:
        key = f"{section}.{str(error).splitlines()[0].rpartition(' ')[2]}"
        raise UserError(f"{key} must be set: add {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{section}.{error.full_key}: {str(error).splitlines()[0]}") from error
