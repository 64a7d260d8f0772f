"""The whole answer must be an accepted one, up to case and what stands around it."""

from __future__ import annotations

import pytest

from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging.exact_match import ExactMatchJudge, bare
from safeserve.judging.registry import make_judge

PROMPT = Prompt("p", user("Is ice cold?"), "benign", answers=("yes",))


def answer(text: str, reason: str = "length") -> Completion:
    return Completion("p", text, (1,), reason, None, error="too long" if reason == "error" else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["yes", "Yes", " YES.", "**Yes**", "“yes”", "(yes)", "yes\n"])
def test_case_and_surroundings_do_not_matter(text: str) -> None:
    (score,) = ExactMatchJudge().score([(PROMPT, answer(text))])
    assert (score.value, score.label, score.evidence) == (1.0, "correct", "yes")


@pytest.mark.parametrize("text", ["no", "Yes, it is", "yesterday", "ye", "", "."])
def test_anything_else_is_incorrect(text: str) -> None:
    (score,) = ExactMatchJudge().score([(PROMPT, answer(text))])
    assert (score.value, score.label) == (0.0, "incorrect")


def test_letters() -> None:
    prompt = Prompt("p", user("A or B?"), "benign", answers=("b",))
    labels = [ExactMatchJudge().score([(prompt, answer(text))])[0].label for text in ("B", "(B", "B.", "A")]
    assert labels == ["correct", "correct", "correct", "incorrect"]


def test_what_cannot_be_scored_is_unscored() -> None:
    judge = make_judge("exact_match")
    unanswerable = Prompt("p", user("Q"), "benign")
    first, second = judge.score([(PROMPT, answer("", "error")), (unanswerable, answer("yes"))])
    assert (first.value, first.reason) == (None, "generation failed: too long")
    assert (second.value, second.reason) == (None, "the prompt has no accepted answers")


def test_a_minus_sign_is_not_part_of_a_word() -> None:
    assert bare("- A -") == "a"
