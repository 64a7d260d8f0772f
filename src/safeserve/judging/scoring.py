"""Score many answers with one judge into a file: each text of a prompt once, in parts that a killed process resumes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.core.runs import read_jsonl, write_jsonl
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Judge, Score

PART = 512
"""Answers a part: what a killed process may have to score again."""
Item = tuple[Prompt, Completion]
Key = tuple[str, str, str]


def key_of(prompt: Prompt, completion: Completion) -> Key:
    """What makes two answers one: prompt, text, and how they ended, which flags tell (``truncated``)."""
    return prompt.id, completion.text, completion.finish_reason


def score_row(completion: Completion, score: Score) -> dict[str, Any]:
    """One line of ``scores/JUDGE.jsonl``."""
    return {
        "id": completion.id,
        "k": completion.k,
        "value": score.value,
        "label": score.label,
        "reason": score.reason,
        "flags": list(score.flags),
        "evidence": score.evidence,
        "detail": score.detail,
    }


def score_of(row: dict[str, Any]) -> Score:
    """The Score in a line that :func:`score_row` made."""
    return Score(row["value"], row["label"], row["reason"], tuple(row["flags"]), row["evidence"], row["detail"])


def scores_of(judge: Judge, items: Sequence[Item]) -> list[Score]:
    """The judge's scores of ``items``, one for each; which of them are evidence says ``evidence.why_unscored``.

    Raises:
        UserError: an own judge returned another number of scores.
    """
    scores = judge.score(items)
    if len(scores) != len(items):
        raise UserError(f"judge {judge.name}: {len(scores)} scores for {len(items)} answers. Return one for each.")
    return scores


def checked_scores(judge: Judge, items: Sequence[Item]) -> list[Score]:
    """The judge's scores of ``items``, one for each, as they are kept.

    Raises:
        UserError: an own judge returned another number of scores or a value that is not finite.
    """
    scores = scores_of(judge, items)
    for (_, completion), score in zip(items, scores, strict=True):
        if score.value is not None and not math.isfinite(score.value):
            raise UserError(
                f'judge {judge.name}: value {score.value} for id "{completion.id}" is not finite. '
                "Return None with a reason for what cannot be scored."
            )
    return scores


def score_to(
    judge: Judge, items: Sequence[Item], folder: Path, known: Mapping[Key, Score] | None = None
) -> list[Score]:
    """Scores of ``items`` in their order, written to ``folder/scores/JUDGE.jsonl``; what is there is not made again.

    Equal answers to one prompt that ended alike are scored once. The caller sees to it that a folder belongs to one
    judge of that name, as a stage does with its inputs.

    Args:
        known: scores by the same judge, which are taken as they are.

    Raises:
        UserError: see :func:`checked_scores`.
    """
    path = folder / "scores" / f"{judge.name}.jsonl"
    if path.exists():
        return [score_of(row) for row in read_jsonl(path)]
    made = dict(known or {})
    unique = {key_of(prompt, c): (prompt, c) for prompt, c in reversed(items)}
    ordered = [(key, item) for key, item in reversed(unique.items()) if key not in made]
    parts = folder / "scores" / f"{judge.name}.parts"
    for number in range(0, len(ordered), PART):
        keys = [key for key, _ in ordered[number : number + PART]]
        part = parts / f"{number // PART:05d}-{stable_hash([judge.identity, keys])}.jsonl"
        if not part.exists():
            found = [item for _, item in ordered[number : number + PART]]
            scores = checked_scores(judge, found)
            write_jsonl(part, (score_row(c, score) for (_, c), score in zip(found, scores, strict=True)))
        made.update(zip(keys, map(score_of, read_jsonl(part)), strict=True))
    result = [made[key_of(prompt, c)] for prompt, c in items]
    write_jsonl(path, (score_row(c, score) for (_, c), score in zip(items, result, strict=True)))
    shutil.rmtree(parts, ignore_errors=True)
    return result
