"""Config -> the parts of a job: adapter, benchmarks, report settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from debias.cli.config import config_dir, make, nearest, options
from debias.records import UserError

if TYPE_CHECKING:
    from peft import PeftConfig

    from debias.benchmarks import Benchmark
    from debias.report.one_run.report import RunReport
    from debias.scoring.protocols import Protocol


def make_adapter(cfg: DictConfig) -> PeftConfig:
    """The PEFT config of the adapter to train. PEFT does not know the key `train_head`."""
    from debias.models.targets import PREDICTION_HEAD

    of_peft = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "train_head"])
    config = make(of_peft, _convert_="all")  # PEFT wants a list, not a ListConfig
    if cfg.train_head:
        config.modules_to_save = [PREDICTION_HEAD]
    return config


def make_benchmarks(cfg: DictConfig) -> list[Benchmark]:
    """The benchmarks of a config. Those that follow `protocol` are repeated for each of `eval.protocols`, if set."""
    # A sweep file may set a key of a benchmark that eval=[...] then leaves out: such a node has no _target_.
    chosen = [node for name, node in cfg.eval.items() if name != "protocols" and "_target_" in node]
    if not chosen:
        raise UserError("eval is empty: name at least one benchmark, as in eval=[stereoset]")
    if not cfg.eval.get("protocols"):
        return [make(node) for node in chosen]
    protocols = _protocols(cfg)
    return [
        benchmark
        for node in chosen
        for benchmark in (
            [make(node, protocol=protocol) for protocol in protocols]
            if node.get("protocol") == cfg.protocol
            else [make(node)]
        )
    ]


def benchmarks_of(config: dict[str, Any]) -> list[Benchmark]:
    """The benchmarks in a finished run's config. The model is not loaded, so `all` means the protocols of every kind.

    Raises UserError if the config comes from a version with other classes or keys.
    """
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    cfg = OmegaConf.create(config)
    if cfg.eval.get("protocols") == "all":
        cfg.eval.protocols = sorted(options("protocol"))
    try:
        return make_benchmarks(cfg)
    except (InstantiationException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"this version does not know the run's benchmarks ({reason}); run the job again") from error


def _protocols(cfg: DictConfig) -> list[Protocol]:
    """The protocols named by `eval.protocols`, or all that fit the kind of model."""
    known = sorted(options("protocol"))
    names = known if cfg.eval.protocols == "all" else list(cfg.eval.protocols)
    for name in names:
        if name not in known:
            raise UserError(
                f"eval.protocols: unknown protocol {name!r}{nearest(name, known)}; choose among: {', '.join(known)}"
            )
    protocols = [make(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml")) for name in names]
    if cfg.eval.protocols != "all":
        return protocols
    kind = make(cfg.model).tokens().kind
    return [protocol for protocol in protocols if kind in protocol.kinds]


def make_report(cfg: DictConfig) -> RunReport:
    """The settings of a run's report: the bias on top, and when a model counts as broken."""
    from debias.report.one_run.report import RunReport
    from debias.report.outcome import Bounds

    return RunReport(cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio))
