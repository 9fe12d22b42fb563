"""How a CPU trains: which models it rounds to bfloat16, that the base comes back exactly, and which kernels attend."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.backends.cuda import flash_sdp_enabled, math_sdp_enabled

from debias.training import arithmetic

CPU = torch.device("cpu")


class Model(nn.Module):
    """Two frozen weights, of which one is not a bfloat16 number, and a trainable one."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.tensor([1.0, 1.001]), requires_grad=False)
        self.trained = nn.Parameter(torch.tensor([1.001]))


def test_frozen_weights_are_rounded_in_the_block_alone() -> None:
    model = Model()
    place = model.frozen.data_ptr()

    def fail_inside() -> None:
        with arithmetic.frozen_in_bf16(model):
            assert model.frozen.dtype == torch.bfloat16
            assert model.frozen.tolist() == [1, 1]
            assert model.trained.dtype == torch.float32
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert model.frozen.data_ptr() == place
    assert model.frozen.tolist() == pytest.approx([1, 1.001])


@pytest.mark.parametrize(
    ("flags", "large", "pays"),
    [
        ("flags : avx2 avx512_bf16", 2, True),
        ("flags : amx_bf16", 2, True),
        ("flags : avx512f", 2, False),  # would emulate it
        ("flags : avx512_bf16", 3, False),  # two frozen weights: too small to gain
    ],
)
def test_bf16_pays_by_a_rule(flags: str, large: int, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "LARGE", large)
    monkeypatch.setattr(arithmetic.Path, "read_text", lambda *_, **__: flags)
    assert arithmetic.bf16_pays(Model()) is pays


@pytest.mark.parametrize(("device", "longest", "fused"), [("cpu", 512, False), ("cpu", 513, True), ("cuda", 160, True)])
def test_plain_attention_is_for_short_rows_on_a_cpu(device: str, longest: int, fused: bool) -> None:
    with arithmetic.fast_kernels(torch.device(device), longest):
        assert math_sdp_enabled()
        assert flash_sdp_enabled() is fused
    assert flash_sdp_enabled()


def test_both_kernels_attend_alike() -> None:
    """With the mask of a tree's row: nothing is seen but ancestors."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 40, 8)
    mask = torch.rand(40, 40).tril() > 0.3
    mask.fill_diagonal_(fill_value=True)
    attend = nn.functional.scaled_dot_product_attention
    fused = attend(q, k, v, attn_mask=mask)
    with arithmetic.fast_kernels(CPU, 40):
        assert torch.allclose(attend(q, k, v, attn_mask=mask), fused, atol=1e-6)
