"""One model divided among two processes (`trainer=fsdp`): the same losses and adapters as in one process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import FORKED
from peft import get_peft_model
from safetensors.torch import load_file
from test_config import composed
from test_stage import TRAINER, losses, trained, tuning, twenty
from torch import nn
from zoo import build

from debias.cli.build import make_adapter
from debias.models.base import BaseModel
from debias.models.targets import layers
from debias.records import UserError, Watch
from debias.training import module as training
from debias.training import sharding
from debias.training.callbacks import LossCurve
from debias.training.gate import Gate
from debias.training.module import make_trainer
from debias.training.stage import Tuning, train

ADAPTERS = ("lora", "dora", "ia3", "vera", "bottleneck", "prefix", "prompt", "ln_tuning")
DIVIDED: dict[str, Any] = {"make": partial(TRAINER, strategy="fsdp", devices=2), "batch_size": 2, "num_neutral": 1}


def with_adapter(name: str, plan: Tuning) -> Tuning:
    return plan._replace(adapter=make_adapter(composed("run", f"adapter={name}").adapter))


def share(tiny: Path, folder: Path, plan: Tuning) -> None:
    """One process's part in a training; the first one saves."""
    folder.mkdir(exist_ok=True)
    train(plan, twenty(), BaseModel(str(tiny)).load(), folder, folder / "adapter")


def in_two_processes(work: Callable[[Path, Path], None], tiny: Path, folder: Path) -> None:
    """Call `work` in two processes that find the environment torchrun would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _launched, (port, work, tiny, folder), nprocs=2, start_method=FORKED.get_start_method()
    )


def _launched(rank: int, port: int, work: Callable[[Path, Path], None], tiny: Path, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    torch.set_num_threads(1)
    work(tiny, folder)


def same(alone: Path, divided: Path) -> None:
    """Losses and adapters agree within float error, which Adam amplifies where gradients are small."""
    one, two = ([float(loss) for _, loss in losses(folder)] for folder in (alone, divided))
    assert two == pytest.approx(one, abs=2e-5)
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (alone, divided))
    assert all(torch.allclose(tensor, second[name], atol=1e-4) for name, tensor in first.items())


def every_adapter(tiny: Path, folder: Path) -> None:
    for name in ADAPTERS:
        share(tiny, folder / name, with_adapter(name, tuning(**DIVIDED)))


@pytest.mark.slow
def test_every_adapter_trains_divided_as_whole(tiny: Path, tmp_path: Path) -> None:
    in_two_processes(every_adapter, tiny, tmp_path)
    for name in ADAPTERS:
        trained(tiny, tmp_path / f"{name}-alone", with_adapter(name, tuning()))
        same(tmp_path / f"{name}-alone", tmp_path / name)


def cut_and_resumed(tiny: Path, folder: Path) -> None:
    start = LossCurve.on_train_batch_start

    def asked(self: LossCurve, trainer: Any, *more: Any, **named: Any) -> None:
        start(self, trainer, *more, **named)
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    share(tiny, folder / "whole", tuning(**DIVIDED))
    LossCurve.on_train_batch_start = asked  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        share(tiny, folder / "cut", tuning(**DIVIDED))
    LossCurve.on_train_batch_start = start  # type: ignore[method-assign]
    share(tiny, folder / "cut", tuning(**DIVIDED))
    check = Gate.check
    Gate.check = lambda *_: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    with contextlib.suppress(ZeroDivisionError):  # the first process checks alone
        share(tiny, folder / "in_the_gate", tuning(**DIVIDED))
    Gate.check = check  # type: ignore[method-assign]
    share(tiny, folder / "in_the_gate", tuning(**DIVIDED))
    share(tiny, folder / "watched", tuning(**DIVIDED, watch=Watch(every=4, limit=4, stop_at=None)))


def diverging(tiny: Path, folder: Path) -> None:
    step = training.Debiaser.training_step

    def diverges(self: Any, batch: Any) -> torch.Tensor:
        return step(self, batch) * (float("nan") if self.global_step == 5 and self.global_rank == 1 else 1.0)

    training.Debiaser.training_step = diverges  # type: ignore[method-assign]
    with pytest.raises(UserError, match="at step 6: training diverged"):
        share(tiny, folder, tuning(**DIVIDED))
    training.Debiaser.training_step = step  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"adalora compares ranks .* use trainer=ddp"):
        share(tiny, folder / "adalora", with_adapter("adalora", tuning(**DIVIDED)))


def all_of_it(tiny: Path, folder: Path) -> None:
    cut_and_resumed(tiny, folder)
    diverging(tiny, folder / "diverging")


@pytest.fixture(scope="module")
def divided(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the trainings above; two processes start once for all of them."""
    folder = tmp_path_factory.mktemp("divided")
    in_two_processes(all_of_it, tiny, folder)
    return folder


def test_a_divided_model_trains_as_a_whole_one_resumes_exactly_and_can_be_watched(tiny: Path, divided: Path) -> None:
    """Two processes with 2 sentences and 1 neutral text each, one with 4 and 2: ten steps that agree.

    SIGTERM in the eighth, or a kill in the gate: the same losses and the same adapter, bit for bit; looks at dev change
    nothing.
    """
    trained(tiny, divided / "alone", tuning())
    same(divided / "alone", divided / "whole")
    assert len(losses(divided / "whole")) == 10
    runs = ("whole", "cut", "in_the_gate", "watched")
    files = [divided / run / "adapter" / "adapter_model.safetensors" for run in runs]
    for run, file in zip(runs[1:], files[1:], strict=True):
        assert losses(divided / run) == losses(divided / "whole")
        assert all(torch.equal(load_file(files[0])[key], tensor) for key, tensor in load_file(file).items())


def test_what_cannot_go_on_ends_in_all_processes(divided: Path) -> None:
    """One process diverges: both stop at that step, and the first has kept the last good adapter."""
    kept = load_file(divided / "diverging" / "adapter.before_divergence" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (divided / "diverging" / "adapter").exists()


def test_without_a_launcher_it_says_how_to_start() -> None:
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2 -m debias run trainer=fsdp"):
        make_trainer(strategy="fsdp", accelerator="cpu", logger=False)


@pytest.mark.parametrize(("rank", "aside"), [("0", "cpu"), ("1", "meta")])
def test_the_whole_base_leaves_the_device_layer_by_layer(
    rank: str, aside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training a device holds shards alone. The first process keeps the whole in host memory, the others nothing."""
    monkeypatch.setenv("RANK", rank)
    whole = get_peft_model(build("llama"), make_adapter(composed("run", "adapter=lora").adapter))
    expected = {name: weight.clone() for name, weight in whole.state_dict().items()}
    originals = [layer for _, layer in layers(whole.get_base_model())]
    gone: list[int] = []  # layers that have left, whenever something is sharded

    def shard(module: nn.Module, mesh: None) -> None:
        assert {p.device.type for p in module.parameters()} == {"cpu"}
        gone.append(sum(p.device.type == "meta" for layer in originals for p in layer.parameters()))

    monkeypatch.setattr(sharding, "fully_shard", shard)
    shards = sharding.sharded(whole, None)  # type: ignore[arg-type]
    each = sum(1 for _ in originals[0].parameters())
    assert gone == ([0, 0, 0] if aside == "cpu" else [0, each, 2 * each])
    assert {weight.device.type for weight in whole.state_dict().values()} == {aside}
    assert all(torch.equal(weight, expected[name]) for name, weight in shards.state_dict().items())
    own = {p.data_ptr() for p in shards.parameters()}
    assert not own & {p.data_ptr() for p in whole.parameters() if p.device.type == "cpu"}


def test_the_whole_model_goes_back_to_where_its_shards_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and scoring must not run on the CPU beside an idle GPU; `meta` stands in for that."""
    whole = get_peft_model(build("llama"), make_adapter(composed("run", "adapter=lora").adapter))
    monkeypatch.setattr(sharding, "get_model_state_dict", lambda *_, **__: whole.state_dict())
    shards: Any = SimpleNamespace(parameters=lambda: iter([torch.empty(1, device="meta")]))
    assert {p.device.type for p in sharding.gathered(shards, whole).parameters()} == {"meta"}
