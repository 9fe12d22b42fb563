"""Where a model is moved outside training. The second device is `meta`, or a stand-in: no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from debias.models import placement


def test_of_several_gpus_a_process_uses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun numbers the processes of a machine in LOCAL_RANK; alone it is the first GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert placement.device() == torch.device("cuda", 3)


def test_a_model_is_moved_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the GPU for the block, then back; quantised weights stay where they are (stand-ins)."""
    moves: list[torch.device] = []
    model = SimpleNamespace(device=torch.device("cpu"), to=moves.append)
    monkeypatch.setattr(placement, "device", lambda: torch.device("cuda", 1))
    with placement.placed(model):
        assert moves == [torch.device("cuda", 1)]
    assert moves == [torch.device("cuda", 1), torch.device("cpu")]
    with placement.placed(SimpleNamespace(device=torch.device("cpu"), is_quantized=True)):
        pass


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "lora"])
def test_an_adapter_is_scored_on_the_device_of_its_base(
    adapter: str, small: list[str], debias: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT keeps prompts and prefixes beside the base, not inside it: moving the base alone leaves them behind."""
    devices: set[str] = set()

    def stop(base: Any, adapted: Any, *_: Any) -> None:
        devices.update(parameter.device.type for parameter in adapted.parameters())
        raise KeyboardInterrupt

    monkeypatch.setattr(placement, "device", lambda: torch.device("meta"))
    monkeypatch.setattr("debias.jobs.run.Scorer", stop)
    debias("run", *small, "data.bias=gender", f"adapter={adapter}", "trainer=cpu", "training.epochs=1", "data.n=4")
    assert devices == {"meta"}
