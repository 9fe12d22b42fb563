"""The types that the rooms of the program exchange, and the checks of a config's sections."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    pass


SIGNIFICANT = 0.05  # corrected p-values below it
AUTO = "auto"  # the value of a setting that the program chooses

Section = TypeVar("Section")


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


def checked(schema: type[Section], cfg: Any, section: str) -> Section:
    """A section of a config as the dataclass `schema`. Raises UserError, which names the key, for a wrong value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg[section]))  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        key = f"{section}.{str(error).splitlines()[0].rpartition(' ')[2]}"
        raise UserError(f"{key} must be set: add {key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{section}.{error.full_key}: {str(error).splitlines()[0]}") from error


@dataclass
class Watch:
    """When to score StereoSet dev while training, and when to stop; see `conf/run.yaml`."""

    every: int | None = None
    limit: int = 60
    stop_at: float | None = 50.0
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "limit", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"training.watch.{name}={value} must be 1 or more, or null")
        if self.patience is not None and self.every is None:
            raise UserError("training.watch.patience needs training.watch.every=STEPS: how often to score dev")


@dataclass
class Recipe:
    """How an adapter is trained; `conf/run.yaml` explains the keys, and these types check them."""

    lr: float
    epochs: int
    batch_size: int
    schedule: str
    warmup: float
    weight_decay: float
    start_token: bool
    retention: float
    num_neutral: int
    balance: float = 1.0
    num_pairs: int = 4
    gradient_checkpointing: bool = False
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise UserError(f"training.{name}={getattr(self, name)} must be more than 0")
        for name in ("warmup", "weight_decay", "retention", "num_neutral", "balance", "num_pairs"):
            if not getattr(self, name) >= 0:
                raise UserError(f"training.{name}={getattr(self, name)} must be 0 or more")


@dataclass
class Scoring:
    """How texts are scored; see `conf/run.yaml`."""

    precision: str = AUTO
    token_budget: Any = AUTO  # a number or `auto`

    def __post_init__(self) -> None:
        if self.precision not in (AUTO, "32", "bf16"):
            raise UserError(f"scoring.precision={self.precision!r} is unknown; choose auto, 32 or bf16")
        if self.token_budget != AUTO and not (isinstance(self.token_budget, int) and self.token_budget >= 1):
            raise UserError(f"scoring.token_budget={self.token_budget!r} must be 1 or more, or auto")


@dataclass
class Writing:
    """How much a model writes; see `conf/show.yaml`."""

    samples: int = 2
    longest: int = 40
    seed: int = 1

    def __post_init__(self) -> None:
        if self.samples < 0 or self.longest < 1:
            raise UserError("show.samples must be 0 or more, and show.longest 1 or more")
