"""The jobs on training data: have a chat model write it, and examine files of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from debias.cli.config import make
from debias.cli.terminal import console, logging_to, shown
from debias.records import UserError, checked

log = logging.getLogger(__name__)


def generate_job(cfg: Any) -> int:
    """Have a chat model write triplets; returns 3 when money, patience or server ended it, 4 when a batch is out."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from debias.generation.exchange import LLM
    from debias.generation.wanted import BESIDE, Wanted
    from debias.jobs import generate as dataset
    from debias.report.one_run import generated_set as report
    from debias.results import code_sha256, text_sha256

    OmegaConf.resolve(cfg)
    llm, wanted = checked(LLM, cfg, "llm"), checked(Wanted, cfg, "generate")
    generation = dataset.Generation(
        name=cfg.name,
        llm=llm,
        server=make(cfg.llm.server) if cfg.llm.server else None,
        strategy=make(cfg.strategy, _convert_="all"),
        wanted=wanted,
        biases=dataset.biases(list(cfg.bias) if OmegaConf.is_list(cfg.bias) else str(cfg.bias)),
        seed=cfg.seed,
    )
    output = Path(HydraConfig.get().runtime.output_dir)
    if not generation.strategy.biased and any(w.startswith("bias=") for w in HydraConfig.get().overrides.task):
        raise UserError(f"strategy={generation.strategy.name} chooses the biases by itself: leave bias out")
    if wanted.dry_run:
        with contextlib.suppress(OSError):  # nothing is written: Hydra's empty folders go, too
            for path in (output, *list(output.parents)[:2]):
                path.rmdir()
        console.print(report.estimate(dataset.estimate(generation, output / dataset.LEDGER)), highlight=False)
        return 0
    same = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("name", "overwrite", "threads")])
    for section, names in BESIDE.items():
        same[section] = OmegaConf.masked_copy(same[section], [key for key in same[section] if key not in names])
    identity = {"config_sha256": text_sha256(OmegaConf.to_yaml(same)), "code_sha256": code_sha256()}
    folder = dataset.DataFolder(output, OmegaConf.to_yaml(cfg), identity)
    with folder.claim(cfg.overwrite):
        folder.start()
        with logging_to(folder.path / "run.log"):
            try:
                if cfg.threads:
                    from debias.jobs.cost import set_threads

                    set_threads(cfg.threads)
                product = dataset.generate(folder, generation)
            except BaseException as error:
                log.debug("failed: %s", error, exc_info=True)
                folder.fail(error)
                raise
    product = product._replace(path=shown(product.path))
    console.print(report.terminal(product), highlight=False, soft_wrap=True)
    return {"n": 0, "batch": 4}.get(product.harvest.stopped, 3)


def doctor_job(cfg: Any) -> int:
    """Examine files of triplets; returns 1 when one of them does not pass."""
    import json

    from debias.data import doctor, leakage
    from debias.data.triplets import read_records
    from debias.files import write_text
    from debias.progress import bar
    from debias.report.one_run import data_quality

    if not cfg.files:
        raise UserError("name at least one file: debias doctor FILE...")
    files = {path: read_records(path, cfg.bias) for path in (Path(name).expanduser() for name in cfg.files)}
    targets = [beside(path) for wanted, beside in ((cfg.fix, _fixed), (cfg.html, _page)) if wanted for path in files]
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"two of the files would be written to {target}; name them one after the other")
        if target.exists() and not cfg.overwrite:
            raise UserError(f"{target} exists already; move it away, or set overwrite=true")
    names = leakage.available() if cfg.leakage else []
    indices = [leakage.benchmark_index(n) for n in (bar("reading benchmarks")(names, len(names)) if names else ())]
    unread = leakage.missing() if cfg.leakage else []
    diagnoses, fixed = [], []
    for path, (records, broken) in files.items():
        diagnosis = doctor.diagnose(str(path), records, broken, indices, unread)
        if cfg.loss:
            diagnosis = replace(diagnosis, loss=_losses(make(cfg.model), records))
        diagnoses.append(diagnosis)
        if not cfg.json:
            console.print(data_quality.terminal(diagnosis), highlight=False)
        if cfg.html:
            write_text(_page(path), data_quality.page(diagnosis))
            if not cfg.json:
                console.print(f"\npage: {_page(path)}", highlight=False, soft_wrap=True)
        if cfg.fix:
            fixed.append(_fix(_fixed(path), *doctor.cleaned(records, broken, indices), quiet=cfg.json))
    if cfg.json:
        told = [d.as_json() | ({"fixed": fixed[i]} if fixed else {}) for i, d in enumerate(diagnoses)]
        print(json.dumps(told, indent=2, ensure_ascii=False))
    return 0 if all(d.passes for d in diagnoses) else 1


def _losses(model: Any, records: Sequence[Any]) -> dict[str, Any] | None:
    from debias.data.doctor import histogram
    from debias.data.triplets import strict
    from debias.jobs.run import attribute_losses

    triplets = [found for r in records if not isinstance(found := strict(r), str)]
    return histogram(attribute_losses(model, triplets)) if triplets else None


def _fixed(path: Path) -> Path:
    return path.with_suffix(".fixed.jsonl")


def _page(path: Path) -> Path:
    return path.with_suffix(".quality.html")


def _fix(target: Path, kept: Sequence[Any], dropped: Mapping[str, int], quiet: bool) -> dict[str, Any]:
    """Write the records that were kept, as the file had them; returns what was done, and says it unless `quiet`."""
    import json

    from debias.data.triplets import FIELDS
    from debias.files import write_text

    if not kept:
        raise UserError(f"nothing is left to write to {target}; choose another file")
    rows = [{**r.row, **{name: getattr(r, name) for name in (*FIELDS, "bias") if getattr(r, name)}} for r in kept]
    write_text(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    if not quiet:
        reasons = "".join(f"; {count:,} dropped: {reason}" for reason, count in dropped.items())
        console.print(f"\nwrote {target}: {len(kept):,} records{reasons}", highlight=False, soft_wrap=True)
    return {"path": str(target), "kept": len(kept), "dropped": dict(dropped)}
