"""A debiasing method that leaves the base's weights alone: what it changes while the base is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


class Method:
    """A method that was fitted to a base. This one changes nothing; the others override what they change.

    Args:
        name: what records call it.
        sha256: checksum of all that its answers depend on beside the base; scores are kept under it.
    """

    def __init__(self, name: str, sha256: str) -> None:
        self.name, self.sha256 = name, sha256

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside the block, the model computes as the method wants."""
        yield
