"""Layouts derived by hand: which token goes where, what it sees, and how many positions a benchmark takes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from debias.records import Span, Tokens
from debias.scoring.layouts import PrefixTree, Sight, common_prefix, padded, prefix_tree, visible
from debias.scoring.protocols import BiasBench

TOKENS = [(5, 6, 7, 8), (5, 6, 9), (5, 6, 7, 4), (3, 2), (5, 6, 7, 8, 1, 1)]
SPANS = [Span(ids, 1) for ids in TOKENS] + [Span((5, 6, 7, 8, 2), 3)]


def test_prefix_tree_holds_each_prefix_once() -> None:
    """Spans 5 6 7 | 5 6 9: the nodes are 5, 6, and that is all, for the last token predicts nothing."""
    batch = prefix_tree([Span((5, 6, 7), 1), Span((5, 6, 9), 2)])
    assert batch.input_ids_BT.tolist() == [[5, 6]]
    assert batch.position_ids_BT.tolist() == [[0, 1]]
    assert visible(batch)[0].tolist() == [[True, False], [True, True]]
    assert batch.position_N.tolist() == [0, 1]
    assert batch.source_E.tolist() == [0, 1, 1]  # 5 -> 6, 6 -> 7, 6 -> 9
    assert batch.token_E.tolist() == [6, 7, 9]
    assert batch.span_E.tolist() == [0, 0, 1]
    assert batch.num_tokens_S.tolist() == [2, 1]


def test_branches_of_the_tree_do_not_see_each_other() -> None:
    """1 2 . and 1 3 .: node 2 (token 3) sees the root and itself, not its sibling."""
    batch = prefix_tree([Span((1, 2, 9), 1), Span((1, 3, 9), 1)])
    assert batch.input_ids_BT.tolist() == [[1, 2, 3]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 1]]
    assert visible(batch)[0, 2].tolist() == [True, False, True]


def test_batches_keep_to_the_budget_and_cover_everything() -> None:
    for layout in (prefix_tree, padded):
        batches = list(layout.packs(SPANS, 4))
        assert sorted(i for batch in batches for i in batch) == list(range(len(SPANS)))
        for batch in batches:
            assert layout([SPANS[i] for i in batch]).input_ids_BT.numel() <= 4 or len(batch) == 1


def test_a_long_tree_becomes_several_rows() -> None:
    """1 2 . | 1 3 . | 4 5 . in rows of three: the second row begins at its own root and is padded."""
    spans = [Span((1, 2, 9), 1), Span((1, 3, 9), 1), Span((4, 5, 9), 1)]
    layout = PrefixTree(row=3)
    batch = layout(spans)
    assert batch.input_ids_BT.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.real_BT.tolist() == [[True, True, True], [True, True, False]]
    assert visible(batch)[1].tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert batch.span_E.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.position_N[batch.source_E].tolist() == [0, 1, 0, 2, 3, 4]
    assert list(layout.packs(spans, 6)) == [[0, 1, 2]]
    assert list(layout.packs(spans, 3)) == [[0, 1], [2]]


def test_a_window_counts_ancestors_not_places_in_the_row() -> None:
    """1 2 3 . | 1 4 . with a window of 2: token 4 (place 3, depth 1) sees its parent 1 and not the root of nothing."""
    batch = PrefixTree(Sight(window=2))([Span((1, 2, 3, 9), 1), Span((1, 4, 9), 1)])
    assert batch.input_ids_BT.tolist() == [[1, 2, 3, 4]]
    assert visible(batch)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    of_layers = PrefixTree(Sight(("full_attention", "sliding_attention"), window=2))([Span((1, 2, 3, 9), 1)])
    assert visible(of_layers, "full_attention")[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert visible(of_layers, "sliding_attention")[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_stereoset_needs_81364_positions(smollm2_tokenizer: Path) -> None:
    """The count of distinct prefixes with a successor, over the 19,176 sentences of the test set."""
    from transformers import AutoTokenizer

    from debias.benchmarks.stereoset import StereoSet

    texts = [c.text for c in StereoSet(BiasBench()).candidates(Tokens(None, "causal"))]
    ids = AutoTokenizer.from_pretrained(smollm2_tokenizer)(texts, add_special_tokens=False).input_ids
    spans = [Span(tuple(i), 1) for i in ids]
    ordered = sorted(span.ids[:-1] for span in spans)
    positions = len(ordered[0]) + sum(len(b) - common_prefix(a, b) for a, b in pairwise(ordered))
    in_rows = sum(int(prefix_tree([spans[i] for i in pack]).real_BT.sum()) for pack in prefix_tree.packs(spans, 512))
    assert len(texts) == 19_176
    assert sum(map(len, ids)) == 194_100
    assert positions == 81_364
    assert positions <= in_rows < 1.02 * positions  # what rows of 512 share no more
