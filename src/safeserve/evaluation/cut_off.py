"""Which answers were cut at a length limit, told from their texts alone: for answers whose decoding nobody recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence

NEAR_LIMIT = 0.7
"""A cut answer is at least this share of the longest ones: tokens are guessed from words, so the limit is blurred."""
FEWEST = 10
"""Below so many answers nothing is said about a limit."""
_PIECE = re.compile(r"\w+|[^\w\s]")
_ENDS = re.compile(r"""[.!?:;。！？…)\]}"'”’»`*|>][\s)\]}"'”’»*`]*$|[\U0001F300-\U0001FAFF☀-➿]\s*$""")


def approximate_length(text: str) -> int:
    """Words and punctuation marks: near the number of tokens, in the same unit for every answer."""
    return len(_PIECE.findall(text))


def ends_mid_sentence(text: str) -> bool:
    """No punctuation, bracket, quotation mark or emoji closes the text. An empty text does not end mid-sentence."""
    text = text.rstrip()
    return bool(text) and not _ENDS.search(text)


def cut_off(texts: Sequence[str]) -> list[bool]:
    """For each answer whether it ends mid-sentence near the length at which the longest answers of the set end.

    The limit is taken as the 98th percentile of the approximate lengths. Short answers without a final stop ("Paris")
    stay far below it; in a set of short answers only, mid-sentence endings say nothing, so below 20 pieces nothing is
    called cut.
    """
    lengths = [approximate_length(text) for text in texts]
    if len(texts) < FEWEST:
        return [False] * len(texts)
    limit = sorted(lengths)[int(0.98 * (len(lengths) - 1))]
    near = max(20.0, NEAR_LIMIT * limit)
    return [length >= near and ends_mid_sentence(text) for text, length in zip(texts, lengths, strict=True)]
