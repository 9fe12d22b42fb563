"""benchmarks/gpu.py and its parts, and the scripts of `make speed` where the model is not on the CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from debias.records import Span
from debias.scoring.layouts import padded, prefix_tree

ROOT = Path(__file__).resolve().parents[1]
LINE = '{"part": "score", "model": "tiny", "way": "padded, 64", "ms": 0.5, "of_peak": 0.46, "ss": 60.57}'


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def gpu() -> Any:
    return importlib.import_module("gpu")


def carried_out(gpu: Any, parts: list[Any], minutes: float = 1) -> tuple[bool, list[dict[str, Any]]]:
    """Parts whose words are a shell script."""
    lines: list[dict[str, Any]] = []
    well = gpu.carry_out(parts, lambda part: ["sh", "-c", *part.words], lambda _: os.environ, minutes, lines.append)
    return well, lines


def ends(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["name"]: line["ended"] for line in lines if line["part"] == "end"}


# ---------------------------------------------------------------- the plan


def test_the_rows_that_matter_come_first(gpu: Any, tmp_path: Path) -> None:
    names = [part.name for part in gpu.plan(tmp_path)]
    assert names[:6] == ["make 8b", "run 8b", "make tiny", "checks", "score 8b", "train 8b"]
    assert [name for name in names if name.startswith("cpu")] == names[-3:]


@pytest.mark.parametrize(("tiny", "on_gpu"), [(False, True), (False, False), (True, False)])
def test_every_part_comes_behind_what_it_needs(gpu: Any, tmp_path: Path, tiny: bool, on_gpu: bool) -> None:
    before: set[str] = set()
    for part in gpu.plan(tmp_path, tiny, on_gpu):
        assert before.issuperset(part.needs)
        before.add(part.name)


def test_without_a_gpu_the_parts_of_the_cpu_are_left(gpu: Any, tmp_path: Path) -> None:
    names = [part.name for part in gpu.plan(tmp_path, gpu=False)]
    assert names == ["make smollm2", "cpu score smollm2", "cpu train smollm2", "cpu run smollm2"]


def test_only_makes_what_it_needs(gpu: Any, tmp_path: Path) -> None:
    parts = gpu.plan(tmp_path)
    assert [part.name for part in gpu.chosen(parts, "train 1b")] == ["make 1b", "train 1b"]
    assert [part.name for part in gpu.chosen(parts, "rerun 8b")] == ["make 8b", "run 8b", "rerun 8b"]


def test_a_second_run_reads_the_first_ones_cache_and_no_other_part_does(gpu: Any, tmp_path: Path) -> None:
    parts = {part.name: part for part in gpu.plan(tmp_path)}
    caches = {name: gpu._environment(part, tmp_path)["DEBIAS_CACHE"] for name, part in parts.items()}
    assert caches["rerun 8b"] == caches["run 8b"]
    assert len(set(caches.values())) == len(parts) - 2


def test_the_cpus_parts_do_not_see_the_gpu(gpu: Any, tmp_path: Path) -> None:
    hidden = {p.name for p in gpu.plan(tmp_path) if gpu._environment(p, tmp_path).get("CUDA_VISIBLE_DEVICES") == ""}
    assert hidden == {"cpu score smollm2", "cpu train smollm2", "cpu run smollm2"}


# ---------------------------------------------------------------- carrying it out


class _Impatient(subprocess.Popen):
    """Its limit is over once the process has stopped itself, which needs no clock."""

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None or "STOP" not in str(self.args):
            return super().wait(timeout)
        os.waitpid(self.pid, os.WUNTRACED)
        raise subprocess.TimeoutExpired(self.args, timeout)


def test_a_part_that_takes_too_long_is_stopped_and_the_next_begins(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.subprocess, "Popen", _Impatient)
    endless = gpu.Part("endless", (f"echo '{LINE}'; kill -STOP $$",), limit=30.0)
    well, lines = carried_out(gpu, [endless, gpu.Part("next", ("true",), 30.0)])
    assert not well
    assert ends(lines) == {"endless": "stopped", "next": "well"}
    assert lines[0]["ms"] == 0.5  # what it had measured
    assert lines[1]["reason"] == "it took more than 30 s"


def test_a_failure_is_told_and_what_needs_it_is_left_out(gpu: Any) -> None:
    parts = [
        gpu.Part("make", ("echo no space >&2; exit 3",), 60.0),
        gpu.Part("score", (f"echo '{LINE}'",), 60.0, needs=("make",)),
        gpu.Part("other", (f"echo noise; echo '{LINE}'; echo '{LINE[:20]}'",), 60.0),
    ]
    well, lines = carried_out(gpu, parts)
    assert not well
    assert ends(lines) == {"make": "failed", "score": "left out", "other": "well"}
    assert lines[0]["reason"] == "status 3: no space"
    assert [line["part"] for line in lines] == ["end", "end", "score", "end"]  # neither noise nor half a line


def test_no_part_begins_without_time_and_that_is_not_a_failure(gpu: Any) -> None:
    well, lines = carried_out(gpu, [gpu.Part("late", ("exit 1",), 60.0)], minutes=0)
    assert well
    assert ends(lines) == {"late": "left out"}


# ---------------------------------------------------------------- tables


def test_the_tables_of_given_lines(gpu: Any) -> None:
    lines = [
        json.loads(LINE) | {"device": "H200", "precision": "bf16", "sentences": 48},
        {"part": "train", "model": "1b", "way": "debias", "error": "OutOfMemoryError: a | b"},
        {"part": "run", "model": "8b", "cache": "empty", "seconds": 118.0, "stages": {"load": 9.6, "train": 40.2}},
        {"part": "note", "text": "not installed"},
        {"part": "end", "name": "run 8b", "ended": "well", "reason": "", "seconds": 120},
        {"part": "end", "name": "make 1b", "ended": "stopped", "reason": "it took more than 60 s", "seconds": 60},
    ]
    text = gpu.tables(lines)
    assert "| H200 | tiny | bf16 | padded, 64 | 48 | 0.5 | 46% |  | 60.57 |  |" in text
    assert "|  | 1b | debias |  |  |  | OutOfMemoryError: a \\| b |  |  |" in text
    assert "|  | 8b |  | empty | 118.0 | load 10, train 40 |  |  |  |" in text
    assert text.endswith("- note: text not installed\n- make 1b: stopped (it took more than 60 s)")
    assert text.index("as a whole") < text.index("Scoring") < text.index("One epoch")


def test_the_command_prints_the_tables_of_an_old_file(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.jsonl").write_text(f"# a comment\n{LINE}\n")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--table", str(tmp_path / "old.jsonl")])
    gpu.main()
    assert "| tiny |  | padded, 64 |  | 0.5 | 46% |" in capsys.readouterr().out


# ---------------------------------------------------------------- the parts


def test_operations_by_hand() -> None:
    parts = importlib.import_module("gpu_parts")
    # A body of 10 weights at 5 positions and a head of 6 at 3 of them: 50 + 18 products, each with its addition.
    assert parts.operations(10, 6, positions=5, scored=3) == 136
    # `1 2 3` and `1 2 4`, all but the first token scored: alone both read `1 2`; as a tree they share it.
    spans = [Span((1, 2, 3), 1), Span((1, 2, 4), 1)]
    assert parts.read_alone(spans) == (4, 4)
    assert parts.read_by(padded, spans, 512) == (4, 4)
    assert parts.read_by(prefix_tree, spans, 512) == (2, 2)


def test_embeddings_multiply_nothing_and_the_output_layer_is_counted_apart() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    parts = importlib.import_module("gpu_parts")
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # queries, keys and values, output, feed-forward
    assert parts.weights(LlamaForCausalLM(config)) == (2 * layer, 50 * 8)


def test_the_outcome_of_a_run_is_its_last_paragraph_before_the_files() -> None:
    parts = importlib.import_module("gpu_parts")
    assert parts.outcome("a table\n\nSS fell\nby 3.\n\npage: x.html\n\nnext: debias evaluate\n") == "SS fell by 3."
    assert parts.outcome("") == ""


def test_a_check_tells_a_refusal_from_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = importlib.import_module("gpu_parts")
    monkeypatch.setattr(parts, "failed", [])
    parts._check("refused", "no_key=1")
    assert not parts.failed
    monkeypatch.setattr("debias.cli.main", lambda: 1 / 0)
    parts._check("broken")
    assert parts.failed == ["broken"]
    refused, broken = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert refused["ended"] == "refused, status 1"
    assert "no_key" in refused["message"]
    assert broken["ended"] == "failed"
    assert broken["message"] == "ZeroDivisionError: division by zero"


# ---------------------------------------------------------------- roofline


def test_the_roofline_by_hand() -> None:
    roofline = importlib.import_module("roofline")
    assert round(roofline.ridge(roofline.H200)) == 163  # 783 / 4.8: two operations for two bytes
    # Width 2, feed-forward 3, keys 1: 4 + 2 + 2 + 4 in attention and 3 x 6 behind it, in two layers.
    model = roofline.Model(2, 3, 2, 1, 5)
    assert (model.body, model.head) == (2 * 30, 10)
    assert model.adapter == 2 * 8 * (4 + 3 + 3 + 4 + 5 + 5 + 5)
    # At 1 operation and 1 byte a second: 10 positions x 60 weights, forward and back; the head at 4, the base's at 3.
    machine, steps = roofline.Machine(1, 1, 2), {"step": (10, 4, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "STEPS", steps)
        assert roofline.step(model, machine, "step") == (2 * (2 * 600 + 2 * 40 + 30), 2 * 70 * 2)
    large = roofline.LARGE
    assert large.body + 2 * large.head == 70_552_387_584  # Llama 3 70B has 70,553,706,496 with its norms
    assert (2 * large.layers + 1) * large.width == 70_553_706_496 - 70_552_387_584


# ---------------------------------------------------------------- make speed


class _Elsewhere(Exception):
    """Where the input of a model was."""


def _model_on(device: str) -> Any:
    """A model that only tells where its input is."""

    class Model(SimpleNamespace):
        def __call__(self, ids: torch.Tensor) -> None:
            raise _Elsewhere(ids.device.type)

    return Model(device=torch.device(device))


def test_the_scripts_of_make_speed_give_a_model_its_input_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    scoring, harness = (importlib.import_module(name) for name in ("scoring", "harness"))
    base = SimpleNamespace(model=_model_on("meta"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, _: model)
    monkeypatch.setattr(harness, "BaseModel", lambda *_, **__: SimpleNamespace(load=lambda: base))
    with pytest.raises(_Elsewhere, match="meta"):
        scoring.one_by_one(base.model, torch.ones(3), [1, 2])
    with pytest.raises(_Elsewhere, match="meta"):
        harness.loaded("32")


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--folder", str(tmp_path), "--minutes", "30"]
    done = subprocess.run([*command, "--out", str(tmp_path / "gpu.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert set(ends(lines).values()) == {"well"}
    assert {"run", "check", "score", "train"} <= {line["part"] for line in lines}
    assert not [line for line in lines if "error" in line]
