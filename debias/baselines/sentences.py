"""What hidden states are fitted on: Wikipedia sentences, the same about each group, and others about no group.

The text is that of counterfactual augmentation (`debias.data.counterfactual`), with our own word lists. No benchmark
asks about it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import islice

import numpy as np

from debias.data.plaintext import Text, split_sentences, usable
from debias.data.swapping import Swapper
from debias.progress import bar
from debias.records import UserError
from debias.scoring import batched
from debias.scoring.scorer import Scorer
from debias.scoring.spans import after, start_id


class Sentences:
    """Sentences about a bias.

    Args:
        bias: gender, race or religion.
        n: how many sentences of each kind, a fixed sample; fewer if the text has fewer.
        text: that of `Counterfactual`.
    """

    def __init__(self, bias: str, n: int, text: str | None = None) -> None:
        self.bias, self.n = bias, n
        self.swapper, self.text = Swapper(bias), Text(text, bias)

    def fingerprint(self) -> str:
        """Checksums of text and word list."""
        return f"{self.text.fingerprint()} {self.swapper.fingerprint()}"

    @cached_property
    def versions(self) -> list[list[str]]:
        """Each sentence about one group as a row, about every group: column g is about group g.

        Raises UserError if no sentence is about exactly one group.
        """
        rows = list(islice(filter(None, map(self._row, self._sample)), self.n))
        if not rows:
            raise UserError(f"{self.text.name}: no sentence is about one {self.bias} alone; choose another text")
        return rows

    @cached_property
    def neutral(self) -> list[str]:
        """Sentences without a word of the list."""
        return list(islice((s for s in self._sample if self.swapper.swap(s, 1) is None), self.n))

    def _row(self, sentence: str) -> list[str] | None:
        """A sentence in its versions by group; None if it is not about exactly one."""
        group = self.swapper.group(sentence)
        if group is None:
            return None
        shifts = [(g - group) % self.swapper.groups for g in range(self.swapper.groups)]
        return [str(self.swapper.swap(sentence, shift)) if shift else sentence for shift in shifts]

    @cached_property
    def _sample(self) -> list[str]:
        """All sentences in a fixed random order, which does not depend on where they stand."""
        sentences = (s for passage in self.text.passages() for s in split_sentences(passage))
        return sorted(usable(sentences, Counter()), key=lambda s: hashlib.sha256(s.encode()).digest())


def features(scorer: Scorer, texts: Sequence[str], label: str, layer: int = -1) -> np.ndarray:
    """Mean hidden state of each text behind a layer of the base (-1: the last), float32, shape (texts, width).

    A causal model reads the start token first; it and a masked model's first token do not count.
    """
    tokenizer, kind = scorer.tokens
    found = tokenizer(list(texts), add_special_tokens=kind == "masked", return_attention_mask=False, verbose=False)
    ids = [tuple(i) for i in found.input_ids]
    if kind == "causal":
        start = start_id(tokenizer)
        ids = [(start, *after(start, i)) for i in ids]

    def fresh() -> np.ndarray:
        progress = bar(f"reading {label}")
        return batched.mean_hidden(scorer.model, ids, scorer.token_budget, progress, skip=1, layer=layer)

    with scorer.using("base"):
        return scorer.cached([f"mean hidden states, layer {layer}, {ids}".encode()], fresh).astype(np.float32)


def versions(scorer: Scorer, sentences: Sentences, layer: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Features of all versions of all sentences, those of one sentence together, and the group that each is about."""
    texts = [text for row in sentences.versions for text in row]
    group_N = np.tile(np.arange(sentences.swapper.groups), len(sentences.versions))
    return features(scorer, texts, "versions of sentences", layer), group_N
