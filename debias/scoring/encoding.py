"""Triplets -> token ids, with the attribute's tokens marked."""

from __future__ import annotations

from collections.abc import Sequence

from debias.data.word_borders import same_word
from debias.records import Encoded, Tokens, Triplet
from debias.scoring.spans import after, mask_id, start_id


def encode(triplets: Sequence[Triplet], tokens: Tokens, start_token: bool = True) -> list[Encoded]:
    """Tokenise sentences and find the tokens that overlap the attribute's characters (its leading space included).

    Args:
        start_token: put the start token in front of every sentence of a causal model; a masked model's texts always
            have their special tokens.

    An attribute for which the tokenizer has no token, such as a control character for BERT's, has an empty span.
    """
    for t in triplets:
        attribute = t.sentence[t.start : t.stop]
        assert not t.attribute or attribute == t.attribute or same_word(attribute, t.attribute), t
    tokenizer, causal = tokens.tokenizer, tokens.kind == "causal"
    encoded = tokenizer(
        [t.sentence for t in triplets],
        add_special_tokens=not causal,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    front = (start_id(tokenizer),) if causal and start_token else ()
    mask = None if causal else mask_id(tokenizer)
    texts = []
    for triplet, ids, offsets in zip(triplets, encoded.input_ids, encoded.offset_mapping, strict=True):
        marked = [k for k, (a, b) in enumerate(offsets) if a < triplet.stop and b > triplet.start]
        rest = after(front[0], ids) if front else tuple(ids)
        moved = len(front) - (len(ids) - len(rest))
        start, stop = (moved + marked[0], moved + marked[-1] + 1) if marked else (0, 0)
        texts.append(Encoded((*front, *rest), start, stop, mask))
    return texts
