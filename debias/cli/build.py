"""Config nodes -> the parts of a job: an adapter, benchmarks, what a report is about."""

from __future__ import annotations

from typing import Any

from debias.cli.config import config_dir, make, nearest, options
from debias.records import UserError


def make_adapter(cfg: Any) -> Any:
    """The PEFT config of the adapter to train; `train_head` is the one key that PEFT does not know."""
    from omegaconf import OmegaConf

    from debias.models.targets import PREDICTION_HEAD

    of_peft = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "train_head"])
    config = make(of_peft, _convert_="all")  # PEFT wants a list, not a ListConfig
    if cfg.train_head:
        config.modules_to_save = [PREDICTION_HEAD]
    return config


def make_benchmarks(cfg: Any) -> list[Any]:
    """The benchmarks of a config, those that follow `protocol` under each of `eval.protocols` where that is set."""
    # A sweep's file may set a key of a benchmark that eval=[...] leaves out.
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


def benchmarks_of(config: dict[str, Any]) -> list[Any]:
    """The benchmarks that a finished run's config names; `all` protocols are those of every kind of model.

    Raises UserError for a config of another version, with classes or keys that there are no more.
    """
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cfg = OmegaConf.create(config)
    if cfg.eval.get("protocols") == "all":
        cfg.eval.protocols = sorted(options("protocol"))
    try:
        return make_benchmarks(cfg)
    except (InstantiationException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the run's benchmarks are not those of this version ({reason}); run the job again") from error


def _protocols(cfg: Any) -> list[Any]:
    """The protocols that `eval.protocols` names, or all that can read the model."""
    from omegaconf import OmegaConf

    known = sorted(options("protocol"))
    names = known if cfg.eval.protocols == "all" else list(cfg.eval.protocols)
    for name in names:
        if name not in known:
            raise UserError(
                f"eval.protocols: there is no {name!r}{nearest(name, known)}; choose of: {', '.join(known)}"
            )
    protocols = [make(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml")) for name in names]
    if cfg.eval.protocols != "all":
        return protocols
    kind = make(cfg.model).tokens().kind
    return [protocol for protocol in protocols if kind in protocol.kinds]


def make_report(cfg: Any) -> Any:
    """What a run's report is about: the bias on top, and when a model counts as broken."""
    from debias.report.one_run.report import RunReport
    from debias.report.outcome import Bounds

    return RunReport(cfg.data.bias, Bounds(cfg.outcome.max_lms_drop, cfg.outcome.max_perplexity_ratio))
