"""A local chat server: llama.cpp inside this process, with the embedded SmolLM2 or any GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from debias import assets
from debias.records import Count, UserError


@dataclass
class LlamaServer:
    """A context manager that starts llama.cpp's OpenAI-compatible server on a free local port and yields its address.

    Args:
        model: a GGUF file, or the name of an asset.
        threads: compute threads; several jobs on few cores work best with one each.
        context: tokens of prompt and answer together, per parallel call.
        parallel: calls computed at the same time.
    """

    model: str
    threads: Count
    context: Count
    parallel: Count
    _server: Any = field(default=None, init=False, compare=False)

    @property
    def tries_out(self) -> bool:
        """Whether it serves the embedded model, which seldom writes what can be used."""
        return self.model in assets.ASSETS

    def __enter__(self) -> str:
        try:
            import xllamacpp
        except ImportError as error:
            raise UserError("llm=local needs a package: python -m pip install xllamacpp==2026.10.11549") from error
        path = assets.locate(self.model) if self.model in assets.ASSETS else Path(self.model).expanduser()
        if not path.is_file():
            raise UserError(f"llm.server.model={self.model} is not a file; name a GGUF file or smollm2")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.hostnames, params.port = ["127.0.0.1"], 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.n_ctx, params.n_parallel = self.context * self.parallel, self.parallel
        params.n_gpu_layers, params.warmup, params.ui, params.verbosity = 0, False, False, -1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UserError(f"llama.cpp cannot serve {path} ({error})") from error
        return f"{self._server.listening_address}/v1"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None  # the destructor stops its threads and closes its port
