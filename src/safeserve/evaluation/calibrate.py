"""Measure a judge on labelled answers and keep the result by the judge's identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import SETS, identity
from safeserve.data.labels_file import labelled_answers
from safeserve.evaluation.blind_labels import join_labels
from safeserve.judging.calibration import Question, is_labelled, measure, question_for
from safeserve.judging.calibration_store import save, score_labelled
from safeserve.judging.judge import Judge
from safeserve.judging.registry import make_judge


def calibrate(
    judge: str | Judge,
    labels: str,
    answers: Sequence[str] = (),
    root: str | Path | None = None,
    limit: int | None = None,
    question: Question | None = None,
    use: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Agreement of a judge with a labelled set; see ``judging.calibration.measure`` for what it holds.

    Args:
        judge: a judge, or the name of one.
        labels: a labelled set by name, or a file of labels.
        answers: evaluations that hold the answers of a file of labels without text.
        root: folder with the public data sets.
        limit: read so many answers, drawn evenly; then nothing is kept.
        question: what to ask of labels that answer both questions; by default what the judge's family is for.
        use: correct reported rates with this calibration.

    Raises:
        UserError: an unknown judge or set, or a file that cannot be read.
        EvidenceError: too little was scored.
    """
    if labels in SETS and SETS[labels].asks == "pair":
        raise UserError(f'labels "{labels}": says which of two answers is better, not what is unsafe or refused.')
    made = make_judge(judge) if isinstance(judge, str) else judge
    rows, lost = join_labels(Path(labels), answers) if answers else (labelled_answers(labels, root), 0)
    asked = question or question_for(made.name, rows)
    rows = _drawn([row for row in rows if is_labelled(row, asked)], limit)
    scores = score_labelled(made, rows, asked, quiet)
    declared = SETS.get(labels)
    result = {
        "judge": made.name,
        "identity": made.identity,
        "labels": labels if declared else Path(labels).stem,
        "labels_identity": identity(rows),
        "licence": declared.licence if declared else None,
        "labels_without_answer": lost,
        **measure(made.name, rows, scores, asked),
    }
    if limit is None:
        save(made, result["labels"], result, use)
    return result


def _drawn(rows: list[LabelledAnswer], limit: int | None) -> list[LabelledAnswer]:
    """At most ``limit`` rows by the hash of their id, in the set's order: no corner of it is left out."""
    if limit is None or limit >= len(rows):
        return rows
    by_hash = sorted(range(len(rows)), key=lambda i: hashlib.sha256(rows[i].id.encode()).digest())
    return [rows[i] for i in sorted(by_hash[:limit])]
