"""Win rate at equal length: what remains of a preference when the longer answer no longer gains by being longer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from safeserve.core.statistics import Interval

RIDGE = 0.1
"""Penalty on both coefficients: keeps them finite where one side wins everything, and costs less than one pair."""
_STEPS = 100


@dataclass(frozen=True)
class LengthControlled:
    """``rate`` None: not identifiable; ``reason`` says why. ``effect``: log-odds per unit of the length term."""

    rate: float | None
    interval: Interval | None
    effect: float | None
    reason: str | None = None


def length_controlled(
    preferences: Sequence[float],
    length_differences: Sequence[float],
    clusters: Sequence[str],
    confidence: float = 0.95,
) -> LengthControlled:
    """Share of wins predicted for answers of equal length, with an interval.

    Logistic regression with outcomes in [0, 1], as in length-controlled AlpacaEval (Dubois et al. 2024, arXiv
    2404.04475, section 3) for one pair of models and without its term for the difficulty of each instruction, which
    takes many models to estimate:

        P(b preferred) = σ(θ + φ · tanh(d / s)),   d = length of b − length of a,   s = standard deviation of d

    The length-controlled rate is σ(θ). Both coefficients carry a ridge penalty ``RIDGE``/2 · (θ² + φ²). The interval is
    θ ± z · its cluster-robust (sandwich) standard error (Liang & Zeger 1986), with K/(K−1), mapped through σ.

    Args:
        preferences: for b, each in [0, 1] (0.5 is a tie).
        length_differences: b − a, in characters.
        clusters: names; pairs of one prompt share one.

    Raises:
        ValueError: no pairs, or sequences of different length.
    """
    outcome, length = np.asarray(preferences, dtype=float), np.asarray(length_differences, dtype=float)
    if not len(outcome) or not len(outcome) == len(length) == len(clusters):
        raise ValueError(f"{len(outcome)} preferences, {len(length)} lengths, {len(clusters)} clusters")
    spread = float(length.std())
    if spread == 0 and length[0] != 0:
        return LengthControlled(None, None, None, "every answer is longer by the same amount, so length has no slope")
    term = np.tanh(length / spread) if spread else np.zeros_like(length)
    design = np.stack([np.ones_like(term), term], axis=1)
    coefficients = fit_logistic(design, outcome)
    theta, effect = float(coefficients[0]), float(coefficients[1])
    error = _robust_error(design, outcome, coefficients, clusters)
    interval = None
    if error is not None:
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        interval = Interval(float(expit(theta - z * error)), float(expit(theta + z * error)))
    return LengthControlled(float(expit(theta)), interval, effect)


def fit_logistic(design: NDArray[np.float64], outcome: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients that minimise cross-entropy plus the ridge penalty, by Newton steps halved while they overshoot.

    Args:
        design: [pairs, coefficients].
        outcome: [pairs], each in [0, 1].
    """
    coefficients = np.zeros(design.shape[1])
    loss = _loss(design, outcome, coefficients)
    for _ in range(_STEPS):
        gradient = design.T @ (expit(design @ coefficients) - outcome) + RIDGE * coefficients
        step = np.linalg.solve(_hessian(design, coefficients), gradient)
        while (after := _loss(design, outcome, coefficients - step)) > loss + 1e-12:
            step = step / 2
        coefficients, loss = coefficients - step, after
        if float(np.abs(step).max()) < 1e-10:
            break
    return coefficients


def _loss(design: NDArray[np.float64], outcome: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    logits = design @ coefficients
    entropy = np.logaddexp(0.0, logits) - outcome * logits
    return float(entropy.sum() + RIDGE / 2 * coefficients @ coefficients)


def _hessian(design: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    p = expit(design @ coefficients)
    return np.asarray((design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(design.shape[1]))


def _robust_error(
    design: NDArray[np.float64],
    outcome: NDArray[np.float64],
    coefficients: NDArray[np.float64],
    clusters: Sequence[str],
) -> float | None:
    """Standard error of the first coefficient; None where fewer than two clusters or no residual show any."""
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    count = len(names)
    scores = design * (outcome - expit(design @ coefficients))[:, None]
    sums = np.zeros((count, design.shape[1]))
    np.add.at(sums, [names[name] for name in clusters], scores)
    if count < 2 or float(np.abs(sums).max()) < 1e-9:
        return None
    bread = np.linalg.inv(_hessian(design, coefficients))
    variance = count / (count - 1) * float((bread @ (sums.T @ sums) @ bread)[0, 0])
    return math.sqrt(variance)
