"""The types that the rooms of the program exchange, and those of a config's sections."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

SIGNIFICANT = 0.05  # corrected p-values below it
AUTO: Literal["auto"] = "auto"  # the value of a setting that the program chooses


class UserError(Exception):
    """An error that the user can fix, shown as one line that names the place and the remedy."""


def one_line(error: BaseException) -> str:
    """An error's message in one short line."""
    return " ".join(str(error).split())[:200]


def without_passwords(text: str) -> str:
    """A text that may be written to a file: user names and passwords in addresses are hidden."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


class Triplet(NamedTuple):
    """A sentence with a target (a member of a social group) and an attribute that breaks a stereotype about it."""

    sentence: str
    target: str
    attribute: str
    bias: str
    source: str
    start: int  # character span of the attribute in the sentence
    stop: int
    stereotype: str | None = None  # the stereotype's words in place of the attribute, if the source has them
    unrelated: str | None = None  # words that make no sense there, if the source has them


class Encoded(NamedTuple):
    """A sentence's token ids; `ids[start:stop]` are the attribute's tokens."""

    ids: tuple[int, ...]
    start: int
    stop: int
    mask: int | None = None  # the mask token's id for a masked model


class Cloze(NamedTuple):
    """A blank: the text before it, what fills it, and the text after it."""

    before: str
    filling: str
    after: str = ""


class Candidate(NamedTuple):
    """One text for a benchmark to score. Candidates of one example are adjacent and are compared."""

    example: str
    candidate: str
    bias: str
    target: str  # the social group, or what else dependent examples share
    text: str
    cloze: Cloze | None = None  # if the candidates of an example differ in what fills a blank


class Tokens(NamedTuple):
    """How a model reads text: its tokenizer, and whether it predicts the next token (`causal`) or masked ones."""

    tokenizer: Any
    kind: str


class Span(NamedTuple):
    """Token ids whose tail `ids[start:]` is scored given the tokens before it; `start` is at least 1."""

    ids: tuple[int, ...]
    start: int

    @property
    def num_tokens(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start

    @property
    def num_positions(self) -> int:
        """How many positions a model reads: the last token predicts nothing."""
        return len(self.ids) - 1

    @property
    def num_context(self) -> int:
        """How many positions are only read."""
        return self.start - 1


class Masked(NamedTuple):
    """Token ids with some masked; at the positions `at`, the true `tokens` are scored given the rest."""

    ids: tuple[int, ...]
    at: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """How many tokens are scored."""
        return len(self.at)

    @property
    def num_positions(self) -> int:
        """How many positions a model reads."""
        return len(self.ids)

    @property
    def num_context(self) -> int:
        """How many positions are only read."""
        return len(self.ids) - len(self.at)


Scored = Span | Masked


class Figure(NamedTuple):
    """One line of `metrics.jsonl`: a figure, its 95% interval and the number of independent units behind it."""

    benchmark: str
    protocol: str
    bias: str
    metric: str
    model: str  # base, debiased or delta (debiased - base); `debiased:NAME` where several adapters are compared
    value: float
    ci_low: float
    ci_high: float
    n: int
    ideal: float | None
    p_value: float | None = None  # this and the fields below: for differences only
    p_adjusted: float | None = None  # for the run's number of differences (Benjamini & Hochberg 1995)
    mde: float | None = None  # minimum detectable effect: the smallest true difference found with 80% power
    test: str | None = None  # bootstrap or mcnemar

    @property
    def p(self) -> float | None:
        """The corrected p-value, or the plain one where nothing was corrected."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted

    @property
    def significant(self) -> bool:
        """Whether a difference is significant; one without a p-value (None or NaN) is not."""
        return self.p is not None and self.p < SIGNIFICANT


class Range(NamedTuple):
    """Allowed numbers, for a type such as `Annotated[int, Range(1)]`; NaN is in no range."""

    low: float
    high: float = math.inf
    above: bool = False  # the lowest number itself is not allowed

    def holds(self, value: float) -> bool:
        """Whether a number is allowed."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"more than {self.low}" if self.above else f"of {self.low} or more"
        return f"more than {self.low} and at most {self.high}" if self.above else f"from {self.low} to {self.high}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
SomeShare = Annotated[float, Range(0, 1, above=True)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what NumPy takes


@dataclass
class Watch:
    """When to score StereoSet dev while training, and when to stop; see `conf/run.yaml`."""

    every: Count | None = None
    limit: Count = 60
    stop_at: Annotated[float, Range(0, 100)] | None = 50.0
    patience: Count | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.every is None:
            raise UserError("training.watch.patience needs training.watch.every=STEPS: how often to score dev")


# The schedules of transformers that need no settings of their own.
Schedule = Literal[
    "linear", "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


@dataclass
class Recipe:
    """How an adapter is trained; `conf/run.yaml` explains the keys, and these types check them."""

    lr: Positive
    epochs: Count
    batch_size: Count
    schedule: Schedule
    warmup: Share
    weight_decay: NotNegative
    start_token: bool
    retention: NotNegative
    num_neutral: Natural | None = None
    balance: NotNegative = 1.0
    num_pairs: Natural = 4
    noise: NotNegative = 0.0
    gradient_checkpointing: bool = False
    watch: Watch = field(default_factory=Watch)


@dataclass
class Scoring:
    """How texts are scored; see `conf/run.yaml`."""

    precision: Literal["auto", "32", "bf16"] = AUTO
    token_budget: Count | Literal["auto"] = AUTO


@dataclass
class Writing:
    """How much a model writes; see `conf/show.yaml`."""

    samples: Natural = 1
    longest: Count = 40
    seed: Seed = 1
