"""PANDA (Qian et al. 2022): text that people rewrote to be about another gender, age or ethnicity."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from debias import assets
from debias.data.plaintext import split_sentences, usable, whole
from debias.data.triplets import Checked
from debias.records import UserError

CATEGORIES = {
    "gender": ("Woman", "Man", "Non-Binary"),
    "race": (
        "White",
        "Black or African American",
        "Hispanic or Latino",
        "Asian",
        "American Indian or Alaska Native",
        "Native Hawaiian or Other Pacific Islander",
    ),
    "age": ("Child (< 18)", "Young (18-44)", "Middle-aged (45-64)", "Senior (65+)", "Adult (unspecified)"),
}


class Panda:
    """A data source: the sentences that a rewriter changed.

    Args:
        bias: gender, race or age.
        categories: groups that the rewritten text is about, in PANDA's words; all groups of the bias if None.
    """

    def __init__(self, bias: str, categories: Sequence[str] | None = None) -> None:
        if bias not in CATEGORIES:
            raise UserError(f"PANDA has no rewrites on data.bias={bias!r}; choose one of: {', '.join(CATEGORIES)}")
        known = [name for names in CATEGORIES.values() for name in names]
        self.categories = list(categories or CATEGORIES[bias])
        for name in self.categories:
            if name not in known:
                raise UserError(f"PANDA has no category {name!r}; choose among: {'; '.join(known)}")
        self.bias = bias

    def fingerprint(self) -> str:
        """SHA-256 of the archive, and the categories."""
        return f"{assets.ASSETS['panda'].sha256} {','.join(self.categories)}"

    def load(self, seed: int = 0) -> Checked:
        """Sentences of the rewritten passages, without those that the rewriter left unchanged."""
        dropped: Counter[str] = Counter()
        sentences = usable(self._changed(dropped), dropped)
        return Checked([whole(sentence, self.bias, "panda") for sentence in sentences], dropped)

    def _changed(self, dropped: Counter[str]) -> Iterator[str]:
        for row in rows():
            if row["perturbed_category"] not in self.categories:
                continue
            before = _worded(row["original"])
            for sentence in _sentences(row["rewrite"]):
                if _words(sentence) in before:
                    dropped["left unchanged by the rewriter"] += 1
                else:
                    yield sentence


def _sentences(passage: str) -> list[str]:
    return split_sentences(passage.replace("<SEP>", "\n"))  # <SEP> divides a question or claim from its passage


def _words(sentence: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", sentence.lower()))


@lru_cache(maxsize=64)  # the file keeps the rewrites of one passage together
def _worded(passage: str) -> frozenset[tuple[str, ...]]:
    return frozenset(map(_words, _sentences(passage)))


def rows() -> Iterator[dict[str, str]]:
    """The rows of PANDA: original, rewrite, selected_word, perturbed_category, source_data_type."""
    with tarfile.open(assets.locate("panda")) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jsonl") else None
            for line in file or ():
                yield json.loads(line)
