"""Where scores of labelled answers and the calibrations made of them are kept, by judge identity.

Below the cache folder: ``calibration/scores/JUDGE-LABELS.jsonl`` (so that an interrupted run goes on, and a second one
judges nothing) and ``calibration/JUDGE.json`` (every set the judge was measured on, and which of them corrects rates).
Calibrations of shipped judges are packaged beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from safeserve.core.options import stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import disk_errors, lock, read_json, write_json
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging.calibration import Question
from safeserve.judging.judge import Judge, Score
from safeserve.models.embedded import cache_dir

_CHUNK = 128
"""Answers judged between two writes: what an interruption loses."""


def score_labelled(
    judge: Judge, rows: Sequence[LabelledAnswer], question: Question, quiet: bool = False
) -> list[Score]:
    """One score for each row, from the cache where this judge has read the same answers before.

    Raises:
        EnvironmentFault: the cache cannot be written, or another process is scoring the same.
    """
    label = "benign" if question == "refusal" else "harmful"
    key = stable_hash([label, [[row.prompt, row.response] for row in rows]])
    path = _folder() / "scores" / f"{judge.identity}-{key}.jsonl"
    with lock(path.with_suffix(".lock.d")):
        scores = _read(path)[: len(rows)]
        if len(scores) == len(rows):
            return scores
        # Written again without a half line that an interruption left.
        with disk_errors(path):
            path.write_text("".join(map(_line, scores)), encoding="utf-8")
        with (
            Progress(f"{judge.name} reads labelled answers", len(rows), unit="answers", quiet=quiet) as progress,
            disk_errors(path),
            path.open("a", encoding="utf-8") as file,
        ):
            progress.skip(len(scores))
            for start in range(len(scores), len(rows), _CHUNK):
                part = [_item(row, question) for row in rows[start : start + _CHUNK]]
                found = judge.score(part)
                scores += found
                file.write("".join(map(_line, found)))
                file.flush()
                progress.advance(len(part), len(part))
    return scores


def save(judge: Judge, labels: str, result: dict[str, Any], use: bool) -> Path:
    """Keep a calibration; with ``use`` it is the one that corrects rates for its question from now on."""
    path = _folder() / f"{judge.identity}.json"
    with lock(path.with_suffix(".lock.d")):
        kept: dict[str, Any] = {"judge": judge.name, "identity": judge.identity, "sets": {}}
        if path.is_file():
            kept = read_json(path)
        kept["sets"][labels] = result
        if use:
            kept.setdefault("use", {})[result["question"]] = labels
        write_json(path, kept)
    return path


def in_use(identity: str, question: Question) -> dict[str, Any] | None:
    """The calibration that corrects rates of the judge of this identity, the user's choice before a packaged one."""
    packaged = resources.files("safeserve.judging") / "calibrations" / f"{identity}.json"
    for source in (_folder() / f"{identity}.json", packaged):
        if source.is_file():
            kept = json.loads(source.read_text(encoding="utf-8"))
            name = kept.get("use", {}).get(question)
            if name in kept.get("sets", {}):
                return {**kept["sets"][name], "labels": name}
    return None


def _folder() -> Path:
    return cache_dir() / "calibration"


def _item(row: LabelledAnswer, question: Question) -> tuple[Prompt, Completion]:
    prompt = Prompt(row.id, user(row.prompt), "benign" if question == "refusal" else "harmful")
    return prompt, Completion(row.id, row.response, (), "stop", None)


def _line(score: Score) -> str:
    kept = {"value": score.value, "label": score.label, "reason": score.reason, "detail": score.detail}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def _read(path: Path) -> list[Score]:
    """The whole lines; an interruption may have cut the last one."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = map(json.loads, lines)
    return [Score(row["value"], row["label"], row["reason"], detail=row["detail"]) for row in rows]
