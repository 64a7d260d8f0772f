"""By simulation: intervals at nominal 95 % cover the truth in 93 to 97 of 100 draws (2,000 draws each)."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from safeserve.core.agreement import Known, rogan_gladen
from safeserve.core.clustered import clustered_paired_difference, clustered_rate
from safeserve.core.statistics import (
    bca_interval,
    mcnemar_exact,
    min_detectable_difference,
    paired_difference,
    wilson,
)

DRAWS = 2000


def share(covered: list[bool]) -> float:
    assert len(covered) == DRAWS
    return sum(covered) / DRAWS


@pytest.mark.parametrize(("rate", "n"), [(0.3, 100), (0.9, 178), (0.5, 40)])
def test_wilson(rate, n):
    limits = functools.cache(lambda k: wilson(k, n))
    counts = np.random.default_rng(1).binomial(n, rate, DRAWS)
    assert 0.93 <= share([limits(k).low <= rate <= limits(k).high for k in counts.tolist()]) <= 0.97


@pytest.mark.parametrize("cells", [(0.35, 0.03, 0.27, 0.35), (0.2, 0.1, 0.3, 0.4)])
def test_newcombe_paired(cells):
    """``cells``: both, lost, gained, neither."""

    @functools.cache
    def limits(both, lost, gained, neither):
        before = [True] * (both + lost) + [False] * (gained + neither)
        after = [True] * both + [False] * lost + [True] * gained + [False] * neither
        return paired_difference(before, after)[1]

    truth = cells[2] - cells[1]
    drawn = np.random.default_rng(2).multinomial(100, cells, DRAWS)
    assert 0.93 <= share([limits(*row).low <= truth <= limits(*row).high for row in drawn.tolist()]) <= 0.97


def test_bootstrap_of_paired_differences():
    rng = np.random.default_rng(3)
    before, after = rng.normal(0.0, 1.0, (DRAWS, 60)), rng.gamma(2.0, 0.7, (DRAWS, 60))
    covered = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        limits = bca_interval(new - old, None, seed=number, resamples=499)
        covered.append(limits.low <= 1.4 <= limits.high)
    assert 0.93 <= share(covered) <= 0.97


def clusters_of(rng, rate, prompts, samples, alike):
    """Yes/no samples: each prompt has its own rate, Beta with this mean and intraclass correlation ``alike``."""
    own = rng.beta(rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1), (DRAWS, prompts, 1))
    return rng.random((DRAWS, prompts, samples)) < own


@pytest.mark.parametrize(("rate", "alike"), [(0.3, 0.4), (0.8, 0.1)])
def test_clustered_rate(rate, alike):
    prompts, samples = 50, 4
    names = [f"p{i // samples}" for i in range(prompts * samples)]
    covered, naive = [], []
    for draw in clusters_of(np.random.default_rng(4), rate, prompts, samples, alike):
        limits = clustered_rate(draw.ravel().tolist(), names)
        covered.append(limits.low <= rate <= limits.high)
        blind = wilson(int(draw.sum()), draw.size)
        naive.append(blind.low <= rate <= blind.high)
    assert 0.93 <= share(covered) <= 0.97
    assert share(naive) < share(covered)  # counting samples as independent would claim too much


def test_clustered_paired_difference():
    prompts, samples = 50, 3
    names = [f"p{i // samples}" for i in range(prompts * samples)]
    rng = np.random.default_rng(5)
    own = rng.beta(0.9, 0.6, (DRAWS, prompts, 1))  # mean .6
    better = own + 0.25 * (1 - own)  # mean .7: the two models find the same prompts hard
    before = rng.random((DRAWS, prompts, samples)) < own
    after = rng.random((DRAWS, prompts, samples)) < better
    covered = []
    for old, new in zip(before, after, strict=True):
        limits = clustered_paired_difference(old.ravel().tolist(), new.ravel().tolist(), names)[1]
        covered.append(limits.low <= 0.1 <= limits.high)
    assert 0.93 <= share(covered) <= 0.97


@pytest.mark.parametrize(("truth", "se", "sp", "labels"), [(0.3, 0.85, 0.9, 150), (0.6, 0.75, 0.8, 400)])
def test_rogan_gladen(truth, se, sp, labels):
    rng = np.random.default_rng(6)
    n = 200
    called = rng.binomial(n, truth * se + (1 - truth) * (1 - sp), DRAWS)
    found, cleared = rng.binomial(labels, se, DRAWS), rng.binomial(labels, sp, DRAWS)
    covered = []
    for k, hit, clear in zip(called.tolist(), found.tolist(), cleared.tolist(), strict=True):
        limits = rogan_gladen(k / n, n, Known(hit / labels, labels), Known(clear / labels, labels))[1]
        covered.append(limits.low <= truth <= limits.high)
    assert 0.93 <= share(covered) <= 0.97


def test_the_detectable_difference_is_found_at_the_stated_power():
    n, discordance = 400, 0.3
    difference = min_detectable_difference(n, discordance)
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    drawn = np.random.default_rng(7).multinomial(n, [gained, lost, 1 - discordance], DRAWS)
    found = functools.cache(lambda fixed, broken: mcnemar_exact(fixed, broken) < 0.05)
    # Connor's formula is for the test without continuity correction; the exact one has a little less power.
    assert 0.74 <= share([found(row[0], row[1]) for row in drawn.tolist()]) <= 0.84


def test_detectable_difference_by_hand():
    # All pairs discordant: n = (z_a + z_b sqrt(1 - d^2))^2 / d^2 gives back n.
    d = min_detectable_difference(100)
    z_a, z_b = stats.norm.ppf(0.975), stats.norm.ppf(0.8)
    assert (z_a + z_b * np.sqrt(1 - d * d)) ** 2 / d**2 == pytest.approx(100)
    assert min_detectable_difference(100, 0.2) < d
    assert np.isnan(min_detectable_difference(5, 0.1))  # half a discordant pair shows nothing
    with pytest.raises(ValueError, match="impossible"):
        min_detectable_difference(0)
