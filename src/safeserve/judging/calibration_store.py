"""Where scores of labelled answers and the calibrations made of them are kept, by judge identity.

Below the cache folder: ``calibration/scores/JUDGE-LABELS.jsonl`` (so that an interrupted run goes on, and a second one
asks again only about what could not be scored) and ``calibration/JUDGE.json`` (every set the judge was measured on, and
which of them corrects rates).
Calibrations of shipped judges are packaged beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import disk_errors, lock, read_json, write_json
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging.calibration import Question
from safeserve.judging.judge import Judge, Score
from safeserve.models.embedded import cache_dir

_FORM = 2
"""Of the lines that hold scores."""
_CHUNK = 128
"""Answers judged between two writes: what an interruption loses."""


def score_labelled(
    judge: Judge, rows: Sequence[LabelledAnswer], question: Question, quiet: bool = False
) -> list[Score]:
    """One score for each row, from the cache where this judge has scored the same answers before.

    Raises:
        UserError: the judge returns another number of scores than answers.
        EnvironmentFault: the cache cannot be written, or another process is scoring the same.
    """
    label = "benign" if question == "refusal" else "harmful"
    key = stable_hash([_FORM, label, [[row.prompt, row.response, *row.before] for row in rows]])
    path = _folder() / "scores" / f"{judge.identity}-{key}.jsonl"
    with lock(path.with_suffix(".lock.d")):
        scores = _read(path)
        missing = [number for number in range(len(rows)) if number not in scores]
        if not missing:
            return [scores[number] for number in range(len(rows))]
        # Written again without a half line that an interruption left.
        with disk_errors(path):
            path.write_text("".join(_line(*entry) for entry in scores.items()), encoding="utf-8")
        with (
            Progress(f"{judge.name} reads labelled answers", len(rows), unit="answers", quiet=quiet) as progress,
            disk_errors(path),
            path.open("a", encoding="utf-8") as file,
        ):
            progress.skip(len(scores))
            for start in range(0, len(missing), _CHUNK):
                part = missing[start : start + _CHUNK]
                found = judge.score([_item(rows[number], question) for number in part])
                if len(found) != len(part):
                    raise UserError(f"judge {judge.name}: {len(found)} scores for {len(part)} answers.")
                scores.update(zip(part, found, strict=True))
                # What could not be scored is not kept: a server that failed may answer next time.
                file.write("".join(_line(n, scores[n]) for n in part if scores[n].value is not None))
                file.flush()
                progress.advance(len(part), len(part))
    return [scores[number] for number in range(len(rows))]


def save(judge: Judge, labels: str, result: dict[str, Any], use: bool) -> Path:
    """Keep a calibration; with ``use`` it is the one that corrects rates for its question from now on."""
    path = _folder() / f"{judge.identity}.json"
    with lock(path.with_suffix(".lock.d")):
        content: dict[str, Any] = {"judge": judge.name, "identity": judge.identity, "sets": {}}
        if path.is_file():
            content = read_json(path)
        content["sets"][labels] = result
        if use:
            content.setdefault("use", {})[result["question"]] = labels
        write_json(path, content)
    return path


def kept(identity: str) -> list[dict[str, Any]]:
    """Every calibration of the judge of this identity, as :func:`save` was given it; the user's hide packaged ones."""
    found: dict[str, dict[str, Any]] = {}
    for source in _sources(identity):
        found = {**read_json(source).get("sets", {}), **found}
    return list(found.values())


def in_use(identity: str, question: Question) -> dict[str, Any] | None:
    """The calibration that corrects rates of the judge of this identity, the user's choice before a packaged one."""
    for source in _sources(identity):
        content = read_json(source)
        name = content.get("use", {}).get(question)
        if name in content.get("sets", {}):
            return {**content["sets"][name], "labels": name}
    return None


def _sources(identity: str) -> list[Path]:
    """The files that hold calibrations of a judge: the user's, then the packaged one."""
    packaged = resources.files("safeserve.judging") / "calibrations" / f"{identity}.json"
    return [path for path in (_folder() / f"{identity}.json", Path(str(packaged))) if path.is_file()]


def _folder() -> Path:
    return cache_dir() / "calibration"


def _item(row: LabelledAnswer, question: Question) -> tuple[Prompt, Completion]:
    prompt = Prompt(row.id, (*row.before, *user(row.prompt)), "benign" if question == "refusal" else "harmful")
    return prompt, Completion(row.id, row.response, (), "stop", None)


def _line(number: int, score: Score) -> str:
    kept = {"row": number, "value": score.value, "label": score.label, "detail": score.detail}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[int, Score]:
    """Scores by the number of their row; an interruption may have cut the last line."""
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    return {row["row"]: Score(row["value"], row["label"], detail=row["detail"]) for row in rows}
