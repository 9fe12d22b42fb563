"""The softmax and the KL divergence of a training step: seconds, for several numbers of rows at a time.

`python benchmarks/divergence.py` makes logits of a default step under SmolLM2 (360 positions, bfloat16) and takes their
log-probabilities, their divergence from a base and the gradient: as training does, with other numbers of rows at a
time, and in torch's own words (`log_softmax`, `kl_div`, autograd). The ways take turns, and each figure is a median.
With THP_MEM_ALLOC_ENABLE=1, as under `debias`, torch asks for large pages.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import kl_div, linear

from debias.scoring import softmax

POSITIONS, SCORED, WORDS, WIDTH = 360, 60, 49_152, 576
ROWS = (1, 5, 20, 64)
REPEATS = 7
PLAIN = "torch's own words"


def main() -> None:
    """Print a line for each way: seconds, and how often as fast as torch's own words."""
    torch.manual_seed(0)
    head_VD = (torch.randn(WORDS, WIDTH) * 0.15).bfloat16()
    hidden_MD = torch.randn(POSITIONS, WIDTH)
    logits_NV = linear(hidden_MD.bfloat16(), head_VD)
    hidden_MD = (hidden_MD + 0.1 * torch.randn(POSITIONS, WIDTH)).bfloat16()
    row_E, token_E = torch.randint(0, POSITIONS, (SCORED,)), torch.randint(0, WORDS, (SCORED,))
    row_M, weight_M = torch.arange(POSITIONS), torch.ones(POSITIONS)

    def ours(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        return softmax.Against.apply(logits_NV, row_E, token_E, row_M, weight_M, hidden_MD, head_VD, None)

    def plain(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        base_NV, model_NV = (x.float().log_softmax(-1) for x in (linear(hidden_MD, head_VD), logits_NV))
        return model_NV[row_E, token_E], kl_div(model_NV, base_NV, log_target=True, reduction="sum")

    def with_rows(rows: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def way(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
            with patch.object(softmax, "rows_at_once", lambda _: rows):
                return ours(logits_NV)

        return way

    ways: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {PLAIN: plain}
    ways |= {f"training, {softmax.rows_at_once(logits_NV)} rows at a time": ours}
    ways |= {f"{rows} rows at a time": with_rows(rows) for rows in ROWS}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            leaf_NV = logits_NV.clone().requires_grad_()
            begun = time.perf_counter()
            logprob_E, drift = way(leaf_NV)
            (0.1 * logprob_E.sum() + drift / POSITIONS).backward()
            taken[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, seconds in median.items():
        print(f"{name:32} {seconds:.3f} s  {median[PLAIN] / seconds:.1f} x")


if __name__ == "__main__":
    main()
