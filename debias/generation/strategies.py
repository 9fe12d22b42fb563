"""What to ask a chat model: a strategy yields waves of requests and receives the texts of their answers.

The requests of a wave depend only on the settings, the seed and the answers of earlier waves in the order of the
requests, not on what was accepted or on the order of arrival. So replaying a ledger makes the same requests again,
however often the run was interrupted and however many triplets are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from debias.generation import parser
from debias.generation.exchange import Message, Request
from debias.generation.prompts import Prompt, as_json, listed, term_schema, triplet_schema, turn
from debias.generation.wanted import Wanted
from debias.records import Count, Natural, UserError


class Task(NamedTuple):
    """What is wanted, whatever the strategy."""

    biases: tuple[str, ...]  # several mean their intersection
    seed: int
    max_tokens: int  # of an answer
    wanted: Wanted

    @property
    def label(self) -> str:
        """The bias as it is named in the triplets."""
        return "+".join(self.biases)


class Wave(NamedTuple):
    """Requests that can be made at the same time, because none depends on another's answer."""

    requests: list[Request]
    holds: str  # content of the answers: triplets or terms
    losses: dict[str, Any] | None = None  # histogram of the losses behind the requests (loss_guided)


Waves = Generator[Wave, list[str], None]


class Strategy(Protocol):
    """A way to ask; each file in `conf/strategy/` names a class."""

    name: str
    biased: bool  # whether it writes about a given bias

    def waves(self, task: Task) -> Waves:
        """Endless waves; each is sent the texts of its answers, empty where there is no answer."""

    def preview(self, task: Task) -> tuple[list[Request], Request]:
        """The requests that come before any sentence, and a typical one of the others."""

    def examples(self) -> list[str]:
        """Example sentences in the prompts. Weak models tend to repeat them."""

    def prompts(self) -> dict[str, str]:
        """The templates by name."""

    def check(self) -> None:
        """Raise UserError for a file of its own that cannot be read."""


FORM = ("count", "min_words", "max_words", "scenes", "overused", "examples")


class Writer:
    """The common part of strategies: system prompt, scenes, examples, and requests for sentences.

    Args:
        system: system prompt.
        scenes: settings for sentences; each call shows a few.
        scenes_per_call: how many scenes a call shows.
        shown: examples of the form, as [sentence, target, attribute, bias].
        calls_per_wave: calls that do not depend on each other's answers.
    """

    labelled = False

    def __init__(
        self, system: str, scenes: Sequence[str], scenes_per_call: Natural, shown: Sequence[Sequence[str]],
        calls_per_wave: Count,
    ) -> None:  # fmt: skip
        if not scenes or any(len(row) != 4 for row in shown):
            raise UserError("strategy: scenes must not be empty; shown holds [sentence, target, attribute, bias]")
        self.system, self.scenes, self.scenes_per_call = system, list(scenes), scenes_per_call
        self.shown, self.calls_per_wave = [list(row) for row in shown], calls_per_wave

    def examples(self) -> list[str]:
        return [row[0] for row in self.shown]

    def check(self) -> None: ...

    def _request(self, text: str, schema: dict[str, Any], task: Task, sample: int) -> Request:
        messages = (Message("system", self.system), Message("user", text))
        return Request(messages, schema, task.max_tokens, sample)

    def _sentences(self, prompt: Prompt, task: Task, call: int, overused: Sequence[str], **more: object) -> Request:
        """Request number `call` for sentences."""
        text = prompt.fill(
            count=task.wanted.per_call,
            min_words=task.wanted.min_words,
            max_words=task.wanted.max_words,
            scenes=", ".join(turn(self.scenes, self.scenes_per_call, call, task.seed)),
            overused=", ".join(overused) or "(nothing so far)",
            examples=as_json([row[: 4 if self.labelled else 3] for row in self.shown]),
            **more,
        )
        return self._request(text, triplet_schema(task.wanted.per_call, self.labelled), task, call)


class Targeted(Writer):
    """Asks for terms for a given bias, then for sentences about a few of them at a time.

    Args:
        about: descriptions of known biases; any other bias is used as it is.
        intersection: template for several biases at once.
        terms: your own list; None asks the model for one.
        num_terms: terms to ask for.
        terms_per_call: terms per request for sentences.
        term_prompt, sentence_prompt: templates.
    """

    name, biased = "targeted", True

    def __init__(
        self, about: Mapping[str, str], intersection: str, terms: Sequence[str] | None, num_terms: Count,
        terms_per_call: Count, term_prompt: str, sentence_prompt: str, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(**common)
        if terms is not None and not [term for term in terms if str(term).strip()]:
            raise UserError("strategy.terms is empty; name some terms, or set it to null to ask the model")
        self.about, self.num_terms, self.terms_per_call = dict(about), num_terms, terms_per_call
        self.terms = None if terms is None else [str(term).strip() for term in terms]
        self.intersection = Prompt("strategy.intersection", intersection, ["biases"])
        self.term_prompt = Prompt("strategy.term_prompt", term_prompt, ["bias", "count"])
        self.sentence_prompt = Prompt("strategy.sentence_prompt", sentence_prompt, ["bias", "terms", *FORM])

    def described(self, task: Task) -> str:
        """The bias, or the intersection of several, in words."""
        each = [self.about.get(bias, bias) for bias in task.biases]
        return each[0] if len(each) == 1 else self.intersection.fill(biases=" and ".join(each))

    def prompts(self) -> dict[str, str]:
        asked = {} if self.terms else {"terms": self.term_prompt.template.template}
        return {"system": self.system, **asked, "sentences": self.sentence_prompt.template.template}

    def waves(self, task: Task) -> Waves:
        terms = self.terms or (yield from self._asked_terms(task))
        attributes: Counter[str] = Counter()
        call = 0
        while True:
            overused = often(attributes)
            calls = range(call, call + self.calls_per_wave)
            texts = yield Wave([self._about_terms(task, terms, k, overused) for k in calls], "triplets")
            attributes.update(used(texts, "attribute"))
            call += self.calls_per_wave

    def preview(self, task: Task) -> tuple[list[Request], Request]:
        terms = self.terms or ["a dozen letters (often said to be two, or three)"] * self.num_terms
        first = [] if self.terms else [self._term_request(task, 0)]
        return first, self._about_terms(task, terms, 0, ["a dozen"] * 10)

    def _asked_terms(self, task: Task) -> Generator[Wave, list[str], list[str]]:
        """Ask for terms until there is at least one, and up to three times until there are half of `num_terms`."""
        found: dict[str, list[str]] = {}
        sample = 0
        while not found or (len(found) < self.num_terms / 2 and sample < 3):
            (text,) = yield Wave([self._term_request(task, sample)], "terms")
            for term, said in parser.terms(text).items():
                found.setdefault(term, said)
            sample += 1
        return [f"{term} (often said to be {', '.join(said)})" if said else term for term, said in found.items()]

    def _term_request(self, task: Task, sample: int) -> Request:
        text = self.term_prompt.fill(bias=self.described(task), count=self.num_terms)
        return self._request(text, term_schema(self.num_terms), task, sample)

    def _about_terms(self, task: Task, terms: Sequence[str], call: int, overused: Sequence[str]) -> Request:
        few = turn(terms, min(self.terms_per_call, len(terms)), call, task.seed)
        return self._sentences(
            self.sentence_prompt, task, call, overused, bias=self.described(task), terms=listed(few)
        )  # fmt: skip


class General(Writer):
    """Names no bias: the model chooses the groups and labels each triplet with its bias."""

    name, biased, labelled = "general", False, True

    def __init__(self, sentence_prompt: str, **common: Any) -> None:
        super().__init__(**common)
        self.sentence_prompt = Prompt("strategy.sentence_prompt", sentence_prompt, FORM)

    def prompts(self) -> dict[str, str]:
        return {"system": self.system, "sentences": self.sentence_prompt.template.template}

    def waves(self, task: Task) -> Waves:
        targets: Counter[str] = Counter()
        call = 0
        while True:
            overused = often(targets)
            calls = range(call, call + self.calls_per_wave)
            requests = [self._sentences(self.sentence_prompt, task, k, overused) for k in calls]
            texts = yield Wave(requests, "triplets")
            targets.update(used(texts, "target"))
            call += self.calls_per_wave

    def preview(self, task: Task) -> tuple[list[Request], Request]:
        return [], self._sentences(self.sentence_prompt, task, 0, ["a dozen"] * 10)


def used(texts: Sequence[str], what: str) -> list[str]:
    """Targets or attributes used in answers, in lower case."""
    words = [item.get(what) for text in texts for item in parser.triplets(text)]
    return [word.lower() for word in words if isinstance(word, str) and 0 < len(word) <= 40]


def often(counts: Counter[str], most: int = 20, least: int = 3) -> list[str]:
    """The most frequent words with at least `least` occurrences, in a deterministic order."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [word for word, count in ordered[:most] if count >= least]
