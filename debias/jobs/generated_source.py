"""`data=generated`: a chat model writes the training data, as in `debias generate`, and training follows."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from debias.data.triplets import Checked, TripletFile
from debias.generation.counterparts import Counterparts
from debias.generation.exchange import Spent
from debias.generation.judge import Judge
from debias.generation.ledger import read_ledger
from debias.generation.strategies import Strategy
from debias.generation.wanted import BESIDE, Wanted, lasting_llm
from debias.generation.writers import writers_of
from debias.jobs.generate import biases, check, generate
from debias.jobs.generate_loop import Generation
from debias.jobs.generated_folder import LEDGER, DataFolder
from debias.records import UserError
from debias.report.one_run.generated_set_shown import named
from debias.report.templating import dollars
from debias.run_identity import text_sha256
from debias.schema import checked

PARTS = ("sentence", "target", "attribute", "bias")  # of a line; the rest says where it came from


class Generated:
    """A set that a chat model writes into its own folder below `root`. Answers in its ledger are not asked for again.

    Args:
        bias: what the sentences are about.
        llm, strategy, judge, counterparts, generate: as in `debias generate`.
        seed: of the order of terms and scenes. Not the run's seed, so that a sweep over seeds pays once.
        root: folder of generated sets.
    """

    def __init__(
        self, bias: str | list[str], llm: Mapping[str, Any], strategy: Strategy, judge: Judge | Mapping[str, Any],
        counterparts: Counterparts | Mapping[str, Any], generate: Mapping[str, Any], seed: int, root: str,
    ) -> None:  # fmt: skip
        wanted, writers = checked(Wanted, generate, "generate"), writers_of(llm)
        scoring = judge.beside(writers[0]) if isinstance(judge, Judge) else None
        naming = counterparts.beside(writers[0]) if isinstance(counterparts, Counterparts) else None
        if naming is not None and naming.file is not None:
            raise UserError(
                "counterparts=FILE works only in `debias generate`; use data.path=FILE with the file it writes"
            )
        self.generation = Generation("generated", writers, strategy, wanted, biases(bias), seed, scoring, naming)
        if wanted.dry_run:
            raise UserError(
                "generate.dry_run=true works only in `debias generate`; use it there with the same settings"
            )
        keep = {k: v for k, v in generate.items() if k not in BESIDE["generate"]}
        asked = lasting_llm({name: value for name, value in llm.items() if name != "server"})
        settings = {"bias": self.generation.biases, "llm": asked, "strategy": strategy, "generate": keep, "seed": seed}
        if scoring is not None:
            settings["judge"] = {**vars(scoring), "model": lasting_llm(vars(scoring.llm))}
        self.columns = ""  # of what is beside the identity of the set and yet part of the data
        if naming is not None:
            asked = {name: value for name, value in vars(naming).items() if name not in ("model", "refused")}
            self.columns = _plain({**asked, "model": lasting_llm(vars(naming.model.llm))})
        self.settings = _plain(settings)
        self.identity = _plain(list(settings.values()))
        name = "-".join([self.generation.task.label, strategy.name, self.generation.llms[0].model])
        short = re.sub(r"[^\w.+-]+", "_", name)[:80]
        self.folder = Path(root) / f"{short}-{text_sha256(self.identity)[:8]}"
        self.path = self.folder / f"{self.generation.name}.jsonl"
        self._loaded = False

    def fingerprint(self) -> str:
        """Checksum of the settings, the size and the triplets.

        Before `load`, a set that the next launch would extend, or that does not exist yet, counts without its triplets.
        """
        known = f"{self.identity} {self.generation.wanted.n}{self.columns}{self._contained()}"
        return hashlib.sha256(known.encode()).hexdigest()

    def _contained(self) -> str:
        """The triplets that a run takes from the set, unless the next launch would change them."""
        try:
            stopped = json.loads((self.folder / "status.json").read_text(encoding="utf-8")).get("stopped")
            lines = self.path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines[: self.generation.wanted.n]]
        except (OSError, ValueError):  # there is no set yet, or `load` will say what is wrong
            return ""
        ended = self._loaded or stopped in ("budget", "patience", "filtered") or len(rows) == self.generation.wanted.n
        return _plain([[row.get(key) for key in PARTS] for row in rows]) if ended else ""

    def check(self) -> None:
        """Raise UserError for a missing key and what else keeps a chat model from being asked."""
        check(self.generation)

    def load(self, seed: int) -> Checked:
        """Generate or replay. Raises UserError if there is nothing to train on, or a batch is still being processed."""
        before = read_ledger(self.folder / LEDGER).spent
        text = yaml.safe_dump(json.loads(self.settings), sort_keys=False, allow_unicode=True)
        folder = DataFolder(self.folder, text, {"config_sha256": text_sha256(self.identity)}, self.generation.name)
        # Of the jobs of a sweep one writes the set. The others wait, and then find every answer in its ledger.
        with folder.claim(wait=True), folder.working():
            product = generate(folder, self.generation)
        if product.harvest.stopped == "batch":
            raise UserError(f"{product.harvest.reason}; run the same command again to continue")
        if product.counterparts is not None and product.counterparts.stopped:
            raise UserError(f"{self.folder}: {named(product.counterparts)}; run the same command again to continue")
        if not product.harvest.kept:
            raise UserError(f"{self.folder}: nothing was accepted ({product.ending}); see rejected.jsonl there")
        self._loaded = True
        checked = TripletFile(self.generation.task.label, str(product.path)).load(seed)
        dropped = Counter({f"generated, but {r.reason}": 0 for r in product.harvest.rejected})
        dropped.update(f"generated, but {r.reason}" for r in product.harvest.rejected)
        note = f"written by {product.models} for {dollars(product.spent.dollars)}: {product.ending}"
        spent = _between(before, product.spent) | {"seconds": round(product.seconds, 2)}
        return Checked(checked.triplets, dropped + checked.dropped, (f"{note} (see {self.folder})",), spent)


def _between(before: Spent, after: Spent) -> dict[str, Any]:
    """What this run paid. A set that another run paid for costs nothing."""
    tokens = after.prompt_tokens + after.completion_tokens - before.prompt_tokens - before.completion_tokens
    if not tokens:
        return {"tokens": 0, "dollars": 0.0}  # whatever the price
    dollars = None if after.dollars is None or before.dollars is None else after.dollars - before.dollars
    return {"tokens": tokens, "dollars": dollars}


def _plain(value: object) -> str:
    """Settings as JSON; objects become dicts of their public attributes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_attributes)


def _attributes(value: object) -> str | dict[str, Any]:
    if isinstance(value, string.Template):
        return value.template
    if isinstance(value, Path):
        return str(value)
    return {name: part for name, part in vars(value).items() if not name.startswith("_")}
