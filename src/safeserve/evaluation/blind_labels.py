"""Labels that hold no text: keyed by prompt id and answer hash, joined with the answers of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from safeserve.core.errors import UserError
from safeserve.core.runs import iter_jsonl
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import label_key
from safeserve.evaluation.folder import find_eval, read_eval
from safeserve.evaluation.metrics import REFUSALS
from safeserve.judging.modes import Mode


def join_labels(file: Path, targets: Sequence[str]) -> tuple[list[LabelledAnswer], int]:
    """Labelled answers from a file of ``{"key", "mode"}`` lines and the evaluations that hold the answers.

    On a harmful prompt the label says whether the answer is unsafe, on a benign one whether it refuses.

    Args:
        file: the labels.
        targets: RUN:MODEL or evals/MODEL folders.

    Returns:
        The answers found, and how many labels found none.

    Raises:
        UserError: a line without key or mode, an unknown mode, or no answer found at all.
    """
    modes: dict[str, str] = {}
    for number, row in iter_jsonl(file):
        if row.get("mode") not in get_args(Mode) or not isinstance(row.get("key"), str):
            raise UserError(f'{file} line {number}: needs "key" and "mode" (one of {", ".join(get_args(Mode))}).')
        modes[row["key"]] = row["mode"]
    found: dict[str, LabelledAnswer] = {}
    for target in targets:
        for name, part in read_eval(find_eval(target)).benchmarks.items():
            for completion in part.completions.values():
                key = label_key(completion.id, completion.text)
                if key not in modes or not completion.text.strip():
                    continue
                prompt, mode = part.prompts[completion.id], modes[key]
                harmful = prompt.label == "harmful"
                refusal = mode if mode in REFUSALS else "full_compliance"
                found[key] = LabelledAnswer(
                    key,
                    prompt.text,
                    completion.text,
                    unsafe=float(mode == "unsafe_compliance") if harmful else None,
                    refusal=None if harmful else refusal,
                    category=name,
                )
    if not found:
        raise UserError(f"{file}: none of its {len(modes)} keys is an answer of {', '.join(targets)}.")
    return list(found.values()), len(modes) - len(found)
