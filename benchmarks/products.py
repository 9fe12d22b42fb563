"""Float32 matrix products on this CPU, of MKL (`highest`) and of oneDNN (`medium`): speed and error.

`python benchmarks/products.py` prints a line for each library and shape of SmolLM2. The error is a share of the sum of
the terms' sizes, against float64: float32 makes about 1e-7, and bfloat16 1e-3. With `--scores` it goes on to score all
gender texts of StereoSet test under SmolLM2 with both, and asks float64 about those that differ most (2 minutes).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch.nn.functional import linear

from debias.benchmarks.stereoset import StereoSet
from debias.models.base import BaseModel
from debias.scoring import batched
from debias.scoring.layout_trial import choose_layout
from debias.scoring.protocols import BiasBench

ROWS = 512
SHAPES = ((576, 576), (576, 1536), (1536, 576))  # width, columns
REPEATS = 30


def main() -> None:
    """Measure both."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROWS} rows")
    for width, columns in SHAPES:
        left, right = torch.randn(ROWS, width), torch.randn(columns, width)
        exact, size = linear(left.double(), right.double()), linear(left.double().abs(), right.double().abs())
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            error = ((linear(left, right).double() - exact).abs() / size).max()
            begun = time.perf_counter()
            for _ in range(REPEATS):
                linear(left, right)
            speed = 2 * ROWS * width * columns * REPEATS / (time.perf_counter() - begun) / 1e9
            print(f"{precision:8} {width:5} x {columns:5}  {speed:5.0f} GFLOP/s  error {error:.1e}")


def scores() -> None:
    """Log-probabilities of texts under both, in nats."""
    base, protocol = BaseModel("smollm2").load(), BiasBench()
    candidates = StereoSet(protocol, limit=1, whole="gender").candidates(base.tokens)
    reading = protocol.reading(base.tokens)
    spans = [span for several in reading.spans(candidates, base.tokens.tokenizer) for span in several]
    layout = choose_layout(base.model, base.kind)
    found = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        begun = time.perf_counter()
        found[precision] = batched.score(base.model, spans, layout)
        print(f"{precision:8} {len(spans):,} texts in {time.perf_counter() - begun:.0f} s")
    torch.set_float32_matmul_precision("highest")
    apart = np.abs(found["highest"] - found["medium"])
    print("apart, in nats: " + ", ".join(f"{np.quantile(apart, q):.1e} ({q:.1%})" for q in (0.5, 0.99, 0.998, 1)))
    base.model.double()
    some = [*np.argsort(-apart)[:12], *range(0, len(spans), len(spans) // 40)]
    exact = batched.score(base.model, [spans[k] for k in some], layout)
    for name, part in (("the 12 furthest apart", slice(0, 12)), ("40 others", slice(12, None))):
        errors = [f"{precision} {np.abs(found[precision][some] - exact)[part].max():.1e}" for precision in found]
        print(f"largest error against float64, {name}: {', '.join(errors)}")


if __name__ == "__main__":
    main()
    if "--scores" in sys.argv:
        scores()
