"""Downloads show megabytes and the time left, whichever library makes them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_progress import Clock, clock, lines  # noqa: F401 (a fixture)
from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

from debias import assets, progress
from debias.assets.downloads import downloading
from debias.models import base as base_models
from debias.models import embedded
from debias.models.base import BaseModel

MB = 1_000_000


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the innermost stage and the time left, at each report."""
    found: list[str] = []
    show = progress._shown.show

    def noted() -> None:
        show()
        if progress._shown.stages:
            found.append(", ".join(filter(None, [progress._shown.stages[-1].words(0), progress._shown.left()])))

    monkeypatch.setattr(progress._shown, "show", noted)
    return found


def test_one_file_of_a_hub(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """500 MB at 5 MB/s, in parts of 10 MB: a line every half minute, that is every 150 MB."""
    with progress.stage("load the model", said=True), downloading("gpt2") as download:
        bars = download.tqdm_class()
        with bars(desc="model.safetensors", total=500 * MB, initial=0, unit="B", unit_scale=True) as one:
            for _ in range(50):
                clock.now += 2
                one.update(10 * MB)
        assert [stage.label for stage in progress._shown.stages] == ["load the model"]
    assert lines(caplog) == [
        "load the model: begins",
        "downloading gpt2, MB 150/500, 70 s left",
        "downloading gpt2, MB 300/500, 40 s left",
        "downloading gpt2, MB 450/500, 10 s left",
        "load the model: done in 2 min",
    ]


def test_several_files_of_a_hub(clock: Clock, seen: list[str]) -> None:  # noqa: F811
    """As huggingface_hub does it: two bars of bytes, whose total grows with each file, and one of the files."""
    with downloading("big") as download:
        bars = download.tqdm_class()
        received, written = (bars(desc=desc, total=0, initial=0, unit="B", unit_scale=True) for desc in "rw")
        with bars(total=2, desc="Fetching 2 files") as files:
            for size in (30 * MB, 10 * MB):
                received.total += size
                written.total += size
                written.refresh()
            for _ in range(4):
                clock.now += 1
                received.update(10 * MB)
                written.update(10 * MB)
            files.update(2)
        received.set_description_str("Download complete")
        written.set_description("Reconstruction complete")
    assert not progress._shown.stages
    assert seen[-2:] == ["downloading big, MB 20/40, 2 s left", "downloading big, MB 30/40, 1 s left"]


def test_small_files_are_not_shown(seen: list[str]) -> None:
    with downloading("gpt2") as download:
        with download.tqdm_class()(total=600, unit="B") as one:
            one.update(600)
        assert download.came
    assert not seen


def test_a_model_of_the_hub_is_loaded_with_our_bar(
    tiny: Path, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stands in for transformers': it makes the bar that huggingface_hub makes, then loads from a folder."""

    class Loader:
        @staticmethod
        def from_pretrained(name: str, tqdm_class: type, **options: Any) -> Any:
            assert name == "owner/model"
            with tqdm_class(total=4 * MB, unit="B", desc="model.safetensors") as one:
                one.update(3 * MB)
                one.update(1 * MB)
            return AutoModelForCausalLM.from_pretrained(tiny, **{**options, "revision": None})

    tokens = BaseModel(str(tiny)).tokens()
    monkeypatch.setattr(BaseModel, "tokens", lambda _: tokens)
    monkeypatch.setattr(base_models, "_files", lambda *_: tiny)
    monkeypatch.setitem(base_models.LOADERS, "causal", Loader)
    assert BaseModel("owner/model").load().name == "owner/model"
    assert seen[-1].startswith("downloading owner/model, MB 3/4, ")


def test_a_conversion_has_our_bar_in_place_of_the_librarys(seen: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with embedded._own_bar("converting x, tensors"):
        assert list(modeling_gguf_pytorch_utils.tqdm([7, 8], desc="Converting and de-quantizing GGUF tensors")) == [
            7,
            8,
        ]
    assert [words.partition(",")[2].split(", ")[0] for words in seen] == [
        " tensors 0/2",
        " tensors 1/2",
        " tensors 2/2",
    ]
    assert capsys.readouterr().err == ""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a file of 3 MB, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(3 * MB))
            self.end_headers()
            self.wfile.write(bytes(3 * MB))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/zeros.bin"
        server.shutdown()


def test_a_file_of_the_web(site: str, tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    assert assets.download(site, name="zeros.bin").stat().st_size == 3 * MB
    counts = [words.partition(", MB ")[2].partition(",")[0] for words in seen if words.endswith(" left")]
    assert len(counts) in (29, 30, 31)  # pooch reports each 1,024 bytes
    assert list(dict.fromkeys(counts)) == ["0/3", "1/3", "2/3", "3/3"]
    assert not progress._shown.stages
    seen.clear()
    assets.download(site, name="zeros.bin")  # is here
    assert not seen
