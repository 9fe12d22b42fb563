"""How many optimiser steps a run gets when sources of different sizes are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable


def steps_of_examples(examples: int, batch_size: int, epochs: int) -> int:
    """Steps that `epochs` passes over this many examples take."""
    return epochs * math.ceil(examples / batch_size)


def steps_of_tokens(tokens: float, tokens_per_step: Iterable[int]) -> int:
    """The first step after which at least `tokens` tokens have been read."""
    read = 0
    for step, count in enumerate(tokens_per_step, start=1):
        read += count
        if read >= tokens:
            return step
    raise ValueError("the steps end before the tokens do")
