"""Hand-computed and published values, properties and edge cases of the statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeserve.core.statistics import (
    Interval,
    bca_interval,
    holm,
    mcnemar_exact,
    paired_difference,
    wilson,
)

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    """(before, after) with these cell counts of the paired 2x2 table."""
    cells = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [b for b, _ in cells], [a for _, a in cells]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998 (Statistics in Medicine 17:857-872), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_limits(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_by_hand_at_z_one() -> None:
    # z = 1 (confidence 0.6826894921), p = 1/2, n = 3: centre 1/2, half width sqrt(1/12 + 1/36) / (4/3) = 1/4
    interval = wilson(3, 6, confidence=math.erf(1 / math.sqrt(2)))
    half = math.sqrt(0.25 / 6 + 1 / 144) / (7 / 6)
    assert interval == Interval(pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_wilson_touches_the_ends_exactly() -> None:
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert wilson(successes, n, 0.99).high >= interval.high
    assert wilson(2 * successes, 2 * n).high <= interval.high


@pytest.mark.parametrize("call", [(0, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses_the_impossible(call: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"observations|successes|confidence"):
        wilson(*call)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7)
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        # Altman et al., Statistics with Confidence (2nd ed., 2000), chapter 6: airway responsiveness example
        ((14, 5, 0, 22), 5 / 41, 0.011, 0.226),
        # Newcombe 1998 (17:2635-2650), method 10
        ((36, 12, 2, 0), 10 / 50, 0.0569, 0.3404),
    ],
)
def test_paired_difference_gives_the_published_limits(
    cells: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    before, after = pairs(*cells)
    # The books subtract the second rate from the first, we the first from the second.
    value, interval = paired_difference(before, after)
    assert value == pytest.approx(-difference)
    assert interval.low == pytest.approx(-high, abs=5e-4)
    assert interval.high == pytest.approx(-low, abs=5e-4)


def test_paired_difference_all_equal_is_zero_with_a_width() -> None:
    value, interval = paired_difference([True] * 10, [True] * 10)
    assert value == 0.0
    # Both rates 10/10, phi undefined and taken as 0: the widths are those of Wilson's lower limit.
    assert interval.high == pytest.approx(1 - wilson(10, 10).low)
    assert interval.low == pytest.approx(-interval.high)


def test_paired_difference_total_reversal_stays_in_range() -> None:
    value, interval = paired_difference([False] * 4, [True] * 4)
    assert value == 1.0
    assert 0.0 < interval.low < interval.high == 1.0


@given(outcomes)
def test_paired_difference_properties(cases: list[tuple[bool, bool]]) -> None:
    before, after = [b for b, _ in cases], [a for _, a in cases]
    value, interval = paired_difference(before, after)
    assert -1.0 <= interval.low <= value + 1e-12
    assert value - 1e-12 <= interval.high <= 1.0
    back, reverse = paired_difference(after, before)
    assert back == pytest.approx(-value)
    assert reverse.low == pytest.approx(-interval.high, abs=1e-12)


def test_a_paired_difference_refuses_nothing_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="n = 0"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="different length"):
        paired_difference([True], [True, False])


def test_bootstrap_constant_change_is_a_point() -> None:
    difference = np.array([0.6, 0.7, 0.8]) - np.array([0.1, 0.2, 0.3])
    assert bca_interval(difference, None, seed=1) == Interval(pytest.approx(0.5), pytest.approx(0.5))


def test_bootstrap_is_reproducible_and_close_to_normal_theory() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(0.2, 0.5, 400)
    first, again = (bca_interval(difference, None, seed=5) for _ in range(2))
    assert first == again
    half = 1.96 * difference.std(ddof=1) / math.sqrt(400)
    assert first.low == pytest.approx(difference.mean() - half, abs=0.01)
    assert first.high == pytest.approx(difference.mean() + half, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_bootstrap_is_always_finite_and_ordered(values: list[float]) -> None:
    interval = bca_interval(np.array(values), None, seed=0, resamples=200)
    assert math.isfinite(interval.low)
    assert math.isfinite(interval.high)
    assert interval.low <= interval.high


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, math.nan])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert all(a <= 1.0 for a in adjusted)
    ranked = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)
