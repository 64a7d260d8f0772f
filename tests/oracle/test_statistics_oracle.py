"""Our statistics against statsmodels, scikit-learn and scipy, and the paired interval against its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeserve.core.agreement import kappa
from safeserve.core.statistics import bca_interval, holm, mcnemar_exact, paired_difference, wilson

proportion = pytest.importorskip("statsmodels.stats.proportion", reason="statsmodels is a dev dependency")
contingency_tables = pytest.importorskip("statsmodels.stats.contingency_tables")
multitest = pytest.importorskip("statsmodels.stats.multitest")
metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is a dev dependency")

labels = st.sampled_from(["full_refusal", "partial_refusal", "full_compliance"])


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_wilson_is_statsmodels(case: tuple[int, int], confidence: float) -> None:
    low, high = proportion.proportion_confint(*case, alpha=1 - confidence, method="wilson")
    ours = wilson(*case, confidence)
    assert (ours.low, ours.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(st.integers(0, 120), st.integers(0, 120))
def test_mcnemar_is_statsmodels(fixed: int, broken: int) -> None:
    theirs = contingency_tables.mcnemar([[0, fixed], [broken, 0]], exact=True).pvalue
    assert mcnemar_exact(fixed, broken) == pytest.approx(1.0 if fixed + broken == 0 else theirs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=50))
def test_kappa_is_scikit_learn(cases: list[tuple[str, str]]) -> None:
    a, b = [x for x, _ in cases], [y for _, y in cases]
    if len({*a, *b}) == 1:
        assert math.isnan(kappa(a, b))
    else:
        assert kappa(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b), abs=1e-9)


@settings(max_examples=60)
@given(*[st.integers(0, 40)] * 4)
def test_paired_difference_from_statsmodels_wilson_limits(both: int, lost: int, gained: int, neither: int) -> None:
    """Newcombe's method 10 once more, written from the table's cells and statsmodels' Wilson limits."""
    n = both + lost + gained + neither
    if n == 0:
        return
    p1, p2 = (both + gained) / n, (both + lost) / n
    l1, u1 = proportion.proportion_confint(both + gained, n, method="wilson")
    l2, u2 = proportion.proportion_confint(both + lost, n, method="wilson")
    margins = np.prod([both + lost, gained + neither, both + gained, lost + neither], dtype=float)
    cross = both * neither - lost * gained
    corrected = cross if cross < 0 else (cross - n / 2 if cross > n / 2 else 0)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    low = p1 - p2 - math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    high = p1 - p2 + math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    value, interval = paired_difference(before, after)
    assert value == pytest.approx(p1 - p2, abs=1e-12)
    assert interval.low == pytest.approx(max(-1.0, low), abs=1e-9)
    assert interval.high == pytest.approx(min(1.0, high), abs=1e-9)


def test_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    cells, n, covered, draws = (0.45, 0.05, 0.15, 0.35), 80, 0, 1500  # true difference .10
    for both, lost, gained, neither in rng.multinomial(n, cells, size=draws):
        before = [True] * (both + lost) + [False] * (gained + neither)
        after = [True] * both + [False] * lost + [True] * gained + [False] * neither
        interval = paired_difference(before, after)[1]
        covered += interval.low <= 0.10 <= interval.high
    assert 0.93 <= covered / draws <= 0.98


def test_bootstrap_is_close_to_the_t_interval() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(0, 1, 300), rng.normal(0.3, 1, 300)
    from scipy import stats

    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    interval = bca_interval(after - before, None, seed=4)
    assert (interval.low, interval.high) == (
        pytest.approx(expected.low, abs=0.015),
        pytest.approx(expected.high, abs=0.015),
    )
