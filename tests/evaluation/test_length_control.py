"""Length-controlled win rate: 50 % for equal quality, a planted length bias goes, independent fits agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from safeserve.evaluation.length_control import RIDGE, fit_logistic, length_controlled


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def draw(n: int, quality: float, bias: float, seed: int) -> tuple[list[float], list[float]]:
    """Wins drawn from the model itself: b is 200 characters longer on average, and length pays ``bias``."""
    rng = np.random.default_rng(seed)
    lengths = rng.normal(200, 300, n)
    wins = rng.random(n) < expit(quality + bias * np.tanh(lengths / lengths.std()))
    return wins.astype(float).tolist(), lengths.tolist()


def test_equal_quality_gives_exactly_half() -> None:
    result = length_controlled([0.5] * 20, [float(i) for i in range(20)], names(20))
    assert result.rate == pytest.approx(0.5, abs=1e-12)
    assert result.effect == pytest.approx(0.0, abs=1e-12)
    mirrored = length_controlled([1.0, 0.0] * 10, [30.0, -30.0] * 10, names(20))
    assert mirrored.rate == pytest.approx(0.5, abs=1e-9)


def test_a_pure_length_bias_is_removed() -> None:
    wins, lengths = draw(4000, quality=0.0, bias=1.5, seed=1)
    result = length_controlled(wins, lengths, names(4000))
    assert np.mean(wins) > 0.6  # what the raw win rate would report
    assert result.rate == pytest.approx(0.5, abs=0.03)
    assert result.effect == pytest.approx(1.5, abs=0.15)
    assert result.interval is not None
    assert result.interval.low < 0.5 < result.interval.high


def test_a_real_difference_stays() -> None:
    wins, lengths = draw(4000, quality=float(logit(0.7)), bias=1.0, seed=2)
    assert length_controlled(wins, lengths, names(4000)).rate == pytest.approx(0.7, abs=0.03)


def test_winning_everything_stays_finite() -> None:
    result = length_controlled([1.0] * 100, [10.0, -10.0] * 50, names(100))
    assert result.rate is not None
    assert 0.99 < result.rate < 1.0


def test_fit_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    design = np.stack([np.ones(300), rng.normal(size=300)], axis=1)
    outcome = (rng.random(300) < expit(design @ [0.4, -0.9])).astype(float)
    peer = linear_model.LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10).fit(design, outcome)
    assert fit_logistic(design, outcome) == pytest.approx(peer.coef_[0], abs=1e-5)


def test_standard_error_agrees_with_statsmodels() -> None:
    """Cluster-robust errors of a plain logistic regression; the small ridge moves them by less than a hundredth."""
    api = pytest.importorskip("statsmodels.api")
    wins, lengths = draw(600, quality=0.3, bias=0.8, seed=4)
    clusters = [str(i // 3) for i in range(600)]
    result = length_controlled(wins, lengths, clusters)
    term = np.tanh(np.array(lengths) / np.std(lengths))
    fitted = api.Logit(wins, np.stack([np.ones(600), term], axis=1)).fit(
        disp=0, cov_type="cluster", cov_kwds={"groups": [int(name) for name in clusters], "use_correction": False}
    )
    assert result.interval is not None
    half = (logit(result.interval.high) - logit(result.interval.low)) / 2 / 1.959964
    assert half == pytest.approx(fitted.bse[0] * np.sqrt(200 / 199), rel=0.01)


def test_equal_extra_length_everywhere_cannot_be_controlled() -> None:
    result = length_controlled([1.0, 0.0, 1.0], [5.0, 5.0, 5.0], names(3))
    assert result.rate is None
    assert "same amount" in (result.reason or "")


def test_equal_lengths_leave_the_raw_rate() -> None:
    result = length_controlled([1.0] * 60 + [0.0] * 40, [0.0] * 100, names(100))
    assert result.rate == pytest.approx(0.6, abs=0.002)  # the ridge costs a thousandth
    assert result.effect == 0.0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(-500, 500)), min_size=2, max_size=40)
)
def test_swapping_the_models_mirrors_the_rate(rows: list[tuple[float, int]]) -> None:
    preferences, lengths = [p for p, _ in rows], [float(d) for _, d in rows]
    one = length_controlled(preferences, lengths, names(len(rows)))
    other = length_controlled([1 - p for p in preferences], [-d for d in lengths], names(len(rows)))
    if one.rate is None:
        assert other.rate is None
    else:
        assert other.rate == pytest.approx(1 - one.rate, abs=1e-7)


def test_sequences_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 preferences"):
        length_controlled([0.5, 0.5], [1.0], ["a", "b"])
