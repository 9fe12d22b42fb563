"""Trackers: what an offline run of Weights & Biases recorded, read back; resumed, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from debias.jobs import tracking
from debias.records import Figure
from debias.results import read_figures
from debias.training import callbacks

pytest.importorskip("wandb")
Run = Callable[..., tuple[int, str, str]]
KEY = "5ecre7" * 6 + "5ecr"  # 40 characters, as W&B's keys are


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def quick(small: list[str]) -> list[str]:
    """12 steps in two epochs, and a few sentences of StereoSet."""
    return [*(w for w in small if not w.startswith(("eval.crows", "eval.perp"))), "eval=[stereoset]"]


def records(folder: Path) -> list[dict[str, Any]]:
    """What `wandb leet inspect` reads in the only offline run below a folder."""
    (path,) = folder.rglob("*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [json.loads(line) for line in shown.splitlines()]


def of_type(found: list[dict[str, Any]], name: str) -> list[Any]:
    return [record[name] for record in found if record["type"] == name]


def test_an_offline_run_read_back_after_an_interruption(
    debias: Run, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at step 9 of 12, resumed from the checkpoint at step 6: one run, with each step's loss once."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    words = ["run", *quick, "logger=wandb", "logger.mode=offline", "name=told"]
    write = callbacks.LossCurve.on_train_batch_end

    def interrupted(self: Any, trainer: Any, *rest: Any, **named: Any) -> None:
        write(self, trainer, *rest, **named)
        if trainer.global_step == 9:
            raise RuntimeError("power cut")

    monkeypatch.setattr(callbacks.LossCurve, "on_train_batch_end", interrupted)
    with pytest.raises(RuntimeError):
        debias(*words)
    monkeypatch.setattr(callbacks.LossCurve, "on_train_batch_end", write)
    assert debias(*words)[0] == 0

    found = records(tmp_path / "outputs")
    (begun,) = of_type(found, "run")
    assert begun["config"]["update"]["training"]["lr"] == 0.01  # plain values
    assert begun["run_group"] == "told"
    assert {"adapter=lora", "data=targeted", "objective=auto"} <= set(begun["tags"])
    assert [end["exit_code"] for end in of_type(found, "exit")] == [0]  # finished
    history = [item["item"] for item in of_type(found, "history")]
    assert [h["trainer/global_step"] for h in history if "loss" in h] == list(range(12))
    summary = {k: v for update in of_type(found, "summary") for k, v in update["update"].items()}
    (status,) = tmp_path.rglob("status.json")
    by = {(f.benchmark, f.bias, f.metric, f.model): f for f in read_figures(status.parent)}
    ss = by["stereoset", "gender", "SS", "debiased"]
    assert [summary[f"headline/SS/debiased{end}"] for end in ("", "_low", "_high")] == [ss.value, ss.ci_low, ss.ci_high]
    assert summary["headline/text"].startswith("StereoSet gender preference")
    assert len([name for name in summary if name.startswith("headline/")]) == 2 + 3 * 9  # SS, LMS, ICAT; no perplexity
    # The rest: the last values of the curves, four tables and pages, and W&B's own.
    curves = {"loss", "epoch_loss", "bias_loss", "kl", "epoch", "trainer/global_step"}
    tables = ("figures", "most_changed", "least_changed", "report")
    rest = {k.partition(".")[0] for k in summary if not k.startswith(("headline/", "_"))} - curves
    assert rest <= set(tables), rest
    assert {h for item in history for h in item} >= {"figures.nrows", "most_changed.nrows", "report.path"}
    (adapter,) = [a for a in of_type(found, "artifact") if a["type"] == "adapter"]
    assert "adapter_model.safetensors" in {c["path"] for c in adapter["manifest"]["contents"]}

    leaking = [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert not leaking


def test_tensorboard(debias: Run, quick: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert debias("run", *quick, "logger=tensorboard")[0] == 0
    (folder,) = tmp_path.rglob("tensorboard")
    events = EventAccumulator(str(folder)).Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(12))
    scalars = set(events.Tags()["scalars"])
    assert "headline/SS/debiased" in scalars
    assert len([name for name in scalars if name.startswith("headline/")]) == 3 * 9  # SS, LMS, ICAT; no perplexity
    others = {name for name in scalars if not name.startswith("headline/")}
    assert others == {"loss", "epoch_loss", "bias_loss", "kl", "epoch"}


def test_a_tracker_that_is_not_installed(debias: Run, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, error = debias("run", *quick, "logger=wandb")
    assert status == 1
    assert error.endswith(
        "error: logger=wandb needs a package that is not installed: python -m pip install 'debias[wandb]'\n"
    )


def test_mode_follows_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not tracking.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not tracking.has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking.has_key()


@pytest.mark.parametrize(
    ("said", "meant"), [("dryrun", "offline"), ("run", "online"), ("disabled", "disabled"), ("offline", "offline")]
)
def test_a_mode_is_what_it_stands_for(monkeypatch: pytest.MonkeyPatch, said: str, meant: str) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    assert tracking.WeightsAndBiases().mode == meant
    assert tracking.WeightsAndBiases(mode="offline").mode == "offline"


@pytest.mark.parametrize(
    ("mode", "project", "said"),
    [
        ("ofline", "debias", "WANDB_MODE=ofline is unknown; choose online, offline or disabled"),
        ("offline", "a/b", "logger.project='a/b' cannot be a project's name"),
    ],
)
def test_settings_are_refused_before_training(
    debias: Run, quick: list[str], monkeypatch: pytest.MonkeyPatch, mode: str, project: str, said: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    status, _, error = debias("run", *quick, "logger=wandb", f"logger.project={project}")
    assert status == 1
    assert said in error.splitlines()[-1]
    assert "training" not in error


def test_a_folder_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_DIR", "/proc/nobody")
    assert tracking._place(tmp_path) == tmp_path
    assert "WANDB_DIR=/proc/nobody cannot be written to" in caplog.text
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "own"))
    assert tracking._place(tmp_path) == tmp_path / "own"


def test_a_run_is_the_same_for_every_attempt_and_no_other() -> None:
    def id_of(folder: str, config: str) -> str:
        identity = {"config_sha256": config, "code_sha256": "c"}
        return tracking.Tracked(Path(folder), folder.split("/")[-2], {}, identity, [], "gender").id

    assert id_of("a/b", "1") == id_of("/elsewhere/a/b", "1")
    assert len({id_of("a/b", "1"), id_of("a/c", "1"), id_of("x/b", "1"), id_of("a/b", "2")}) == 4


def test_a_run_is_called_like_its_folder() -> None:
    def name_of(folder: str, group: str) -> str:
        return tracking.Tracked(Path(folder), group, {}, {}, [], "gender").name

    assert name_of("/x/outputs/mine", "mine") == "mine"
    assert name_of("/x/outputs/a/b", "a/b") == "a/b"
    assert name_of("/x/outputs/mine/data-cda+seed-1", "mine") == "mine/data-cda+seed-1"


def test_figures_have_their_intervals() -> None:
    figure = Figure("stereoset", "p", "gender", "SS", "base", 60.0, 58.0, 62.0, 100, 50)
    assert tracking.headline_values([figure], "gender") == {
        "headline/SS/base": 60.0, "headline/SS/base_low": 58.0, "headline/SS/base_high": 62.0,
    }  # fmt: skip
