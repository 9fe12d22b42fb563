"""Which library multiplies float32 matrices on a CPU.

torch gives these products to MKL, whose kernels for AMD's processors leave half of their speed unused. At the precision
`medium`, torch gives them to oneDNN. That name promises less than float32, and on a processor with AMX oneDNN does
round the factors to bfloat16; elsewhere it computes in float32. So it is asked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

ROUNDING = 2e-6  # allowed error of a product, as a share of the sum of its terms' sizes; bfloat16 makes 1e-3


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """In the block, float32 products on a CPU come from the faster library, if that computes in float32.

    Its sums are in another order: of 4,644 StereoSet texts under SmolLM2, half move by less than 7e-5 nats, and six by
    3.5e-3 (`benchmarks/products.py`).
    """
    before = torch.get_float32_matmul_precision()
    if has_fast_products(device):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def has_fast_products(device: torch.device) -> bool:
    """Whether `fast_products` changes which library multiplies."""
    return device.type == "cpu" and _mkl_is_slow() and _medium_is_float32()


def _mkl_is_slow() -> bool:
    """Whether this is an AMD processor: a rule rather than a measurement, so that a resumed run computes alike."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


@cache
def _medium_is_float32() -> bool:
    """Whether products at the precision `medium` are as exact as float32 is, in shapes that training has."""
    before = torch.get_float32_matmul_precision()
    draw = torch.Generator().manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    try:
        for rows, width, columns in ((1, 512, 64), (64, 512, 512), (512, 512, 16), (512, 16, 512)):
            left, right = (torch.randn(shape, generator=draw) for shape in ((rows, width), (width, columns)))
            exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
            if (((left @ right).double() - exact).abs() / size).max() > ROUNDING:
                return False
        return True
    finally:
        torch.set_float32_matmul_precision(before)
