"""Grouped observations: the plain methods without groups, published limits of behaviour with them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.core.clustered import (
    clustered_mean,
    clustered_paired_difference,
    clustered_paired_mean,
    clustered_paired_p,
    clustered_rate,
    effective_size,
)
from safeserve.core.statistics import Interval, bca_interval, mcnemar_exact, paired_difference, wilson

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def names(count: int, each: int = 1) -> list[str]:
    return [f"p{i // each}" for i in range(count)]


@given(pairs)
def test_without_groups_nothing_changes(pairs):
    before, after = map(list, zip(*pairs, strict=True))
    single = names(len(pairs))
    assert clustered_rate(after, single) == wilson(sum(after), len(after))
    assert clustered_paired_difference(before, after, single) == paired_difference(before, after)
    fixed = sum(a and not b for b, a in pairs)
    broken = sum(b and not a for b, a in pairs)
    assert clustered_paired_p(before, after, single, seed=0) == mcnemar_exact(fixed, broken)


def test_means_without_groups_bootstrap_the_differences():
    before, after = [1.0, 2.0, 4.0, 3.0], [2.0, 2.5, 3.0, 5.0]
    assert clustered_paired_mean(before, after, names(4), seed=3) == (
        pytest.approx(0.625),
        bca_interval(np.array([1.0, 0.5, -1.0, 2.0]), None, seed=3),
    )


def test_copies_of_a_sample_add_nothing():
    hits = [True] * 12 + [False] * 8
    copied = [hit for hit in hits for _ in range(5)]
    clusters = names(100, each=5)
    # K/(K-1) in the variance and t for z: a little below 20, never near 100
    assert 15 < effective_size(copied, clusters) < 20
    alone, together = wilson(12, 20), clustered_rate(copied, clusters)
    assert together.low < alone.low
    assert together.high > alone.high
    assert together.high - together.low < 1.2 * (alone.high - alone.low)


def test_independent_samples_are_worth_nearly_what_they_count():
    # Every prompt has one safe and one unsafe sample: no difference between prompts at all.
    assert effective_size([True, False] * 50, names(100, each=2)) == pytest.approx(100, rel=0.05)


def test_at_the_ends_each_cluster_counts_once():
    interval = clustered_rate([True] * 40, names(40, each=4))
    assert interval.high == 1.0
    assert interval.low < wilson(10, 10).low
    assert clustered_rate([True] * 4, ["p"] * 4) == Interval(0.0, 1.0)


def test_paired_difference_of_copies_is_about_that_of_the_prompts():
    before = [True] * 6 + [False] * 14
    after = [True] * 15 + [False] * 5
    plain, plain_interval = paired_difference(before, after)
    triple = [[hit for hit in side for _ in range(3)] for side in (before, after)]
    difference, interval = clustered_paired_difference(*triple, names(60, each=3))
    assert difference == pytest.approx(plain)
    assert interval.low == pytest.approx(plain_interval.low, abs=0.05)
    assert interval.high == pytest.approx(plain_interval.high, abs=0.05)


def test_sign_flips_by_enumeration():
    before, after = np.zeros(6), np.array([0.5, 0.2, -0.1, 0.4, 0.3, -0.2])
    clusters = ["a", "a", "b", "c", "c", "d"]
    sums = np.array([0.7, -0.1, 0.7, -0.2])
    drawn = [abs(np.array(signs) @ sums) for signs in itertools.product((-1, 1), repeat=4)]
    expected = np.mean([value >= abs(sums.sum()) - 1e-9 for value in drawn])
    assert clustered_paired_p(before, after, clusters, seed=0) == pytest.approx(expected)
    assert clustered_paired_p(before, before, clusters, seed=0) == 1.0


def test_sampled_sign_flips_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    differences = rng.normal(0.3, 1.0, 40)
    ours = clustered_paired_p(np.zeros(40), differences, names(40), seed=1)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=rng
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)


def test_too_little_to_tell():
    assert clustered_mean([1.0, 2.0], ["p", "p"], seed=0) is None
    with pytest.raises(ValueError, match="cluster names"):
        clustered_rate([True], ["a", "b"])
    with pytest.raises(ValueError, match="n = 0"):
        clustered_rate([], [])
    with pytest.raises(ValueError, match="not finite"):
        clustered_mean([1.0, float("nan")], ["a", "b"], seed=0)
