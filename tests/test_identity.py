"""A model's identity is what its tensors hold: not how they are sharded, named on the disk, or when they were read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapter_table import ROWS, base_of, config_of
from safetensors.torch import load_file, save_file
from torch import nn

from debias.jobs.generated_source import Generated
from debias.models import adapter as adapters
from debias.models import adapter_folder
from debias.models.checksums import checksum
from debias.models.identity import content_sha256, tensors_sha256
from debias.models.targets import PREDICTION_HEAD
from debias.records import UserError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def written(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file({key: TENSORS[key] for key in tensors}, folder / f"{name}.safetensors", {"format": "pt"})
    return folder


def test_shards_do_not_matter(tmp_path: Path) -> None:
    whole, sharded = written(tmp_path / "whole", model=["a", "b"]), written(tmp_path / "two", one=["b"], two=["a"])
    assert tensors_sha256(whole) == tensors_sha256(sharded)


def test_a_changed_weight_is_another_model(tmp_path: Path) -> None:
    """Also where the file keeps its name, size and place."""
    folder = written(tmp_path, model=["a", "b"])
    before, stamp = tensors_sha256(folder), (folder / "model.safetensors").stat()
    save_file({**TENSORS, "a": -TENSORS["a"]}, folder / "model.safetensors", {"format": "pt"})
    os.utime(folder / "model.safetensors", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert (folder / "model.safetensors").stat().st_size == stamp.st_size
    assert tensors_sha256(folder) != before


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, model=["a"])
    first = tensors_sha256(folder)
    monkeypatch.setattr("debias.models.identity.mmap.mmap", None)
    assert tensors_sha256(folder) == first


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{")
    with pytest.raises(ValueError, match="truncated or not in safetensors format"):
        tensors_sha256(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checksum_sees_the_smallest_change(dtype: torch.dtype) -> None:
    """One bit of one weight, and two rows that change places; nothing that is not wanted."""
    model = nn.Linear(3, 2).to(dtype)
    before = checksum(model)
    assert checksum(model) == before
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], model.weight[0, 0] + 1)
        assert checksum(model) != before
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], model.weight[0, 0] - 1)
        assert checksum(model) == before
        model.weight.copy_(model.weight.flip(0))
        assert checksum(model) != before
        model.weight.copy_(model.weight.flip(0))
        wanted = checksum(model, lambda p: p is model.weight)
        model.bias += 1
        assert checksum(model, lambda p: p is model.weight) == wanted


def test_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the local cache where the hub cannot be reached; a tokenizer's file that changes is another commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ref = tmp_path / "models--me--tiny" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    first, second = "a" * 40, "b" * 40
    ref.write_text(first)
    assert content_sha256("me/tiny") == f"me/tiny {first}"
    (ref.parent / "dev").write_text(second)
    assert content_sha256("me/tiny", "dev") == f"me/tiny {second}"
    ref.write_text(second)
    assert content_sha256("me/tiny") == f"me/tiny {second}"
    assert content_sha256("me/unknown") == "me/unknown None"


def test_a_generated_set_is_what_it_holds(tmp_path: Path) -> None:
    """Two partial sets of one config differ, and so do two whole ones; a set still to be extended does not count."""
    generated: Any = object.__new__(Generated)
    generated.folder, generated.path, generated.identity = tmp_path, tmp_path / "generated.jsonl", "settings"
    generated.generation, generated._loaded = SimpleNamespace(wanted=SimpleNamespace(n=2)), False
    generated.columns = ""

    def fingerprint(stopped: str | None, *sentences: str) -> str:
        rows = [json.dumps({"sentence": text, "time": len(sentences)}) + "\n" for text in sentences]
        (tmp_path / "generated.jsonl").write_text("".join(rows))
        (tmp_path / "status.json").write_text(json.dumps({"stopped": stopped}))
        return generated.fingerprint()

    none = generated.fingerprint()
    assert fingerprint("interrupted", "A.") == none
    assert len({none, fingerprint("budget", "A."), fingerprint("budget", "B."), fingerprint("n", "A.", "B.")}) == 4
    assert fingerprint("n", "A.", "C.") != fingerprint("n", "A.", "B.")
    assert fingerprint("n", "A.", "B.", "C.") == fingerprint("n", "A.", "B.")  # another run let it grow


def test_figures_of_other_weights_are_not_shown(
    tiny: Path, debias: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """A model that is replaced in its folder, weights or config, is another model; its old scores are not read."""
    model = shutil.copytree(tiny, tmp_path / "model")
    words = ["evaluate", "model=./model", "eval=[crows_pairs]", "eval.crows_pairs.limit=3", "eval.crows_pairs.whole=[]"]

    def scores() -> bytes:
        (folder,) = (tmp_path / "outputs").glob("*/*/metrics.jsonl")
        return (folder.parent / "likelihoods.parquet").read_bytes()

    assert debias(*words)[0] == 0
    first = scores()
    assert "done before" in debias(*words)[1]
    weights = load_file(model / "model.safetensors")
    save_file({k: -v if "wte" in k else v for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"})
    status, _, complaint = debias(*words)
    assert status == 1
    assert "another model" in " ".join(complaint.split())
    assert debias(*words, "overwrite=true")[0] == 0
    second = scores()
    assert second != first
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 10.0}))
    assert debias(*words)[0] == 1
    assert debias(*words, "overwrite=true")[0] == 0
    assert scores() not in (first, second)


@pytest.mark.parametrize("column", ["GPT-2", "BERT"])
@pytest.mark.parametrize("name", [*ROWS, "lora with a head"])
def test_a_removed_adapter_leaves_nothing_behind(name: str, column: str) -> None:
    """Weights that the adapter moved, a trained prediction head above all, are the base's again."""
    base = base_of(column)
    before = checksum(base.model)
    config = config_of(name.partition(" ")[0])
    if name == "lora with a head":
        if column != "BERT":
            return
        config.modules_to_save = [PREDICTION_HEAD]
    try:
        model = adapters.attach(base, config)
    except UserError:  # a cell of the table that is an error
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapters.detach(model)
    assert checksum(base.model) == before


Change = Callable[[Path], object]  # of an adapter's folder


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def changed(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, {"format": "pt"})

    return changed


def configured(**keys: Any) -> Change:
    def changed(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    return changed


BROKEN: dict[str, tuple[Change, str]] = {
    "renamed": (tensors(lambda t: {k.replace("transformer.h", "model.layers"): v for k, v in t.items()}), "lacks"),
    "no prefix": (tensors(lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}), "lacks"),
    "half": (tensors(lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "lacks .*lora_B"),
    "one layer": (tensors(lambda t: {k: v for k, v in t.items() if "h.0" in k}), "lacks .*h.1"),
    "more layers": (tensors(lambda t: t | {k.replace("h.1", "h.2"): v for k, v in t.items()}), "holds unknown .*h.2"),
    "foreign": (tensors(lambda t: {**t, "x": torch.zeros(1)}), "holds unknown x"),
    "zeros": (tensors(lambda t: {k: v * 0 for k, v in t.items()}), "changes nothing"),
    "NaN": (tensors(lambda t: {k: v / 0 for k, v in t.items()}), "NaN or inf"),
    "no scaling": (configured(lora_alpha=0), "changes nothing"),
    "another rank": (configured(r=4), "does not fit .*size mismatch"),
    "another task": (configured(task_type="SEQ_CLS"), "an adapter for SEQ_CLS, not for a language model"),
    "another start": (configured(init_lora_weights="pissa"), "changes the base's own weights.*init_lora_weights=true"),
    "unknown method": (configured(peft_type="SUPER"), "not the config of a PEFT adapter"),
    "no config": (lambda folder: (folder / "adapter_config.json").write_text("{"), "not the config of a PEFT adapter"),
    "a pointer": (
        lambda folder: (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "truncated or not in safetensors format",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
}


@pytest.mark.parametrize("provenance", [True, False], ids=["ours", "plain"])
@pytest.mark.parametrize(("change", "complaint"), BROKEN.values(), ids=BROKEN)
def test_an_adapter_that_would_do_nothing_is_refused(
    change: Change, complaint: str, provenance: bool, tmp_path: Path
) -> None:
    """As it was saved it loads; changed, it is refused in one line, with our own file about its origin or without."""
    folder = saved(tmp_path)
    if not provenance:
        (folder / adapter_folder.PROVENANCE).unlink()
    adapter_folder.load(base_of("GPT-2"), folder)
    change(folder)
    base = base_of("GPT-2")
    before = checksum(base.model)
    with pytest.raises(UserError, match=complaint) as error:
        adapter_folder.load(base, folder)
    assert "\n" not in str(error.value)
    if not any(words in complaint for words in ("own weights", "does not fit")):  # too late to take it off
        assert checksum(base.model) == before


def saved(tmp_path: Path) -> Path:
    base = base_of("GPT-2")
    model = adapters.attach(base, config_of("lora"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    adapter_folder.save(model, base, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_nan_in_the_base_is_said_of_the_base(tmp_path: Path) -> None:
    folder, base = saved(tmp_path), base_of("GPT-2")
    (folder / adapter_folder.PROVENANCE).unlink()
    base.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(UserError, match="the base model 'tiny-GPT-2' is broken: its logits are NaN"):
        adapter_folder.load(base, folder)


@pytest.mark.parametrize("keys", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_cannot_be_switched_off_is_refused_before_it_is_trained(keys: dict[str, Any]) -> None:
    """The base's figures would be those of a changed base."""
    with pytest.raises(UserError, match=r"changes the base's own weights, .* train it with init_lora_weights=true"):
        adapters.attach(base_of("GPT-2"), config_of("lora", **keys))
