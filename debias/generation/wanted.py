"""What a generated set shall be: its size, when to give up, and what a triplet must be like to get in."""

from __future__ import annotations

from dataclasses import dataclass

from debias.records import UserError

# What only says how much, how fast or how careful: a set is the same whatever they are (in the section of the config).
BESIDE = {
    "llm": (
        "max_cost_usd", "concurrency", "batch", "batch_price_factor", "max_retries", "timeout", "price_prompt",
        "price_completion", "priced_on", "prices", "api_key_env",
    ),
    "generate": ("n", "patience", "expected_yield", "licence", "dry_run"),
}  # fmt: skip


@dataclass
class Wanted:
    """Settings of a generated set; `conf/generation.yaml` says what each of them means, and these types check it."""

    n: int
    per_call: int
    patience: int
    expected_yield: float
    dry_run: bool
    against: list[str]
    benchmarks: bool
    min_words: int
    max_words: int
    similarity: float
    cap_target: float
    cap_attribute: float
    cap_opening: float
    licence: str

    def __post_init__(self) -> None:
        for name in ("n", "per_call", "patience", "min_words"):
            if getattr(self, name) < 1:
                raise UserError(f"generate.{name}={getattr(self, name)} must be 1 or more")
        for name in ("expected_yield", "cap_target", "cap_attribute", "cap_opening"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"generate.{name}={getattr(self, name)} must be more than 0 and at most 1")
        if not 0.3 <= self.similarity <= 1:
            raise UserError(f"generate.similarity={self.similarity} must lie between 0.3 and 1")
        if self.max_words < self.min_words:
            raise UserError(f"generate.max_words={self.max_words} is less than generate.min_words={self.min_words}")

    def cap(self, share: float) -> int:
        """How many triplets of the set may have one thing in common, at least 2: small sets need some room."""
        return max(2, int(share * self.n + 1e-9))  # 1e-9: 0.07 * 100 is 7
