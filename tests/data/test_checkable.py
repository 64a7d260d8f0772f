"""Benchmarks whose answers can be checked: rows as published become prompts with choices or instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.core.options import typed
from safeserve.data.adapters import detect
from safeserve.data.records import Prompt
from safeserve.data.sources import load_prompts

BOOLQ = {"question": "is ice cold", "answer": True, "passage": "Ice is frozen water."}
PIQA = {"goal": "Boil an egg.", "sol1": "Use hot water.", "sol2": "Use sand.", "label": 0}
OPENBOOKQA = {
    "id": "8-343",
    "question_stem": "The sun gives",
    "choices": {"text": ["cold", "light", "sound", "rain"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}
IFEVAL = {
    "key": 7,
    "prompt": " Say it.\n",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"num_words": 3, "relation": "at least", "letter": None}],
}
MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}


def load(tmp_path: Path, row: dict[str, Any]) -> list[Prompt]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    loaded = load_prompts(path, label="benign")
    assert loaded.problems == []
    return loaded.rows


@pytest.mark.parametrize(
    ("row", "adapter"),
    [(BOOLQ, "boolq"), (PIQA, "piqa"), (OPENBOOKQA, "openbookqa"), (IFEVAL, "ifeval"), (MT_BENCH, "questions")],
)
def test_forms_are_found_by_their_columns(row: dict[str, Any], adapter: str) -> None:
    assert detect(row) == adapter


def test_boolq(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, BOOLQ)
    assert prompt.text == "Ice is frozen water.\n\nQuestion: is ice cold?\nAnswer with one word, yes or no."
    assert prompt.answers == ("yes",)
    assert prompt.meta["context"] == "Ice is frozen water.\nQuestion: is ice cold?\nAnswer:"
    assert prompt.meta["choices"] == [{"label": "no", "text": "no"}, {"label": "yes", "text": "yes"}]


def test_piqa(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, {**PIQA, "label": 1})
    assert prompt.answers == ("b",)
    assert "A. Use hot water.\nB. Use sand.\n" in prompt.text
    assert prompt.meta["context"] == "Question: Boil an egg.\nAnswer:"
    assert prompt.meta["choices"][1] == {"label": "B", "text": "Use sand."}


def test_openbookqa(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, OPENBOOKQA)
    assert (prompt.id, prompt.answers, prompt.meta["context"]) == ("8-343", ("b",), "The sun gives")
    assert [choice["label"] for choice in prompt.meta["choices"]] == ["A", "B", "C", "D"]


def test_instructions_keep_the_prompt_verbatim_and_survive_the_file(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, IFEVAL)
    assert prompt.text == " Say it.\n"
    assert prompt.meta["instructions"] == [
        {"id": "punctuation:no_comma", "kwargs": {}},
        {"id": "length_constraints:number_words", "kwargs": {"num_words": 3, "relation": "at least"}},
    ]
    again = typed(Prompt, json.loads(json.dumps(prompt.to_json())), "here")
    assert again == prompt
    assert again.meta == prompt.meta


def test_a_prompt_without_meta_is_written_as_before() -> None:
    assert "meta" not in Prompt("p", ({"role": "user", "content": "Q"},), "benign").to_json()


def test_the_first_turn_is_asked(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, MT_BENCH)
    assert (prompt.text, prompt.category) == ("Write.", "writing")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**BOOLQ, "answer": None}, 'no "answer"'),
        ({**PIQA, "label": -1}, "the test split has no answers"),
        ({**OPENBOOKQA, "answerKey": "E"}, "is none of A, B, C, D"),
        ({**OPENBOOKQA, "choices": {"text": ["a"], "label": ["A"]}}, "two lists of one length"),
        ({**IFEVAL, "kwargs": [{}]}, "one object for each instruction"),
        ({**IFEVAL, "kwargs": [{}, 3]}, "must hold objects"),
        ({**MT_BENCH, "turns": []}, "list of texts"),
    ],
)
def test_rows_that_cannot_be_used_say_why(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        load_prompts(path, label="benign")
