"""The same training with several seeds: every seed's rate, their mean and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeserve.report.overview import RATES
from safeserve.report.rows import metric_cell, percent

HEADINGS = ("model", "benchmark", "rate", "each seed", "mean", "standard deviation (points)", "range (points)")
SEEDS_HINT = (
    "Trained again with other seeds: other rows are drawn, in another order, from other starting weights of the "
    "adapter; the prompts are the same. A difference between two methods that is no larger may be chance. The base is "
    "not trained: decoded greedily, it has the same answers with every seed."
)


@dataclass(frozen=True)
class Spread:
    """One rate of one model on one benchmark, as shares, a seed each, the recipe's own first."""

    model: str
    benchmark: str
    metric: str
    rates: tuple[float, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row under :data:`HEADINGS`. The standard deviation is the sample's (n − 1)."""
        each = ", ".join(f"{100 * rate:.1f}" for rate in self.rates)
        deviation = f"{100 * statistics.stdev(self.rates):.1f}"
        apart = f"{100 * (max(self.rates) - min(self.rates)):.1f}"
        mean = percent(statistics.fmean(self.rates))
        return (self.model, self.benchmark, dict(RATES)[self.metric], each, mean, deviation, apart)


def repetitions(stages: Mapping[str, Any]) -> dict[str, list[str]]:
    """The stages of a recipe that others repeat with another seed, each with those."""
    found: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if isinstance(stage, dict) and isinstance(original := stage.get("repeats"), str):
            found.setdefault(original, []).append(name)
    return found


def spreads(summaries: Mapping[str, Mapping[str, Any]], repeats: Mapping[str, Sequence[str]]) -> list[Spread]:
    """Every rate that was measured with at least two seeds.

    Args:
        summaries: model name to summary.json.
        repeats: what :func:`repetitions` gives.
    """
    found = []
    for model, others in repeats.items():
        sides = [summaries[name] for name in (model, *others) if name in summaries]
        if model not in summaries or len(sides) < 2:
            continue
        for benchmark in summaries[model].get("benchmarks", {}):
            for metric, _ in RATES:
                cells = [cell for side in sides if (cell := metric_cell(side, benchmark, metric))]
                if len(cells) > 1:
                    found.append(Spread(model, benchmark, metric, tuple(float(cell["rate"]) for cell in cells)))
    return found
