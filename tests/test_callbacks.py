"""The callbacks of training: what they read from the device, and that no row of train.csv is lost or written twice."""

from __future__ import annotations

import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_module import TRAINER, prepared

from debias.training.callbacks import LossCurve, ShowProgress, StopAfter
from debias.training.fitting import fit
from debias.training.module import Debiaser


def trained(tiny: Path, folder: Path, steps: int) -> None:
    """So many steps of four sentences; five of them are an epoch, which ends with a checkpoint."""
    _, _, module, data = prepared(tiny, steps=steps)
    folder.mkdir(exist_ok=True)
    fit(module, data, TRAINER, folder)


def rows(folder: Path) -> list[list[str]]:
    """All columns but the speed."""
    with (folder / "train.csv").open(newline="") as file:
        return [row[:4] + row[5:] for row in csv.reader(file)][1:]


def steps_of(folder: Path) -> list[int]:
    return [int(row[0]) for row in rows(folder)]


def count_reads(monkeypatch: pytest.MonkeyPatch, *files: str) -> Counter[str]:
    """Which functions of these files read tensors, and so wait for the device, from now on."""
    found: Counter[str] = Counter()
    paths = tuple(f"debias/training/{file}" for file in files)

    def counted(whole: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: torch.Tensor, *more: Any) -> Any:
            code = sys._getframe(1).f_code
            if code.co_filename.endswith(paths):
                found[code.co_qualname] += 1
            return whole(self, *more)

        return read

    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    return found


def test_losses_are_read_every_few_steps(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps: four checkpoints, one look for the terminal, and one flag per step."""
    monkeypatch.setattr(ShowProgress, "every", math.inf)
    found = count_reads(monkeypatch, "callbacks.py")
    trained(tiny, tmp_path, steps=20)
    assert found == {
        "LossCurve._write": 4,
        "ShowProgress.on_train_batch_end": 1,
        "Diverged.on_before_backward": 20,
    }
    assert steps_of(tmp_path) == list(range(1, 21))


def test_a_step_reads_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted at the end is read there. Lightning reads what is logged for a bar, in every step."""
    found, shown = count_reads(monkeypatch, "module.py", "fitting.py"), []
    log = Debiaser.log
    monkeypatch.setattr(Debiaser, "log", lambda *a, **k: shown.append(k.get("prog_bar", False)) or log(*a, **k))
    trained(tiny, tmp_path, steps=3)
    assert found == {"fit": 2}
    assert set(shown) == {False}


def test_between_checkpoints_ten_rows_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve steps and no checkpoint: ten rows, and the last two at the end, with the values of their steps."""

    class Stub:
        """A trainer and its batches."""

        is_global_zero, global_step, current_epoch = True, 0, 0
        input_ids_BT = torch.zeros(2, 3)

        def __init__(self) -> None:
            self.batch = self
            self.param_groups = [{"lr": 0.5}]
            self.optimizers = [self]

        @property
        def callback_metrics(self) -> dict[str, torch.Tensor]:
            return {name: torch.tensor(self.global_step + k) for k, name in enumerate(("loss", "bias_loss", "kl"))}

    trainer: Any = Stub()
    curve = LossCurve(tmp_path / "train.csv")
    curve.on_train_start(trainer, trainer)
    on_disk = []
    for trainer.global_step in range(1, 13):
        curve.on_train_batch_start()
        curve.on_train_batch_end(trainer, trainer, None, trainer, 0)
        on_disk.append(len(rows(tmp_path)))
    curve.on_train_end(trainer, trainer)
    assert on_disk == [0] * 9 + [10] * 3
    assert rows(tmp_path) == [
        [str(k), "0", f"{k}.000000", "5.000e-01", f"{k + 1}.000000", f"{k + 2}.000000"] for k in range(1, 13)
    ]


def fails_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let training fail after a step, in a callback that comes after the loss curve."""
    whole = StopAfter.on_train_batch_end

    def failing(self: StopAfter, trainer: Any, *more: Any, **named: Any) -> None:
        whole(self, trainer, *more, **named)
        if trainer.global_step == step:
            raise ZeroDivisionError

    monkeypatch.setattr(StopAfter, "on_train_batch_end", failing)


def test_a_run_that_fails_has_its_rows(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, 8)
    with pytest.raises(ZeroDivisionError):
        trained(tiny, tmp_path, steps=12)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
def test_processes_that_fail_have_their_rows(tiny: Path, tmp_path: Path) -> None:
    """Two spawned processes with a learning rate that ends in NaN before the first checkpoint."""
    _, _, module, data = prepared(tiny, steps=12)
    module.recipe.lr = 1e30
    with pytest.raises(Exception, match="training diverged") as failure:
        fit(module, data, partial(TRAINER, strategy="ddp", devices=2), tmp_path)
    (step,) = re.findall(r"NaN or inf at step (\d+)", str(failure.value))[:1]
    assert steps_of(tmp_path) == list(range(1, int(step)))
    assert int(step) > 1


@pytest.mark.parametrize("killed", [7, 12])
def test_a_killed_run_keeps_the_rows_of_its_checkpoint_and_repeats_none(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    """Killed two steps after a checkpoint: five rows, or ten. In the end, each of the twelve steps is there once."""
    trained(tiny, tmp_path / "whole", steps=12)
    with monkeypatch.context() as patch:
        fails_at(patch, killed)
        patch.setattr(LossCurve, "on_exception", lambda *_: None)  # nobody tells a process that it is being killed
        with pytest.raises(ZeroDivisionError):
            trained(tiny, tmp_path / "cut", steps=12)
    assert steps_of(tmp_path / "cut") == list(range(1, killed - 1))
    trained(tiny, tmp_path / "cut", steps=12)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_file_without_its_heading_is_begun_anew(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed the first line: of the steps before the checkpoint nothing is known, and the run goes on."""
    with monkeypatch.context() as patch:
        fails_at(patch, 7)
        with pytest.raises(ZeroDivisionError):
            trained(tiny, tmp_path, steps=12)
    curve = tmp_path / "train.csv"
    curve.write_text(curve.read_text().partition("\n")[2])
    trained(tiny, tmp_path, steps=12)
    assert steps_of(tmp_path) == list(range(6, 13))
