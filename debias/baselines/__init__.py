"""Methods to compare with an adapter: they debias a frozen base without training (`debias evaluate baseline=...`).

A file in `conf/baseline/` names a `Baseline`. It is fitted to the base and becomes a `Method`, with which the scorer
asks the base again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from debias.run_identity import code_sha256

if TYPE_CHECKING:
    from debias.scoring.method import Method
    from debias.scoring.scorer import Scorer


class Baseline(Protocol):
    """A method that is not fitted yet."""

    def fingerprint(self) -> str:
        """Checksum of the text that it is fitted on."""

    def fit(self, scorer: Scorer) -> Method | None:
        """The method for the base of a scorer; None: the base alone."""


class Nothing:
    """No method: the base alone, or with an adapter."""

    def fingerprint(self) -> str:
        """Nothing is read."""
        return ""

    def fit(self, scorer: Scorer) -> None:
        """Nothing to fit."""
        return


def checksum(name: str, settings: object, *fitted: np.ndarray) -> str:
    """SHA-256 of a method: its name, settings and fitted values, and the code that applies them."""
    digest = hashlib.sha256(f"{name} {settings} {code_sha256('baselines')}".encode())
    for values in fitted:
        digest.update(f"{values.shape} {values.dtype}".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
