"""The settings of each verb with their types: the config's schema, together with the signatures of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from debias.records import Count, NotNegative, Range, Recipe, Scoring, Seed, UserError, Writing
from debias.report.outcome import Bounds
from debias.schema import Part, checked

Threads = Annotated[int, Range(1, 1024)]
Settings = TypeVar("Settings")


@dataclass
class Run:
    """`conf/run.yaml`."""

    name: str | float
    seed: Seed
    overwrite: bool
    accept_other_code: bool
    threads: Threads | None
    training: Recipe
    scoring: Scoring
    outcome: Bounds
    model: Part
    adapter: Part
    objective: Part
    neutral: Part
    balance: Part
    data: Part
    protocol: Part
    eval: Part
    trainer: Part
    show: Writing
    logger: Part | None = None
    llm: Part | None = None  # this and the next two: of data=generated
    strategy: Part | None = None
    generate: Part | None = None
    judge: Part | None = None
    counterparts: Part | None = None


@dataclass
class Adapters:
    """Which adapters to score."""

    path: str | list[str] | None
    combine: Literal["stack", "average", "sum"] | None
    weights: list[NotNegative] | None


@dataclass
class Target:
    """The bias on top of the table."""

    bias: str


@dataclass
class Evaluate:
    """`conf/evaluate.yaml`."""

    name: str | float
    overwrite: bool
    accept_other_code: bool
    threads: Threads | None
    adapter: Adapters
    baseline: Part
    data: Target
    scoring: Scoring
    outcome: Bounds
    model: Part
    protocol: Part
    eval: Part
    logger: Part | None = None


@dataclass
class Generate:
    """`conf/generate.yaml`."""

    name: str | float
    seed: Seed
    overwrite: bool
    threads: Threads | None
    bias: str | list[str]
    llm: Part
    strategy: Part
    generate: Part
    judge: Part
    counterparts: Part
    preview: Count | None
    model: Part


@dataclass
class Doctor:
    """`conf/doctor.yaml`."""

    files: list[str]
    json: bool
    html: bool
    fix: bool
    overwrite: bool
    bias: str
    leakage: bool
    loss: bool
    model: Part


@dataclass
class Exported:
    """Which adapter to export, or several as one."""

    path: str | list[str]
    combine: Literal["stack", "average", "sum"] | None
    weights: list[NotNegative] | Literal["auto"] | None


@dataclass
class Export:
    """`conf/export.yaml`."""

    adapter: Exported
    threads: Threads | None
    merge: bool
    folder: str | None
    repo: str | None
    private: bool
    dry_run: bool
    overwrite: bool
    model: Part


@dataclass
class Shown:
    """Which adapter writes beside the base."""

    path: str | None


@dataclass
class Show:
    """`conf/show.yaml`."""

    adapter: Shown
    prompts: str | list[str] | None
    show: Writing
    threads: Threads | None
    model: Part


def settings_of(cfg: DictConfig, schema: type[Settings]) -> Settings:
    """The config of a job as its verb's settings. Raises UserError for the first value that does not fit."""
    missing = sorted(OmegaConf.missing_keys(cfg), key=lambda key: (key.count("."), key))
    if missing:
        raise UserError(f"{missing[0]} must be set: add {missing[0]}=VALUE")
    settings = checked(schema, cfg)
    name = str(getattr(settings, "name", "run"))
    if not name.strip():
        raise UserError(f"name={name!r} must be the name of a folder below outputs, such as name=first")
    return settings
