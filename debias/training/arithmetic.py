"""How a CPU computes the steps of training: the type of the frozen weights, and which kernels multiply and attend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from debias.models.products import fast_products

LARGE = 50_000_000  # frozen weights
SHORT = 512  # positions of a row up to which the plain attention kernel is used; its memory grows with their square


def bf16_pays(model: nn.Module) -> bool:
    """Whether this CPU trains faster beside a frozen base in bfloat16, as a GPU does by default.

    A rule: the processor multiplies in bfloat16 (AVX-512 or AMX), and the matrices are large enough to gain. On two
    AMD cores a step of SmolLM2, with 135 million weights, takes two thirds of its time in float32.
    """
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32)
    return frozen >= LARGE and _multiplies_bf16()


@contextmanager
def frozen_in_bf16(model: nn.Module) -> Iterator[None]:
    """In the block, the frozen float32 weights of a model are rounded to bfloat16; then they are what they were."""
    exact = [(p, p.data) for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    for p, _ in exact:
        p.data = p.data.bfloat16()
    try:
        yield
    finally:
        for p, data in exact:
            p.data = data


@contextmanager
def fast_kernels(device: torch.device, longest: int) -> Iterator[None]:
    """In the block, a CPU multiplies and attends by what is fastest for rows of up to `longest` positions.

    torch's fused attention for CPUs is made for long rows: of 160 positions it takes a fifth of a step, and the plain
    kernel a twentieth.
    """
    with ExitStack() as stack:
        stack.enter_context(fast_products(device))
        if device.type == "cpu" and longest <= SHORT:
            stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
        yield


def _multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(name in flags for name in ("avx512_bf16", "amx_bf16"))
