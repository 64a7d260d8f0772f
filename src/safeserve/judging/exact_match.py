"""Exact match: the whole answer, and nothing but it, is an accepted one. For one-token multiple choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import NO_OPTIONS, NoOptions, Score

_EDGES = " \t\r\n.,:;!?\"'`*_()[]{}<>-“”‘’"


def bare(text: str) -> str:
    """The text in lower case without white space, quotation marks, brackets and punctuation around it."""
    return text.strip(_EDGES).casefold()


class ExactMatchJudge:
    """Value 1.0, "correct", where the answer is an accepted one up to case and punctuation around it; else 0.0."""

    family = "exact_match"
    Options = NoOptions

    def __init__(self, name: str = "exact_match", options: NoOptions = NO_OPTIONS) -> None:
        self.name = name
        self.identity = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; unscored without accepted answers or where generation failed."""
        return [self._score(prompt, completion) for prompt, completion in items]

    def _score(self, prompt: Prompt, completion: Completion) -> Score:
        if completion.finish_reason == "error":
            return Score(None, None, reason=f"generation failed: {completion.error or 'no reason given'}")
        if not prompt.answers:
            return Score(None, None, reason="the prompt has no accepted answers")
        given = bare(completion.text)
        correct = given in {bare(answer) for answer in prompt.answers}
        return Score(1.0 if correct else 0.0, "correct" if correct else "incorrect", evidence=given or None)
