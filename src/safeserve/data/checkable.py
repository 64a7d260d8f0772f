"""Adapters of benchmarks whose answers can be checked: multiple choice, and instructions that a program verifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safeserve.data.records import Prompt, user
from safeserve.data.rows import Row, RowError

LETTERS = "ABCDEFGHIJ"


def questions_prompt(row: Row) -> Prompt:
    """Vicuna and MT-Bench: ``turns``, of which the first is asked, and ``category``."""
    turns = row.first("turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0].strip():
        raise RowError('"turns" must be a list of texts.')
    return Prompt(row.id, user(turns[0].strip()), row.label, row.optional("category"), row.reading.benchmark)


def ifeval_prompt(row: Row) -> Prompt:
    """IFEval: ``prompt``, ``instruction_id_list`` and ``kwargs``, one set of arguments an instruction.

    The prompt is kept as it is, because some instructions ask for a verbatim repetition of it.
    """
    ids, arguments = row.first("instruction_id_list"), row.first("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        raise RowError('"instruction_id_list" must be a list of names.')
    if not isinstance(arguments, list) or len(arguments) != len(ids):
        raise RowError('"kwargs" must be a list with one object for each instruction.')
    if not all(isinstance(each, dict) for each in arguments):
        raise RowError('"kwargs" must hold objects.')
    row.text("prompt")
    instructions = [
        {"id": name, "kwargs": {key: value for key, value in each.items() if value is not None}}
        for name, each in zip(ids, arguments, strict=True)
    ]
    category = ids[0].partition(":")[0]
    text = row.values["prompt"]
    return Prompt(row.id, user(text), row.label, category, row.reading.benchmark, meta={"instructions": instructions})


def boolq_prompt(row: Row) -> Prompt:
    """BoolQ: ``passage``, ``question``, ``answer`` (true or false)."""
    answer = row.flag("answer")
    if answer is None:
        raise RowError('no "answer" (true or false).')
    passage, question = row.text("passage"), row.text("question")
    asked = f"{passage}\n\nQuestion: {question}?\nAnswer with one word, yes or no."
    context = f"{row.values['passage']}\nQuestion: {row.values['question']}?\nAnswer:"
    return _choice(row, asked, context, ("no", "yes"), ("no", "yes"), int(answer))


def piqa_prompt(row: Row) -> Prompt:
    """PIQA: ``goal``, ``sol1``, ``sol2``, ``label`` (0 or 1)."""
    row.text("sol1"), row.text("sol2")
    texts = (row.values["sol1"], row.values["sol2"])
    goal = row.text("goal")
    correct = str(row.first("label"))
    if correct not in ("0", "1"):
        raise RowError(f'"label" must be 0 or 1 (found: {row.first("label")!r}; the test split has no answers).')
    asked = _lettered(goal, "Which way is better?", texts)
    return _choice(row, asked, f"Question: {row.values['goal']}\nAnswer:", texts, LETTERS[:2], int(correct))


def openbookqa_prompt(row: Row) -> Prompt:
    """OpenBookQA: ``question_stem``, ``choices`` {text: [...], label: [...]}, ``answerKey`` (a letter)."""
    choices = row.first("choices")
    texts = choices.get("text") if isinstance(choices, dict) else None
    letters = choices.get("label") if isinstance(choices, dict) else None
    if not isinstance(texts, list) or not isinstance(letters, list) or not 1 < len(texts) == len(letters):
        raise RowError('"choices" must hold two lists of one length, text and label.')
    key = row.text("answerKey")
    if key not in letters:
        raise RowError(f'"answerKey" {key} is none of {", ".join(map(str, letters))}.')
    stem = row.text("question_stem")
    asked = _lettered(stem, "Which choice is right?", texts)
    return _choice(row, asked, row.values["question_stem"], texts, LETTERS[: len(texts)], letters.index(key))


def _lettered(question: str, ask: str, texts: Sequence[str]) -> str:
    """The question with its choices under letters, to be answered by one of them."""
    lines = [f"{letter}. {text.strip()}" for letter, text in zip(LETTERS, texts, strict=False)]
    return f"{question}\n\n{ask}\n" + "\n".join(lines) + "\n\nAnswer with one letter."


def _choice(row: Row, asked: str, context: str, texts: Sequence[str], labels: Sequence[str], correct: int) -> Prompt:
    meta: dict[str, Any] = {  # as published: lm-eval scores the blanks around texts too
        "context": context,
        "choices": [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)],
    }
    return Prompt(
        row.id,
        user(asked),
        row.reading.label or "benign",
        benchmark=row.reading.benchmark,
        answers=(labels[correct].lower(),),
        meta=meta,
    )
