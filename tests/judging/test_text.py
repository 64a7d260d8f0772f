"""Normalisation, sentences, quotations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.judging.diversity import distinct_share
from safeserve.judging.text import list_items, normalise, sentences, unquoted, words


def test_normalise_one_spelling_of_quotes_spaces_and_dashes() -> None:
    assert normalise(" I’m\u200b  “sure” –\u00a0yes…\r\n ok ") == 'I\'m "sure" - yes...\nok'


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_sentences_break_at_stops_and_lines_not_at_abbreviations_or_decimals() -> None:
    assert sentences("Ask Dr. Smith. It costs 8.5 dollars! Really?\n- one\n- two") == [
        "Ask Dr. Smith.",
        "It costs 8.5 dollars!",
        "Really?",
        "- one",
        "- two",
    ]


def test_unquoted_blanks_quotations_at_equal_length() -> None:
    text = 'He said "I can\'t help" and left.'
    assert unquoted(text).split() == ["He", "said", "and", "left."]
    assert len(unquoted(text)) == len(text)
    assert unquoted('"I can\'t help."').strip() == "I can't help."


def test_words_and_list_items() -> None:
    assert words("It's 3 o'clock-ish, no?") == ["it's", "3", "o'clock", "ish", "no"]
    assert list_items("Do:\n1. this\n2) that\n* more\n3.5 is a number") == ["1. this", "2) that", "* more"]


def test_distinct_by_hand() -> None:
    texts = ["a b a b", "a c"]
    assert distinct_share(texts, 1) == pytest.approx(3 / 6)
    assert distinct_share(texts, 2) == pytest.approx(3 / 4)  # ab, ba, ab, ac
    assert distinct_share(["A b.", "a, b"], 1) == pytest.approx(2 / 4), "neither case nor punctuation counts"
    assert distinct_share(["", "!"], 1) is None
    assert distinct_share(["", "a"], 2) is None
