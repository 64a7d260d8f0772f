"""How much a set of answers repeats itself; apart from ``text``, whose source is part of the rule judges' identity."""

from __future__ import annotations

from collections.abc import Iterable

from safeserve.judging.text import words


def distinct_share(texts: Iterable[str], size: int) -> float | None:
    """Different word n-grams over all word n-grams of the texts (Li et al. 2016, distinct-n); None without any.

    Words are lower-case, without punctuation. The share falls with the amount of text, so compare only answers to the
    same prompts, of about the same length.
    """
    grams = [gram for said in map(words, texts) for gram in zip(*(said[i:] for i in range(size)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None
