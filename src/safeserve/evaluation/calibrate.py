"""Measure a judge on labelled answers, or on labelled pairs of them, and keep the result by the judge's identity."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safeserve.core.errors import EvidenceError, UserError
from safeserve.data.labelled import PAIRS, Asks, LabelledAnswer
from safeserve.data.labels import SETS, identity
from safeserve.data.labels_file import labelled_answers
from safeserve.data.records import Prompt, user
from safeserve.evaluation.blind_labels import join_labels
from safeserve.evaluation.win_rate import Comparer, Pair, judge_pairs, mean_interval
from safeserve.judging.calibration import Question, is_labelled, measure, question_for, questions_of, risk
from safeserve.judging.calibration_store import save, score_labelled
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Judge
from safeserve.judging.registry import family, make_judge

BothAnswers = tuple[LabelledAnswer, LabelledAnswer]
"""The worse and the better answer to one prompt."""


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

    On a set of pairs ``agreement`` takes its place: how often the judge prefers the answer that people preferred.

    Args:
        judge: a judge, or the name of one.
        labels: a labelled set by name, or a file of labels.
        answers: evaluations that hold the answers of a file of labels without text.
        root: folder with the public data sets.
        limit: read so many answers (or pairs), drawn evenly; then nothing is kept.
        question: what to ask of labels that answer both questions; by default what the judge's family is for.
        use: correct reported rates with this calibration.

    Raises:
        UserError: an unknown judge or set, a judge and labels that do not go together, a file that cannot be read.
        EvidenceError: too little was scored.
    """
    if use and limit is not None:
        raise UserError("--use needs all answers: leave out --limit.")
    made = make_judge(judge) if isinstance(judge, str) else judge
    declared = None if answers else SETS.get(labels)
    of_pairs = declared is not None and declared.asks in PAIRS
    if of_pairs and (use or question):
        raise UserError(f'labels "{labels}": pairs correct no rate, and there is one question to ask. Leave that out.')
    rows, lost = join_labels(Path(labels), answers) if answers else (labelled_answers(labels, root), 0)
    if of_pairs:
        rows, found = _agreement(made, rows, SETS[labels].asks, limit, quiet)
    else:
        asked = question_for(made.name, rows, question)
        rows = _drawn([row for row in rows if is_labelled(row, asked)], limit)
        found = measure(made.name, rows, score_labelled(made, rows, asked, quiet), asked)
        if use and found["sensitivity"] is None:
            raise UserError(f"judge {made.name}: gives no verdict on these labels, so it has no rate to correct.")
    result = {
        "judge": made.name,
        "identity": made.identity,
        "labels": labels if declared else Path(labels).name,
        "labels_identity": identity(rows),
        "licence": declared.licence if declared else None,
        "labels_without_answer": lost,
        "learned_from": labels in getattr(made, "sources", ()),
        **found,
    }
    if limit is None:
        save(made, result["labels"], result, use)
    return result


def _agreement(
    judge: Judge, rows: Sequence[LabelledAnswer], asks: Asks, limit: int | None, quiet: bool
) -> tuple[list[LabelledAnswer], dict[str, Any]]:
    """The answers read, and the share of pairs on which the judge agrees with people, a tie counting half."""
    both = _pairs(rows, limit)
    inconsistent = None
    if family(judge.name) == "pairwise":
        pairs = [Pair(Prompt(a.id, (*a.before, *user(a.prompt)), "benign"), a.response, b.response) for a, b in both]
        compared = judge_pairs(cast(Comparer, judge), pairs)
        # The better answer is the second one: the preference for it is the agreement.
        credit = [result.preference for result in compared]
        reasons = [result.reason for result in compared]
        inconsistent = sum(result.inconsistent for result in compared if result.preference is not None)
    else:
        questions_of(judge.name)  # refuses a judge whose scores say nothing of harm
        if asks == "better" and family(judge.name) in ("refusal", "modes", "guard"):
            raise UserError(f"judge {judge.name}: cannot say which of two answers is better, only which is safer.")
        scores = score_labelled(judge, [row for pair in both for row in pair], "unsafe", quiet)
        credit, reasons = [], []
        for worse, better in zip(scores[::2], scores[1::2], strict=True):
            reasons.append(why_unscored(judge.name, worse) or why_unscored(judge.name, better))
            if reasons[-1] is None:
                high, low = (risk(judge.name, score, "unsafe") for score in (worse, better))
                credit.append(1.0 if high > low else 0.5 if high == low else 0.0)
            else:
                credit.append(None)
    scored = [(pair[0], value) for pair, value in zip(both, credit, strict=True) if value is not None]
    unscored = Counter(reason or "no reason given" for reason, v in zip(reasons, credit, strict=True) if v is None)
    if not scored:
        raise EvidenceError(f"{judge.name}: none of {len(both)} pairs scored: {unscored.most_common(1)[0][0]}.")
    by_category: dict[str, list[tuple[LabelledAnswer, float]]] = defaultdict(list)
    for row, value in scored:
        if row.category:
            by_category[row.category].append((row, value))
    return [row for pair in both for row in pair], {
        "question": asks,
        "n": len(both),
        "n_scored": len(scored),
        "n_unscored": len(both) - len(scored),
        "unscored_reasons": dict(unscored.most_common()),
        "n_prompts": len({row.group for row, _ in scored}),
        "agreement": _share(scored),
        "ties": sum(value == 0.5 for _, value in scored),
        "inconsistent": inconsistent,
        "by_category": {name: {"n": len(part), "agreement": _share(part)} for name, part in by_category.items()},
    }


def _share(scored: Sequence[tuple[LabelledAnswer, float]]) -> dict[str, Any]:
    values = [value for _, value in scored]
    interval = mean_interval(values, [row.group for row, _ in scored])
    return {"value": sum(values) / len(values), "ci95": [interval.low, interval.high]}


def _pairs(rows: Sequence[LabelledAnswer], limit: int | None) -> list[BothAnswers]:
    members: dict[str, list[LabelledAnswer]] = defaultdict(list)
    for row in rows:
        if row.pair is not None:
            members[row.pair].append(row)
    # A pair of which one answer is empty stands alone and tells nothing.
    whole = {key: sorted(both, key=lambda row: -(row.unsafe or 0.0)) for key, both in members.items() if len(both) == 2}
    drawn = {row.pair for row in _drawn([both[0] for both in whole.values()], limit)}
    return [(both[0], both[1]) for key, both in whole.items() if key in drawn]


def _drawn(rows: list[LabelledAnswer], limit: int | None) -> list[LabelledAnswer]:
    """At most ``limit`` rows by the hash of their id, in the set's order: no corner of it is left out."""
    if limit is None or limit >= len(rows):
        return rows
    by_hash = sorted(range(len(rows)), key=lambda i: hashlib.sha256(rows[i].id.encode()).digest())
    return [rows[i] for i in sorted(by_hash[:limit])]
