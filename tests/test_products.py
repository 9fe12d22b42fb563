"""Float32 products: the faster library, only where it computes in float32, and only in the block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from debias.models import products
from debias.models.base import BaseModel
from debias.records import Span
from debias.scoring import batched
from debias.scoring.scorer import Scorer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def anew() -> None:
    products._medium_is_float32.cache_clear()


def used(device: torch.device = CPU) -> str:
    """The precision in the block."""
    with products.fast_products(device):
        return torch.get_float32_matmul_precision()


def test_the_setting_ends_with_the_block_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_medium_is_float32", lambda: True)
    assert torch.get_float32_matmul_precision() == "highest"
    assert used() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), products.fast_products(CPU):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
    assert used(torch.device("cuda")) == "highest"  # there the name means bfloat16 or TF32


def test_a_library_that_rounds_to_bfloat16_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AMX."""
    plain = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return plain(left, right)

    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert used() == "highest"
    assert not products._medium_is_float32()


def test_only_processors_of_amd_change_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_medium_is_float32", lambda: True)
    for vendor, expected in (("GenuineIntel", "highest"), ("AuthenticAMD", "medium")):
        monkeypatch.setattr(products.Path, "read_text", lambda *_, vendor=vendor, **__: f"vendor_id : {vendor}")
        assert used() == expected


def test_scores_are_exact_where_32_is_asked_for(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the faster library, and keeps its scores apart from those of the other."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_medium_is_float32", lambda: True)
    base, seen = BaseModel(str(tiny)).load(), []
    plain = batched.score_and_greedy

    def spy(*args: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return plain(*args)

    monkeypatch.setattr(batched, "score_and_greedy", spy)
    for precision in ("auto", "32", "auto"):
        Scorer(base, None, precision, 512, tmp_path).logprobs([Span((1, 2, 3), 1)], "a text")
    assert seen == ["medium", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"
