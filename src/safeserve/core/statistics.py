"""The statistics behind every rate, comparison and verdict: pure functions, each with the source of its formula.

Nothing measured has no interval: with no observations these functions raise ValueError rather than return a number
that could pass for evidence, and the caller decides what "no data" means.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, ``low <= high``, in the unit of what it bounds."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927, eq. 4), without continuity correction.

    Args:
        successes: observed successes, 0 to n.
        n: observations, at least 1.
        confidence: coverage, between 0 and 1 (exclusive).

    Raises:
        ValueError: n is 0, or the counts or the confidence are impossible.
    """
    if n < 1:
        raise ValueError("no interval without observations (n = 0)")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    return score_interval(successes / n, n, confidence)


def score_interval(rate: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval for a rate from ``n`` observations, where n may be an effective size and no whole number."""
    z = _normal_quantile(confidence)
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the bound is exactly 0 or 1; rounding would leave it at 1e-17 on the wrong side.
    low = 0.0 if rate == 0 else (centre - spread) / scale
    high = 1.0 if rate == 1 else (centre + spread) / scale
    return Interval(low, high)


def mcnemar_exact(fixed: int, broken: int) -> float:
    """Two-sided exact p-value of McNemar's test: the discordant pairs against a fair coin (McNemar 1947).

    Args:
        fixed, broken: pairs that changed in the one and in the other direction.

    Returns:
        P-value; 1.0 when nothing changed.
    """
    if fixed < 0 or broken < 0:
        raise ValueError(f"negative counts: {fixed}, {broken}")
    if fixed + broken == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(fixed, broken), fixed + broken, 0.5)))


def paired_difference(
    before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95
) -> tuple[float, Interval]:
    """Difference of two proportions over the same items, ``after - before``, with its score interval.

    Newcombe 1998 (Statistics in Medicine 17:2635-2650), method 10: each proportion's Wilson limits, squared and
    added with the correlation phi, whose numerator is reduced by n/2 (not below 0) when it is positive.

    Raises:
        ValueError: no items, or sequences of different length.
    """
    n = _paired_length(before, after)
    both = sum(b and a for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    neither = n - both - lost - gained
    total_before, total_after = both + lost, both + gained
    limits_before, limits_after = wilson(total_before, n, confidence), wilson(total_after, n, confidence)
    rate_before, rate_after = total_before / n, total_after / n

    numerator: float = both * neither - lost * gained
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    denominator = math.sqrt(total_before * (n - total_before) * total_after * (n - total_after))
    phi = numerator / denominator if denominator > 0 else 0.0

    difference = rate_after - rate_before
    below = add_distances(rate_after - limits_after.low, limits_before.high - rate_before, phi)
    above = add_distances(limits_after.high - rate_after, rate_before - limits_before.low, phi)
    return difference, Interval(max(-1.0, difference - below), min(1.0, difference + above))


def add_distances(after: float, before: float, correlation: float) -> float:
    """How far the bound of a difference lies from it, from the distances of both rates to their own bounds."""
    # Exactly 0 at correlation 1 and equal distances; rounding may push the sum below 0.
    return math.sqrt(max(0.0, after * after - 2 * correlation * after * before + before * before))


def bca_interval(
    totals: NDArray[np.float64],
    sizes: NDArray[np.float64] | None,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """BCa bootstrap interval of sum(totals) / sum(sizes), pairs of the two resampled; sizes None means one each.

    Where every unit says the same there is nothing to vary and the interval is that point.
    """
    ratios = totals if sizes is None else totals / sizes
    if np.ptp(ratios) <= 1e-12 * np.abs(ratios).max():
        return Interval(float(ratios.mean()), float(ratios.mean()))
    scale = float(np.abs(totals).max())  # else the square of a very small value underflows
    data = (totals / scale,) if sizes is None else (totals / scale, sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            data,
            np.mean if sizes is None else _ratio,
            paired=sizes is not None,
            vectorized=True,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(totals)),  # else all resamples lie in memory at once
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    limits = result.confidence_interval
    return Interval(scale * float(limits.low), scale * float(limits.high))


def min_detectable_difference(
    n: int, discordance: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference of two paired proportions that McNemar's test finds with this power.

    Solves n = (z_{1-alpha/2} sqrt(psi) + z_power sqrt(psi - d^2))^2 / d^2 for d (Connor 1987, Biometrics 43:207-211,
    eq. 3), psi the share of discordant pairs. Without ``discordance`` the worst case is taken, psi = 1: every pair
    changes, in one or the other direction.

    Returns:
        The difference, a share above 0; nan where even psi itself (all changes in one direction) would not be found.

    Raises:
        ValueError: n below 1, or a share, power or alpha out of range.
    """
    psi = 1.0 if discordance is None else discordance
    if n < 1 or not 0.0 < psi <= 1.0 or not 0.0 < alpha < 1.0 or not 0.0 < power < 1.0:
        raise ValueError(f"impossible: n {n}, discordance {discordance}, power {power}, alpha {alpha}")
    z_alpha, z_power = float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(power))

    def lacking(difference: float) -> float:
        spread = math.sqrt(max(0.0, psi - difference * difference))
        return z_alpha * math.sqrt(psi) + z_power * spread - difference * math.sqrt(n)

    if lacking(psi) > 0:
        return math.nan
    return float(optimize.brentq(lacking, 0.0, psi))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for testing several hypotheses (Holm 1979), in the order given.

    Raises:
        ValueError: a p-value is not a number between 0 and 1.
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError("p-values lie between 0 and 1")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _ratio(totals: NDArray[np.float64], sizes: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(totals.sum(axis=axis) / sizes.sum(axis=axis))


def _normal_quantile(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence}")
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _paired_length(a: Sequence[object], b: Sequence[object]) -> int:
    if len(a) != len(b):
        raise ValueError(f"paired sequences of different length: {len(a)} and {len(b)}")
    if not a:
        raise ValueError("nothing to compare (n = 0)")
    return len(a)
