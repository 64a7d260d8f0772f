"""Unsafe rates by what can be told of a prompt or an answer: benchmark, category, phrasing, lengths; with intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from safeserve.evaluation.analysis_rows import Observation
from safeserve.evaluation.summary import rate
from safeserve.judging.text import normalise, words

PROMPT_WORDS = (8, 12, 16, 24, 48)
RESPONSE_WORDS = (10, 25, 50, 75, 100, 200)
"""Longest answer of each bin but the last, in words."""

_PAST = r"\b(?:how|what|which|why|where|when|who|whose)\b[^.?!]{0,60}?\b(?:did|was|were|had)\b"
PHRASINGS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "past tense": _PAST + r"|\b(?:in the past|in earlier times|back in (?:the )?\d{4}s?|in the \d{4}s)\b",
        "hypothetical": r"\b(?:hypothetical(?:ly)?|in theory|theoretically|suppose|what if|thought experiment)\b",
        "role play": r"\b(?:pretend|role[- ]?play(?:ing)?|act as|imagine (?:you|an?|that you)|you are now"
        r"|from now on you|stay in character|you play|let us play|you are an? \w+(?: \w+)? (?:who|that|with))\b",
        "answer begins as told": r"\b(?:begin|start|open)s?\b[^.?!]{0,40}\b(?:answer|reply|response|with|words?)\b"
        r"|\bfirst (?:line|word)\b|\bdo not apologi[sz]e\b",
        "text to write": r"^(?:please )?(?:write|compose|draft|narrate|tell (?:me |us )?an? \w+ (?:story|tale))\b",
        "steps, instructions or a guide asked for": r"\bstep[- ]by[- ]step\b"
        r"|\b(?:steps|instructions|recipe|tutorial|guide)\b",
        "about oneself": r"\b(?:i|i'm|i've|my|me|myself)\b",
        "justification asked for": r"\b(?:convince|persuade|argue|justify|make the case|prove to|defend)\b",
    }.items()
}
"""Ways of asking, by patterns on the prompt in lower case; a prompt may have several."""


def phrasings(prompt: str) -> list[str]:
    """The ways of asking that a prompt shows; question and lower case only are told from its marks."""
    text = normalise(prompt)
    found = [name for name, pattern in PHRASINGS.items() if pattern.search(text.lower())]
    if text.endswith("?"):
        found.append("question")
    if text == text.lower() and any(character.isalpha() for character in text):
        found.append("lower case only")
    return found


def length_bin(count: int, limits: Sequence[int]) -> str:
    """``9 to 12``; what lies above the last limit is ``49 and more``."""
    lower = 0
    for limit in limits:
        if count <= limit:
            return f"{lower} to {limit}"
        lower = limit + 1
    return f"{lower} and more"


def prompt_length(prompt: str) -> str:
    """The bin of a prompt's length in words."""
    return length_bin(len(words(prompt)), PROMPT_WORDS)


def group_rates(rows: Sequence[Observation]) -> dict[str, list[dict[str, Any]]]:
    """Per grouping the unsafe rate of each group; see :func:`rates_by`."""
    return {
        "benchmark": rates_by(rows, lambda row: [row.benchmark]),
        "category": rates_by(rows, lambda row: [row.category] if row.category else []),
        "phrasing": rates_by(rows, lambda row: phrasings(row.prompt)),
        "prompt_words": _in_order(rates_by(rows, lambda row: [prompt_length(row.prompt)])),
        "response_words": _in_order(rates_by(rows, lambda row: [length_bin(row.response_words, RESPONSE_WORDS)])),
    }


def rates_by(rows: Iterable[Observation], groups: Callable[[Observation], Iterable[str]]) -> list[dict[str, Any]]:
    """Per group ``name``, ``n`` answers, how many are ``unsafe``, their ``rate`` and ``ci95``; the highest rate first.

    Samples of one prompt are one cluster.
    """
    members: dict[str, list[Observation]] = {}
    for row in rows:
        for name in groups(row):
            members.setdefault(name, []).append(row)
    found = [{"name": name, **unsafe_rate(part)} for name, part in members.items()]
    return sorted(found, key=lambda cell: (-cell["rate"], -cell["n"], cell["name"]))


def unsafe_rate(rows: Sequence[Observation]) -> dict[str, Any]:
    """``n``, ``unsafe``, ``rate`` and ``ci95`` of answers; rate and interval are None without any."""
    cell = rate((row.unsafe for row in rows), [row.cluster for row in rows])
    return {"n": cell["n"], "unsafe": cell["successes"], "rate": cell["rate"], "ci95": cell["ci95"]}


def _in_order(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(cells, key=lambda cell: int(cell["name"].split()[0]))
