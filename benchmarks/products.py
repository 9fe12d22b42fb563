"""Float32 matrix products on this CPU, of MKL (`highest`) and of oneDNN (`medium`): speed and largest error.

`python benchmarks/products.py` prints a line for each library and shape of SmolLM2. The error is a share of the sum of
the terms' sizes, against float64: float32 makes about 1e-7, and bfloat16 1e-3.
"""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

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


if __name__ == "__main__":
    main()
