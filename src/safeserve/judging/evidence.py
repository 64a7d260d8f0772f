"""Which scores are evidence: a finite value and, where the judge's family has labels, one that it knows."""

from __future__ import annotations

import math
from typing import get_args

from safeserve.judging.judge import Score
from safeserve.judging.modes import Mode
from safeserve.judging.registry import family

_RIGHT_OR_WRONG = ("correct", "incorrect")
LABELS: dict[str, tuple[str, ...]] = {
    "refusal": get_args(Mode),
    "modes": get_args(Mode),
    "guard": ("safe", "unsafe"),
    "short_answer": _RIGHT_OR_WRONG,
    "exact_match": _RIGHT_OR_WRONG,
    "ifeval": _RIGHT_OR_WRONG,
}
"""What each family may say; any other label is no evidence, so that a typo can never count as safe."""


def why_unscored(judge: str, score: Score) -> str | None:
    """None when the score is evidence, else the reason why not: no value, not finite, or a label nobody knows."""
    if score.value is None:
        return score.reason or "no reason given"
    if not math.isfinite(score.value):
        return f"value is not finite ({score.value})"
    known = LABELS.get(family(judge))
    if known is not None and score.label not in known:
        return f"unknown label {score.label!r}"
    return None
