"""Fair comparisons between sources of different sizes: how many optimiser steps a run gets."""

from __future__ import annotations

import math
from collections.abc import Iterable


def steps_of_examples(examples: int, batch_size: int, epochs: int) -> int:
    """Steps in which a source of this many examples is read `epochs` times."""
    return epochs * math.ceil(examples / batch_size)


def steps_of_tokens(tokens: float, tokens_per_step: Iterable[int]) -> int:
    """Steps after which at least `tokens` tokens were read."""
    read = 0
    for step, count in enumerate(tokens_per_step, start=1):
        read += count
        if read >= tokens:
            return step
    raise ValueError("the steps end before the tokens do")
