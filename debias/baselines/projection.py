"""SentenceDebias and INLP: directions of the last hidden state that tell groups apart are projected out of it.

As Meade et al. 2022 (bias-bench) apply them to language models: the projection comes after the model's body and before
its prediction head, at every position. Word lists, text and code are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from debias.baselines import checksum
from debias.baselines.sentences import Sentences, features, versions
from debias.benchmarks import probe
from debias.models.placement import inputs_on
from debias.records import Count, UserError
from debias.scoring.method import Method
from debias.scoring.scorer import Scorer

Bias = Literal["gender", "race", "religion"]
PENALTY = 1e-3  # of INLP's classifiers


class Projection(Method):
    """The last hidden state h of every position becomes P h.

    Args:
        name: what records call it.
        matrix_DD: P.
    """

    def __init__(self, name: str, matrix_DD: np.ndarray) -> None:
        super().__init__(name, checksum("projection", name, matrix_DD))
        self.matrix_DD = torch.from_numpy(np.asarray(matrix_DD, dtype=np.float32))

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Project what the body hands to the prediction head."""
        matrix_DD = self.matrix_DD.to(inputs_on(model))

        def project(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            hidden_BTD = output.last_hidden_state
            changed_BTD = (hidden_BTD.float() @ matrix_DD.to(hidden_BTD.device).T).to(hidden_BTD.dtype)
            output.last_hidden_state = changed_BTD
            if getattr(output, "hidden_states", None):  # SEAT and the probes read the last one
                output.hidden_states = (*output.hidden_states[:-1], changed_BTD)
            return output

        handle = body(model).register_forward_hook(project)
        try:
            yield
        finally:
            handle.remove()


def body(model: PreTrainedModel) -> nn.Module:
    """The module before the prediction head. Raises UserError for a model that has none."""
    found = getattr(model, model.base_model_prefix, None)
    if not isinstance(found, nn.Module):
        raise UserError(f"{type(model).__name__} has no body apart from its prediction head; remove baseline=")
    return found


class SentenceDebias:
    """Removes the first principal components of the differences between versions of a sentence (Liang et al. 2020).

    Args:
        bias: gender, race or religion.
        n: sentences, each in a version for every group.
        components: directions to remove; bias-bench removes one.
        text: Wikipedia text to take them from: `gap`, `bold` or a file; null: `gap` for gender, `bold` for the others.
    """

    def __init__(self, bias: Bias, n: Count = 500, components: Count = 1, text: str | None = None) -> None:
        self.sentences, self.components = Sentences(bias, n, text), components

    def fingerprint(self) -> str:
        """Checksums of text and word list."""
        return self.sentences.fingerprint()

    def fit(self, scorer: Scorer) -> Projection:
        """Read the versions of every sentence and find the directions in which they differ."""
        feature_ND, group_N = versions(scorer, self.sentences)
        groups = int(group_N.max()) + 1
        basis_KD = bias_subspace(feature_ND.reshape(-1, groups, feature_ND.shape[1]), self.components)
        return Projection(f"sentence_debias ({self.sentences.bias})", without(basis_KD))


def bias_subspace(feature_NGD: np.ndarray, components: int) -> np.ndarray:
    """Orthonormal directions in which N sentences about G groups differ most, shape (components, D).

    Features are scaled to length 1 and centred over the versions of a sentence, then come principal components.
    """
    unit_NGD = feature_NGD / np.linalg.norm(feature_NGD, axis=-1, keepdims=True)
    difference_ND = (unit_NGD - unit_NGD.mean(1, keepdims=True)).reshape(-1, feature_NGD.shape[-1])
    return np.linalg.svd(difference_ND, full_matrices=False)[2][:components]


def without(basis_KD: np.ndarray) -> np.ndarray:
    """The matrix that removes orthonormal directions from a vector: I - B'B."""
    return np.eye(basis_KD.shape[1]) - basis_KD.T @ basis_KD


class NullSpace:
    """INLP: iterative nullspace projection (Ravfogel et al. 2020).

    A linear classifier learns whom a sentence is about, or nobody. What it looks at is projected out of the features,
    another one learns from the rest, and so on. As in bias-bench, there are three classes for gender (women, men and
    nobody), and two where there are more groups: any of them, or none.

    Args:
        bias: gender, race or religion.
        n: sentences about groups, each in a version for every group, and as many about no group.
        rounds: classifiers; bias-bench trains 80.
        text: as for `SentenceDebias`.
    """

    def __init__(self, bias: Bias, n: Count = 500, rounds: Count = 80, text: str | None = None) -> None:
        self.sentences, self.rounds = Sentences(bias, n, text), rounds

    def fingerprint(self) -> str:
        """Checksums of text and word list."""
        return self.sentences.fingerprint()

    def fit(self, scorer: Scorer) -> Projection:
        """Read the sentences and train the classifiers."""
        about_ND, group_N = versions(scorer, self.sentences)
        neutral_ND = features(scorer, self.sentences.neutral, "sentences about no group")
        whom_N = group_N if len(np.unique(group_N)) == 2 else np.zeros_like(group_N)
        label_N = np.append(whom_N, np.full(len(neutral_ND), -1))
        feature_ND = np.vstack([about_ND, neutral_ND])
        return Projection(f"inlp ({self.sentences.bias})", nullspace(feature_ND, label_N, self.rounds))


def nullspace(feature_ND: np.ndarray, label_N: np.ndarray, rounds: int) -> np.ndarray:
    """The product of the rounds' projections P_k ... P_1, each to the nullspace of a one-against-all classifier.

    The classifiers of a round see features that the earlier rounds have projected, so their weights are orthogonal to
    the earlier ones and the product is the projection to the common nullspace.
    """
    classes = np.unique(label_N)
    projection_DD = np.eye(feature_ND.shape[1])
    removed_KD = np.empty((0, feature_ND.shape[1]))
    for _ in range(rounds):
        seen_ND = feature_ND @ projection_DD
        fitted = [probe.fit(seen_ND, label_N == c, PENALTY) for c in (classes if len(classes) > 2 else classes[:1])]
        # A probe reads standardised features: this is the direction that it reads in the model's own.
        weight_CD = np.stack([probe.weight_D / probe.scale_D for probe in fitted])
        removed_KD = np.vstack([removed_KD, _orthonormal(weight_CD @ projection_DD)])
        projection_DD = without(removed_KD)
    return projection_DD


def _orthonormal(vectors_KD: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the space that vectors span; vectors of no length add nothing."""
    _, size_K, basis_KD = np.linalg.svd(vectors_KD, full_matrices=False)
    return basis_KD[size_K > 1e-8 * max(1.0, float(size_K.max(initial=0.0)))]
