"""Config -> the parts of a job: adapter, benchmarks, report settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from debias.cli.config import config_dir, make, options
from debias.records import UserError
from debias.schema import nearest

if TYPE_CHECKING:
    from peft import PeftConfig

    from debias.benchmarks import Benchmark
    from debias.jobs.tracking import Tracker
    from debias.scoring.protocols import Protocol


def make_adapter(cfg: DictConfig) -> PeftConfig:
    """The PEFT config of the adapter to train. PEFT does not know the key `train_head`."""
    from debias.models.adapter import PEFT_TYPES
    from debias.models.targets import PLACES, PREDICTION_HEAD

    if not isinstance(cfg.train_head, bool):
        raise UserError(f"adapter.train_head={cfg.train_head!r} must be true or false")
    of_peft = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "train_head"])
    config = make(of_peft, "adapter", PEFT_TYPES)
    for key in ("target_modules", "feedforward_modules"):
        modules = vars(config).get(key)
        if not modules and modules is not None:
            raise UserError(f"adapter.{key} is empty; name modules, or one of these places: {', '.join(PLACES)}")
        if isinstance(modules, str) and modules not in PLACES and (hint := nearest(modules, list(PLACES))):
            raise UserError(f"adapter.{key}={modules!r} is not a place in the model{hint}; name modules in a list")
    if cfg.train_head:
        config.modules_to_save = [PREDICTION_HEAD]
    return config


def make_benchmarks(cfg: DictConfig) -> list[Benchmark]:
    """The benchmarks of a config. Those that follow `protocol` are repeated for each of `eval.protocols`, if set."""
    other = _of_other_biases(cfg)
    nodes = {name: node for name, node in cfg.eval.items() if name not in ("protocols", "witnesses")}
    # A sweep file may set a key of a benchmark that eval=[...] then leaves out: such a node has no _target_.
    chosen = [node for name, node in nodes.items() if "_target_" in node and name not in other]
    for name, node in nodes.items():
        if name not in options("eval") and "_target_" not in node:
            hint = nearest(f"eval.{name}", [f"eval.{known}" for known in sorted(options("eval"))])
            raise UserError(f"unknown key 'eval.{name}'{hint}; see `debias ls eval`")
    for node in chosen:
        # The default is the targeted bias, which a benchmark need not have. A name that was chosen must be there.
        if isinstance(node.get("whole"), str) and node.whole != cfg.data.bias:
            node.whole = [node.whole]
    if not chosen:
        raise UserError("eval is empty: name at least one benchmark, as in eval=[stereoset]")
    protocols = _protocols(cfg) if cfg.eval.get("protocols") else []
    made: list[Benchmark] = [
        benchmark
        for node in chosen
        for benchmark in (
            [make(node, protocol=protocol) for protocol in protocols]
            if protocols and node.get("protocol") == cfg.protocol
            else [make(node)]
        )
    ]
    name = cfg.eval.pairs.get("name") if "pairs" in cfg.eval else None
    if name != "pairs" and name in options("eval"):
        raise UserError(f"eval.pairs.name={name}: a benchmark has this name; give your pairs another")
    return made


def check_witnesses(cfg: DictConfig, words: Sequence[str]) -> None:
    """Raise UserError for a benchmark that the user names and `eval.witnesses` leaves out: it would not be scored."""
    lists = [word.partition("=")[2].strip("[]") for word in words if word.startswith("eval=[")]
    named = {name.strip() for names in lists for name in names.split(",")}
    if left_out := sorted(named & _of_other_biases(cfg)):
        asked = cfg.eval.witnesses[str(cfg.data.bias)]
        raise UserError(
            f"eval=[...] names {left_out[0]}, which witnesses leaves out of a run about {cfg.data.bias}; "
            f"in place of witnesses, name what you want: {', '.join([*asked, *left_out])}"
        )


def _of_other_biases(cfg: DictConfig) -> set[str]:
    """The benchmarks among `eval.witnesses` that do not ask about the run's bias; none if no benchmark there does."""
    witnesses = cfg.eval.get("witnesses") or {}
    asked = witnesses.get(str(cfg.data.bias))
    return {name for names in witnesses.values() for name in names} - set(asked) if asked else set()


def benchmarks_of(config: dict[str, Any]) -> list[Benchmark]:
    """The benchmarks in a finished run's config. The model is not loaded, so `all` means the protocols of every kind.

    Raises UserError if the config comes from a version with other classes or keys.
    """
    from omegaconf.errors import OmegaConfBaseException

    cfg = OmegaConf.create(config)
    if cfg.eval.get("protocols") == "all":
        cfg.eval.protocols = sorted(options("protocol"))
    try:
        return make_benchmarks(cfg)
    except (UserError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"this version does not know the run's benchmarks ({reason}); run the job again") from error


def _protocols(cfg: DictConfig) -> list[Protocol]:
    """The protocols named by `eval.protocols`, or all that fit the kind of model."""
    known = sorted(options("protocol"))
    names = known if cfg.eval.protocols == "all" else cfg.eval.protocols
    if not OmegaConf.is_list(names) and not isinstance(names, list):
        raise UserError(f"eval.protocols={names!r} must be a list such as [bias_bench,conditional], all or null")
    for name in names:
        if name not in known:
            raise UserError(
                f"eval.protocols: unknown protocol {name!r}{nearest(name, known)}; choose among: {', '.join(known)}"
            )
    files = {name: config_dir() / "protocol" / f"{name}.yaml" for name in names}
    protocols = [make(DictConfig(OmegaConf.load(file)), f"protocol={name}") for name, file in files.items()]
    if cfg.eval.protocols != "all":
        return protocols
    kind = make(cfg.model).tokens().kind
    return [protocol for protocol in protocols if kind in protocol.kinds]


def make_tracker(cfg: DictConfig) -> Tracker:
    """The tracker named by `logger`."""
    from debias.jobs.tracking import Tracker

    return make(cfg.logger) if cfg.get("logger") else Tracker()
