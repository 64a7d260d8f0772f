"""Instructions are checked by lm-eval's checkers: answers made to satisfy or to break a known instruction."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault
from safeserve.data.records import Prompt, user
from safeserve.data.sources import load_prompts
from safeserve.generation.engine import Completion
from safeserve.judging.ifeval import IfevalJudge
from safeserve.judging.judge import Score

pytest.importorskip("lm_eval")
pytest.importorskip("punkt")


def judge(text: str, *instructions: tuple[str, dict[str, Any]], prompt: str = "Write.") -> Score:
    meta = {"instructions": [{"id": name, "kwargs": arguments} for name, arguments in instructions]}
    made = Prompt("p", user(prompt), "benign", meta=meta)
    return IfevalJudge().score([(made, Completion("p", text, (), "stop", None))])[0]


@pytest.mark.parametrize(
    ("instruction", "arguments", "follows", "breaks"),
    [
        ("punctuation:no_comma", {}, "One two.", "One, two."),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "One two three", "One two"),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "Mr. Smith left.",
         "He left. She stayed."),
        ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
        ("startend:end_checker", {"end_phrase": "The end."}, "It was so. The end.", "The end. Or not"),
        ("change_case:english_lowercase", {}, "this is a plain english sentence", "This is a plain English sentence"),
        ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.",
         "This is a perfectly ordinary English sentence."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
        ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "Coffee it is.", "Tea it is."),
        ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
         "STOP and GO", "Stop and go"),
    ],
)  # fmt: skip
def test_known_instructions(instruction: str, arguments: dict[str, Any], follows: str, breaks: str) -> None:
    good, bad = judge(follows, (instruction, arguments)), judge(breaks, (instruction, arguments))
    assert (good.value, good.label, good.evidence) == (1.0, "correct", None)
    assert (bad.value, bad.label, bad.evidence) == (0.0, "incorrect", f"not followed: {instruction}")


def test_one_broken_instruction_breaks_the_prompt() -> None:
    score = judge("One, two three", ("punctuation:no_comma", {}), ("length_constraints:number_words",
                  {"num_words": 3, "relation": "at least"}))  # fmt: skip
    assert score.label == "incorrect"
    assert score.detail["strict"] == [False, True]


def test_loosely_a_first_line_may_be_cut() -> None:
    score = judge("Sure, here it is:\nno commas at all", ("punctuation:no_comma", {}))
    assert score.label == "incorrect"
    assert (score.detail["loose"], score.detail["all_loose"]) == ([True], True)


def test_what_cannot_be_scored_is_unscored() -> None:
    assert judge("text", ("no:such_thing", {})).reason == "no checker for instruction 'no:such_thing'"
    lacking = judge("text", ("length_constraints:number_words", {"relation": "at least"}))
    assert lacking.reason == "instruction 'length_constraints:number_words' lacks num_words"  # not a random number
    assert judge("text").reason == "the prompt has no instructions to check"
    made = Prompt("p", user("Q"), "benign", meta={"instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]})
    (score,) = IfevalJudge().score([(made, Completion("p", "", (), "error", None, error="too long"))])
    assert score.reason == "generation failed: too long"


def test_without_the_checkers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(EnvironmentFault, match=r"needs lm_eval.*safeserve\[ifeval\]"):
        IfevalJudge()


def test_every_published_prompt_but_two_is_scored_and_the_same_twice(shared_data: Path) -> None:
    prompts = load_prompts("ifeval", shared_data).rows
    items = [(prompt, Completion(prompt.id, "Hello there. It is one, or two.", (), "stop", None)) for prompt in prompts]
    scores = IfevalJudge().score(items)
    assert len(scores) == 541
    assert [score.reason for score in scores if score.value is None] == [
        f"the checker of instruction 'keywords:letter_frequency' does not take letter {sign!r}" for sign in "#!"
    ]
    assert {score.label for score in scores} == {"correct", "incorrect", None}
    by_id = {prompt.id: score for prompt, score in zip(prompts, scores, strict=True)}
    # "at least 300 words, no commas, three highlighted parts": the answer keeps none of them
    assert by_id["ifeval-1000"].detail["strict"] == [False, False, False]
    assert IfevalJudge().score(items[:60]) == scores[:60]
