"""Ranking, calibration and corrected rates: hand-computed values and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safeserve.core.agreement import (
    Known,
    auroc,
    average_precision,
    bootstrap_groups,
    calibration_error,
    f1,
    kappa,
    reliability,
    rogan_gladen,
)

metrics = pytest.importorskip("sklearn.metrics")
# Few distinct values, so that ties are common.
rows = st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(1, 3)), min_size=2, max_size=40)


def test_auroc_by_hand():
    # Positive .8 and .4 against negative .4 and .1: wins 1, 1, 1/2, 1 of 4.
    assert auroc([True, True, False, False], [0.8, 0.4, 0.4, 0.1]) == 3.5 / 4
    assert math.isnan(auroc([True, True], [0.1, 0.2]))


@settings(max_examples=40)
@given(rows)
def test_ranking_is_scikit_learn_with_and_without_weights(rows):
    truth, values, weights = map(list, zip(*rows, strict=True))
    assume(any(truth) and not all(truth))
    assert auroc(truth, values) == pytest.approx(metrics.roc_auc_score(truth, values))
    assert auroc(truth, values, weights) == pytest.approx(metrics.roc_auc_score(truth, values, sample_weight=weights))
    assert average_precision(truth, values) == pytest.approx(metrics.average_precision_score(truth, values))
    assert average_precision(truth, values, weights) == pytest.approx(
        metrics.average_precision_score(truth, values, sample_weight=weights)
    )


@settings(max_examples=40)
@given(rows)
def test_f1_and_kappa_are_scikit_learn(rows):
    truth, values, weights = map(list, zip(*rows, strict=True))
    said = [value > 0 for value in values]
    if any(truth) or any(said):
        assert f1(truth, said, weights) == pytest.approx(metrics.f1_score(truth, said, sample_weight=weights))
    classes = [value % 3 for value in values]
    assume(len({*classes, *truth}) > 1 and (len(set(classes)) > 1 or len(set(truth)) > 1))
    expected = metrics.cohen_kappa_score([int(t) for t in truth], classes, sample_weight=weights)
    assert kappa([int(t) for t in truth], classes, weights) == pytest.approx(expected)


def test_kappa_of_labels_by_hand():
    # Cohen's 2x2 of 50 cases: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed .7, chance .5, kappa .4
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(a, b) == pytest.approx(0.4)
    assert kappa(["x", "y"], ["x", "y"]) == 1.0
    assert kappa(["x", "y"], ["y", "x"]) == -1.0
    assert math.isnan(kappa(["x", "x"], ["x", "x"]))
    for a, b in (([], []), (["x"], ["x", "y"])):
        with pytest.raises(ValueError, match="nothing to compare"):
            kappa(a, b)


def test_weights_of_zero_leave_rows_out():
    assert average_precision([True, False, True], [3, 2, 1], [0, 1, 1]) == 0.5
    assert auroc([True, False, True], [3, 2, 1], [0, 1, 1]) == 0.0


def test_reliability_has_equal_mass_and_the_error_is_the_mean_distance():
    p = np.linspace(0.05, 0.95, 10)
    curve = reliability([False] * 5 + [True] * 5, p, bins=5)
    assert [part.n for part in curve] == [2] * 5
    assert [part.observed for part in curve] == [0, 0, 0.5, 1, 1]
    # distances .1, .3, 0, .3, .1
    assert calibration_error(curve) == pytest.approx(0.16)


def test_equal_probabilities_stay_in_one_bin():
    curve = reliability([True, False, True, True], [0.5] * 4, bins=10)
    assert [(part.n, part.observed) for part in curve] == [(4, 0.75)]


def test_rogan_gladen_by_hand():
    # (0.4 + 0.9 - 1) / (0.8 + 0.9 - 1) = 3/7
    point, interval = rogan_gladen(0.4, 500, Known(0.8, 200), Known(0.9, 200))
    assert point == pytest.approx(3 / 7)
    assert interval.low < point < interval.high


def test_a_perfect_judge_changes_nothing():
    point, interval = rogan_gladen(0.3, 400, Known(1.0, 1e9), Known(1.0, 1e9))
    assert point == pytest.approx(0.3)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert interval.low == pytest.approx(0.3 - half, abs=3e-3)
    assert interval.high == pytest.approx(0.3 + half, abs=3e-3)


def test_less_is_known_where_fewer_labels_are():
    few = rogan_gladen(0.4, 500, Known(0.8, 30), Known(0.9, 30))[1]
    many = rogan_gladen(0.4, 500, Known(0.8, 3000), Known(0.9, 3000))[1]
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_correction_is_clipped_and_refused_below_chance():
    assert rogan_gladen(0.05, 100, Known(0.8, 50), Known(0.9, 50))[0] == 0.0
    with pytest.raises(ValueError, match="no better than chance"):
        rogan_gladen(0.4, 100, Known(0.5, 50), Known(0.5, 50))


def test_whole_groups_are_drawn():
    # Two groups that are alike inside: only 0, 1/2 and 1 can come out, however many rows they hold.
    truth = np.array([1.0] * 50 + [0.0] * 50)
    interval = bootstrap_groups(lambda w: float(truth @ w / w.sum()), ["a"] * 50 + ["b"] * 50, seed=0, resamples=200)
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert bootstrap_groups(lambda w: math.nan, ["a", "b"], seed=0, resamples=10) is None
