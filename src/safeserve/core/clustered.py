"""Statistics where observations come in groups: several samples of one prompt tell less than as many prompts.

Everything takes ``clusters``, one name an observation (the prompt's id). Where every observation has a name of its own
the results are those of the plain methods in ``statistics``, so callers need not ask first. Intervals are for 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from safeserve.core.statistics import (
    Interval,
    add_distances,
    bca_interval,
    mcnemar_exact,
    paired_difference,
    score_interval,
    wilson,
)

_EXACT_SIGNS = 12
"""Up to so many changed clusters all sign patterns (4,096) are tried; above, a random draw of them."""


def clustered_rate(hits: Sequence[bool], clusters: Sequence[str]) -> Interval:
    """Interval of a proportion: Wilson's at the effective sample size.

    The design effect is the variance between clusters (Taylor linearisation of the ratio mean, with K/(K-1)) over the
    binomial variance; the effective size n / effect is corrected for the K-1 degrees of freedom by the squared ratio of
    t quantiles (Korn & Graubard 1998, Survey Methodology 24:193-201; with Wilson's interval: Dean & Pagano 2015,
    J. Survey Statistics and Methodology 3:484-503). At a rate of 0 or 1 nothing varies: each cluster counts once.

    Raises:
        ValueError: no observations, or sequences of different length.
    """
    groups = _grouped(clusters, hits)
    n, successes = len(hits), sum(hits)
    if groups.count == n:
        return wilson(successes, n)
    return _effective_wilson(groups, successes / n)


def effective_size(hits: Sequence[bool], clusters: Sequence[str]) -> float:
    """How many independent observations a grouped proportion is worth (see :func:`clustered_rate`); n without groups.

    Raises:
        ValueError: no observations, or sequences of different length.
    """
    groups = _grouped(clusters, hits)
    return float(len(hits)) if groups.count == len(hits) else _effective_size(groups, sum(hits) / len(hits))


def clustered_paired_difference(
    before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str]
) -> tuple[float, Interval]:
    """``after - before`` of two proportions over the same grouped items, with an interval.

    Each proportion's interval is :func:`clustered_rate`'s; they are put together as in Newcombe 1998 (method of
    variance estimates recovery; for clustered data Donner & Zou 2012, Statistical Methods in Medical
    Research 21:347-359) with the correlation of the two rates that the clusters show.

    Raises:
        ValueError: no items, or sequences of different length.
    """
    old, new = _grouped(clusters, before), _grouped(clusters, after)
    n = len(before)
    if old.count == n:
        return paired_difference(before, after)
    rate_old, rate_new = sum(before) / n, sum(after) / n
    limits_old = _effective_wilson(old, rate_old)
    limits_new = _effective_wilson(new, rate_new)
    residual_old, residual_new = old.residuals(rate_old), new.residuals(rate_new)
    scale = math.sqrt(float(residual_old @ residual_old) * float(residual_new @ residual_new))
    correlation = float(residual_old @ residual_new) / scale if scale > 0 else 0.0
    difference = rate_new - rate_old
    below = add_distances(rate_new - limits_new.low, limits_old.high - rate_old, correlation)
    above = add_distances(limits_new.high - rate_new, rate_old - limits_old.low, correlation)
    return difference, Interval(max(-1.0, difference - below), min(1.0, difference + above))


def clustered_mean(values: Sequence[float], clusters: Sequence[str], seed: int) -> Interval | None:
    """BCa bootstrap interval of a mean (Efron 1987), whole clusters resampled; None with fewer than two clusters.

    Raises:
        ValueError: no values, sequences of different length, or a value that is not finite.
    """
    groups = _grouped(clusters, values)
    if groups.count < 2:
        return None
    return bca_interval(groups.sums, None if groups.count == len(values) else groups.sizes, seed)


def clustered_paired_mean(
    before: Sequence[float], after: Sequence[float], clusters: Sequence[str], seed: int
) -> tuple[float, Interval | None]:
    """Mean of ``after - before`` over the same grouped items, with :func:`clustered_mean`'s interval.

    Raises:
        ValueError: nothing to compare, sequences of different length, or a value that is not finite.
    """
    if len(before) != len(after):
        raise ValueError(f"paired sequences of different length: {len(before)} and {len(after)}")
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    interval = clustered_mean(differences.tolist(), clusters, seed)
    return float(differences.mean()), interval


def clustered_paired_p(before: Sequence[float], after: Sequence[float], clusters: Sequence[str], seed: int) -> float:
    """Two-sided p-value of "no paired difference": the signs of the clusters' summed differences are exchangeable.

    A sign-flip permutation test (Fisher 1935): exact over all sign patterns up to 12 changed clusters, else over 9,999
    random ones. For yes/no observations without groups this is McNemar's exact test, which is then used.

    Raises:
        ValueError: nothing to compare, sequences of different length, or a value that is not finite.
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    groups = _grouped(clusters, differences)
    if groups.count == len(differences) and set(before) | set(after) <= {0, 1}:
        return mcnemar_exact(int((differences > 0).sum()), int((differences < 0).sum()))
    changed = groups.sums[np.abs(groups.sums) > 1e-12]
    if not changed.size:
        return 1.0
    if changed.size <= _EXACT_SIGNS:
        patterns = (np.arange(2**changed.size)[:, None] >> np.arange(changed.size)) & 1
        drawn = np.abs((2 * patterns - 1) @ changed)
        return float((drawn >= abs(changed.sum()) - 1e-9).mean())
    rng = np.random.default_rng(seed)
    extreme, draws = 0, 9999
    for start in range(0, draws, 1000):
        signs = rng.integers(0, 2, (min(1000, draws - start), changed.size)) * 2 - 1
        extreme += int((np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9).sum())
    return (extreme + 1) / (draws + 1)


@dataclass(frozen=True)
class _Groups:
    """Per cluster the sum of the values and how many there are."""

    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]

    @property
    def count(self) -> int:
        return len(self.sizes)

    def residuals(self, mean: float) -> NDArray[np.float64]:
        """What each cluster adds to the linearised mean, times n."""
        return np.asarray(self.sums - mean * self.sizes, dtype=float)


def _grouped(clusters: Sequence[str], values: Sequence[float] | NDArray[np.float64]) -> _Groups:
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} observations but {len(clusters)} cluster names")
    if not len(values):
        raise ValueError("no interval without observations (n = 0)")
    observed = np.asarray(values, dtype=float)
    if not np.isfinite(observed).all():
        raise ValueError("a value is not finite")
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    sums = np.bincount(index, weights=observed)
    return _Groups(sums.astype(np.float64), np.bincount(index).astype(np.float64))


def _effective_size(groups: _Groups, rate: float) -> float:
    n, count = float(groups.sizes.sum()), groups.count
    if count == 1:
        return 1.0
    residuals = groups.residuals(rate)
    between = count / (count - 1) * float(residuals @ residuals) / n**2
    binomial = rate * (1 - rate) / n
    effective = min(n, n * binomial / between) if between > 0 else n
    if binomial == 0:
        effective = float(count)  # at 0 and 1 the samples do not show how alike they are: each cluster counts once
    return effective * float(stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, count - 1)) ** 2


def _effective_wilson(groups: _Groups, rate: float) -> Interval:
    if groups.count == 1:
        return Interval(0.0, 1.0)  # one cluster shows nothing of how clusters differ
    return score_interval(rate, _effective_size(groups, rate))
