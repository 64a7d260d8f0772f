"""How well a judge agrees with labels: ranking, calibration, and rates corrected for the judge's known errors.

Every function takes ``weights`` where a bootstrap needs it: how often each row was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from safeserve.core.statistics import Interval, wilson

Floats = NDArray[np.float64]


def auroc(positive: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Chance that a positive row has a higher value than a negative one, ties counting half (Hanley & McNeil 1982).

    Args:
        positive: yes or no for each row.
        values: higher means more likely positive.
        weights: how often each row counts; once by default.

    Returns:
        Between 0 and 1; nan where one of the two classes is absent.
    """
    yes, no = _by_value(positive, values, weights)
    total = yes.sum() * no.sum()
    if total == 0:
        return math.nan
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / total)


def average_precision(positive: ArrayLike, values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Precision averaged over the gains in recall as the threshold falls, equal values taken together.

    Returns:
        Between 0 and 1; nan without a positive row.
    """
    yes, no = (counts[::-1] for counts in _by_value(positive, values, weights))
    if yes.sum() == 0:
        return math.nan
    true, flagged = np.cumsum(yes), np.cumsum(yes + no)
    precision = np.divide(true, flagged, out=np.zeros_like(true), where=flagged > 0)
    return float((yes * precision).sum() / yes.sum())


def f1(positive: ArrayLike, said: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Harmonic mean of precision and recall; nan where nothing is positive and nothing was called so."""
    truth, call, weight = _binary(positive, said, weights)
    both = float((truth * call * weight).sum())
    total = float(((truth + call) * weight).sum())
    return 2 * both / total if total else math.nan


def kappa(a: ArrayLike, b: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Agreement of two raters beyond chance (Cohen 1960), each giving every row one of any number of labels.

    Returns:
        Kappa, at most 1; nan where both gave one and the same label to everything (chance alone agrees fully).

    Raises:
        ValueError: no rows, or raters with different numbers of them.
    """
    left, right = np.asarray(a), np.asarray(b)
    if len(left) != len(right) or not len(left):
        raise ValueError(f"raters of {len(left)} and {len(right)} rows: nothing to compare")
    labels, index = np.unique(np.concatenate([left, right]), return_inverse=True)
    weight = np.ones(len(left)) if weights is None else np.asarray(weights, dtype=float)
    size = len(labels)
    pairs = index[: len(left)] * size + index[len(left) :]
    table = np.bincount(pairs, weights=weight, minlength=size * size).reshape(size, size)
    total = table.sum()
    chance = float(table.sum(axis=0) @ table.sum(axis=1)) / total**2
    return float((np.trace(table) / total - chance) / (1 - chance)) if chance < 1 else math.nan


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve: what was predicted, and what share of its ``n`` rows is positive."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float
    ci95: Interval


def reliability(positive: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> list[Bin]:
    """Bins with equally many rows (Nguyen & O'Connor 2015), in the order of the predicted probability.

    Equal probabilities stay together, so there may be fewer bins than asked for.
    """
    truth, p = np.asarray(positive, dtype=bool), np.asarray(probabilities, dtype=float)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    index = np.searchsorted(edges, p, side="left")
    curve = []
    for number in np.unique(index):
        rows = index == number
        n, hits = int(rows.sum()), int(truth[rows].sum())
        inside = p[rows]
        curve.append(Bin(float(inside.min()), float(inside.max()), n, float(inside.mean()), hits / n, wilson(hits, n)))
    return curve


def calibration_error(curve: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of predicted and observed share over the rows (Naeini 2015)."""
    return sum(part.n * abs(part.predicted - part.observed) for part in curve) / sum(part.n for part in curve)


def bootstrap_groups(
    statistic: Callable[[Floats], float], groups: Sequence[str], seed: int, resamples: int = 1000
) -> Interval | None:
    """Percentile bootstrap interval (95 %) of a weighted statistic, whole groups resampled with replacement.

    Resamples where the statistic does not exist (nan) are left out; None where more than half of them are.
    """
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in groups])
    rng = np.random.default_rng(seed)
    count = len(numbers)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count).astype(float)
        value = statistic(drawn[index])
        if math.isfinite(value):
            found.append(value)
    if count < 2 or len(found) <= resamples / 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Known:
    """A share known from ``n`` labelled rows; n may be an effective size, smaller than the rows."""

    rate: float
    n: float


def rogan_gladen(rate: float, n: float, sensitivity: Known, specificity: Known) -> tuple[float, Interval]:
    """True share of positives behind the share that an imperfect judge calls positive.

    Point: (rate + Sp - 1) / (Se + Sp - 1), Rogan & Gladen 1978 (Am. J. Epidemiology 107:71-76), clipped to [0, 1].
    Interval: Lang & Reiczigel 2014 (Preventive Veterinary Medicine 113:13-22), which carries the uncertainty of rate,
    sensitivity and specificity, each shrunk a little towards the middle so that it holds near 0 and 1 too; clipped.

    Args:
        rate: observed share called positive, of ``n`` (an effective size where rows come in groups).
        sensitivity: share of true positives that the judge calls positive.
        specificity: share of true negatives that it calls negative.

    Raises:
        ValueError: sensitivity + specificity is not above 1, so that the judge is no better than chance.
    """
    if sensitivity.rate + specificity.rate <= 1:
        raise ValueError(
            f"sensitivity {sensitivity.rate:.2f} + specificity {specificity.rate:.2f} is not above 1: "
            "the judge is no better than chance on these labels"
        )
    point = (rate + specificity.rate - 1) / (sensitivity.rate + specificity.rate - 1)
    z = float(stats.norm.ppf(0.975))
    size, p = n + z * z, (rate * n + z * z / 2) / (n + z * z)
    se_n, se = sensitivity.n + 2, (sensitivity.rate * sensitivity.n + 1) / (sensitivity.n + 2)
    sp_n, sp = specificity.n + 2, (specificity.rate * specificity.n + 1) / (specificity.n + 2)
    youden = se + sp - 1
    clipped = min(1.0, max(0.0, point))
    if youden <= 0:  # so few labels that nothing can be said
        return clipped, Interval(0.0, 1.0)
    middle = (p + sp - 1) / youden
    se_variance, sp_variance = se * (1 - se) / se_n, sp * (1 - sp) / sp_n
    shift = 2 * z * z * (middle * se_variance - (1 - middle) * sp_variance)
    spread = math.sqrt(p * (1 - p) / size + middle**2 * se_variance + (1 - middle) ** 2 * sp_variance) / youden
    low, high = (min(1.0, max(0.0, middle + shift + side * z * spread)) for side in (-1, 1))
    return clipped, Interval(min(low, clipped), max(high, clipped))


def _binary(positive: ArrayLike, said: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    truth, call = np.asarray(positive, dtype=float), np.asarray(said, dtype=float)
    return truth, call, np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=float)


def _by_value(positive: ArrayLike, values: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Weight of positive and of negative rows at each distinct value, ascending."""
    truth, scores, weight = _binary(positive, values, weights)
    distinct, index = np.unique(scores, return_inverse=True)
    yes = np.bincount(index, weights=truth * weight, minlength=len(distinct))
    no = np.bincount(index, weights=(1 - truth) * weight, minlength=len(distinct))
    return yes.astype(np.float64), no.astype(np.float64)
