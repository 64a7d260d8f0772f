"""H1: wrong pairings are found from the texts, and right ones are left alone."""

from __future__ import annotations

import json
import random

import pytest

from safeserve.evaluation import alignment
from safeserve.evaluation.alignment import can_tell, likeness, misaligned

SUBJECTS = [
    "volcano", "harbour", "violin", "glacier", "orchard", "bicycle", "lantern", "compass", "saddle", "beehive",
    "quarry", "theatre", "windmill", "cathedral", "aquarium", "carpet", "tunnel", "monastery", "pottery", "telescope",
]  # fmt: skip
PROMPTS = [
    f"Explain how a {subject} is looked after in {place}." for subject in SUBJECTS for place in ("Peru", "Wales")
]
ANSWERS = [f"In {place} people clean the {subject} every spring and keep it dry."
           for subject in SUBJECTS for place in ("Peru", "Wales")]  # fmt: skip


def test_likeness_is_the_weighted_share_of_the_prompts_words():
    fit = likeness(["red apple", "red pear"], ["an apple", "nothing"])
    # "red" stands in both of two prompts, "apple" in one: weights log(3/2) and log(3).
    assert fit[0, 0] == pytest.approx(1.0986123 / (1.0986123 + 0.4054651))
    assert fit[0, 1] == 0
    assert fit[1].tolist() == [0, 0]


def test_right_pairs_are_left_alone():
    assert misaligned(PROMPTS, ANSWERS) is None
    assert misaligned(PROMPTS, ANSWERS, expected=PROMPTS) is None


def test_an_index_that_starts_again_is_found_with_and_without_the_benchmark():
    prompts = PROMPTS[:25] + PROMPTS[:15]
    for expected in ((), PROMPTS):
        found = misaligned(prompts, ANSWERS, expected)
        assert found is not None
        assert found.rows == tuple(range(25, 40))


def test_of_many_rows_a_part_tells_the_same(monkeypatch):
    monkeypatch.setattr(alignment, "MOST", 20)
    found = misaligned(PROMPTS[:25] + PROMPTS[:15], ANSWERS)
    assert found is not None
    assert found.rows == tuple(range(25, 40))
    assert misaligned(PROMPTS + PROMPTS, ANSWERS + [answer + " Often." for answer in ANSWERS]) is None


def test_whether_anything_can_be_told_is_known_from_the_prompts(monkeypatch):
    assert not can_tell(PROMPTS[:4], 4, ())
    assert can_tell(PROMPTS, 40, ())
    monkeypatch.setattr(alignment, "MOST", 20)
    assert not can_tell(PROMPTS, 40, ())
    assert not can_tell(PROMPTS[:36] + PROMPTS[:4], 40, ())
    assert can_tell([*PROMPTS[:35], *PROMPTS[:5]], 40, ())
    assert can_tell(PROMPTS, 40, PROMPTS), "the expected order is known"
    assert not can_tell(PROMPTS, 40, PROMPTS[:39])


def test_a_shift_is_found():
    found = misaligned(PROMPTS, ANSWERS[1:] + ANSWERS[:1])
    assert found is not None
    assert "1 rows further on" in found.how
    assert len(found.rows) >= 35


def test_a_shuffled_file_is_found():
    shuffled = random.Random(3).sample(ANSWERS, len(ANSWERS))
    found = misaligned(PROMPTS, shuffled)
    assert found is not None
    assert len(found.rows) >= 10


@pytest.mark.parametrize(
    "answers",
    [
        ["I'm sorry, but I can't help with that."] * 40,  # refusals fit no prompt at all
        ["In Peru people clean the volcano every spring."] * 40,  # one answer to everything is H8's, not a wrong pair
        [""] * 40,
    ],
)
def test_answers_that_tell_nothing_are_no_misalignment(answers):
    assert misaligned(PROMPTS, answers) is None
    assert misaligned(PROMPTS[:20] * 2, answers) is None


def test_several_samples_of_a_prompt_are_no_misalignment():
    again = [answer.replace("every spring", "once a year") for answer in ANSWERS]
    assert misaligned(PROMPTS * 2, ANSWERS + again) is None


def test_another_order_of_the_same_prompts_is_no_misalignment():
    order = random.Random(4).sample(range(40), 40)
    assert misaligned([PROMPTS[i] for i in order], [ANSWERS[i] for i in order], expected=PROMPTS) is None


def test_exactly_the_78_wrong_rows_of_the_papers_dpo_answers(shared_data):
    benchmark = json.loads((shared_data / "benchmarks" / "I-CoNa.json").read_text())["instructions"]
    file = json.loads((shared_data / "paper_outputs" / "DPO__DPO_LLAMA-7B__I-CoNa.json").read_text())
    for expected in ((), benchmark):
        found = misaligned(file["instruction"], file["response"], expected)
        assert found is not None
        assert found.rows == tuple(range(100, 178))


def test_the_papers_other_files_are_left_alone(shared_data):
    for path in sorted((shared_data / "paper_outputs").glob("*I-*.json")):
        file = json.loads(path.read_text())
        prompts = file.get("instructions") or file["instruction"]
        answers = file.get("outputs") or file["response"]
        assert (misaligned(prompts, answers) is not None) == (path.name == "DPO__DPO_LLAMA-7B__I-CoNa.json"), path.name
