"""The strategy that asks for more triplets like those the base model finds unexpected (or expected)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

from debias.data.doctor import histogram
from debias.data.triplets import TripletFile
from debias.generation import parser
from debias.generation.acceptance import form
from debias.generation.exchange import Request
from debias.generation.prompts import Prompt, as_json, listed, turn
from debias.generation.strategies import FORM, Targeted, Task, Wave, Waves, Writer, often, used
from debias.models.base import Base, BaseModel
from debias.progress import bar
from debias.records import Count, Triplet
from debias.scoring import batched
from debias.scoring.encoding import encode
from debias.scoring.layout_trial import choose_layout
from debias.training.objectives import Attribute


class LossGuided(Writer):
    """Scores the triplets so far under the base model, shows the extremes, and asks for more like one of them.

    Args:
        model: the base model.
        first: the strategy that writes the first triplets if there is no `start`.
        start: file with first triplets.
        rounds: how often the triplets so far are scored; later requests show the extremes of the last round.
        extremes: triplets to show from each side.
        side: ask for more like those of `high` or of `low` loss.
        loss: `mean` or `sum` over the attribute's tokens; the sum grows with their number.
        wish: wording for each side.
        sentence_prompt: template.
    """

    name, biased = "loss_guided", True

    def __init__(
        self, model: BaseModel, first: Targeted, start: str | None, rounds: Count, extremes: Count,
        side: Literal["high", "low"], loss: Literal["mean", "sum"], wish: Mapping[str, str], sentence_prompt: str,
        **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(**common)
        self.model, self.first, self.rounds, self.extremes = model, first, rounds, extremes
        self.side, self.loss, self.wish = side, loss, dict(wish)
        self.start = TripletFile("general", start) if start else None
        names = ["bias", "terms", "high", "low", "wish", *FORM]
        self.sentence_prompt = Prompt("strategy.sentence_prompt", sentence_prompt, names)
        self._base: Base | None = None

    def check(self) -> None:
        if self.start:
            self.start.load()

    def prompts(self) -> dict[str, str]:
        first = {} if self.start else {f"first {name}": text for name, text in self.first.prompts().items()}
        return {**first, "system": self.system, "sentences": self.sentence_prompt.template.template}

    def waves(self, task: Task) -> Waves:
        pool = self.start.load().triplets if self.start else (yield from self._first_triplets(task))
        attributes: Counter[str] = Counter()
        high = low = pool
        call = number = 0
        while True:
            losses = None
            if number < self.rounds:
                number += 1
                loss_of = self.losses(pool)
                low, high = self._extremes(pool, loss_of)
                losses = {"round": number, "n": len(pool), "loss": self.loss, **histogram(loss_of)}
            overused, targets = often(attributes), list(dict.fromkeys(t.target for t in pool))
            calls = range(call, call + self.calls_per_wave)
            requests = [self._guided(task, high, low, targets, k, overused) for k in calls]
            texts = yield Wave(requests, "triplets", losses)
            attributes.update(used(texts, "attribute"))
            pool = _distinct([*pool, *_usable(texts, task)])
            call += self.calls_per_wave

    def preview(self, task: Task) -> tuple[list[Request], Request]:
        sentence, target, attribute, bias = self.shown[0]
        example = Triplet(sentence, target, attribute, bias, "", 0, 0)
        many = [example] * self.extremes
        typical = self._guided(task, many, many, ["a dozen letters"] * 6, 0, ["a dozen"] * 10)
        return ([] if self.start else self.first.preview(task)[0]), typical

    def _first_triplets(self, task: Task) -> Generator[Wave, list[str], list[Triplet]]:
        """Triplets from the first waves of the first strategy, enough to show two extremes."""
        pool: list[Triplet] = []
        waves = self.first.waves(task)
        wave = next(waves)
        while True:
            texts = yield wave
            if wave.holds == "triplets":
                pool = _distinct([*pool, *_usable(texts, task)])
            if len(pool) >= 2 * self.extremes:
                return pool
            wave = waves.send(texts)

    def losses(self, triplets: Sequence[Triplet]) -> list[float]:
        """Loss of each attribute under the base model, in nats: per token, or summed."""
        if self._base is None:
            self._base = self.model.load()
        model, objective = self._base.model, Attribute()
        spans = [objective.span(text) for text in encode(triplets, self._base.tokens)]
        layout = choose_layout(model, self._base.kind)
        logprob_S = batched.score(model, spans, layout, progress=bar("scoring triplets"))
        sizes = [span.num_tokens if self.loss == "mean" else 1 for span in spans]
        return [-float(logprob) / size for logprob, size in zip(logprob_S, sizes, strict=True)]

    def _extremes(self, pool: Sequence[Triplet], loss_of: Sequence[float]) -> tuple[list[Triplet], list[Triplet]]:
        """The triplets with the lowest and with the highest loss, the most extreme first."""
        ordered = sorted(range(len(pool)), key=lambda i: (loss_of[i], pool[i].sentence))
        size = min(self.extremes, len(pool) // 2)
        return [pool[i] for i in ordered[:size]], [pool[i] for i in ordered[::-1][:size]]

    def _guided(
        self, task: Task, high: Sequence[Triplet], low: Sequence[Triplet], targets: Sequence[str], call: int,
        overused: Sequence[str],
    ) -> Request:  # fmt: skip
        few = turn(targets, min(self.first.terms_per_call, len(targets)), call, task.seed)
        return self._sentences(
            self.sentence_prompt, task, call, overused,
            bias=self.first.described(task), terms=listed(few), wish=self.wish[self.side],
            high=as_json([t[:3] for t in high]), low=as_json([t[:3] for t in low]),
        )  # fmt: skip


def _usable(texts: Sequence[str], task: Task) -> list[Triplet]:
    """Usable triplets in the answers, whether or not they were accepted."""
    found = [form(item, task.label, "", task.wanted) for text in texts for item in parser.triplets(text)]
    return [triplet for triplet in found if isinstance(triplet, Triplet)]


def _distinct(triplets: Sequence[Triplet]) -> list[Triplet]:
    return list({triplet.sentence.lower(): triplet for triplet in reversed(triplets)}.values())[::-1]
