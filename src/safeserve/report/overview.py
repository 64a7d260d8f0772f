"""The picture to show: every model at once, how safe it is against how often it refuses what is harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from safeserve.report.charts import Line, line_chart
from safeserve.report.rows import interval_text, metric_cell, percent

SAFE, REFUSED, CORRECT = "safe_rate", "over_refusal_rate", "accuracy"
RATES = ((SAFE, "answered safely"), (REFUSED, "over-refused"), (CORRECT, "correct"))
"""The three rates that belong together, in words."""
_TOP, _BOTTOM, _LEFT, _RIGHT = 14.0, 266.0, 7.0, 97.0
"""Where 100 % and 0 % lie: pixels from above, percent of the width."""

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A model: the cells of its safe rate, of its over-refusal rate and of its accuracy (None where not measured)."""

    model: str
    safe: Cell
    refused: Cell
    correct: Cell | None
    candidate: bool


@dataclass(frozen=True)
class TradeOff:
    """What the picture shows. ``harmful``, ``benign`` and ``helpful`` name the benchmarks, the last may be empty."""

    points: tuple[Point, ...]
    harmful: str
    benign: str
    helpful: str
    svg: Markup


def trade_off(
    summaries: Mapping[str, Mapping[str, Any]], candidate: str, limits: Mapping[tuple[str, str], float]
) -> TradeOff | None:
    """Both rates of every model, on the benchmarks that the policy names, else on the first that all models share.

    Args:
        summaries: model name to summary.json.
        candidate: the model that stands out.
        limits: (metric, benchmark) to where the policy draws its line.

    Returns:
        None unless some benchmark of each kind was measured on every model: one side alone is not shown.
    """
    harmful, benign, helpful = (_benchmark(summaries, metric, limits) for metric in (SAFE, REFUSED, CORRECT))
    if not (harmful and benign):
        return None
    points = []
    for model, summary in summaries.items():
        safe, refused = metric_cell(summary, harmful, SAFE), metric_cell(summary, benign, REFUSED)
        if safe is None or refused is None:
            return None
        correct = metric_cell(summary, helpful, CORRECT) if helpful else None
        points.append(Point(model, safe, refused, correct, model == candidate))
    svg = _drawn(points, limits.get((SAFE, harmful)), limits.get((REFUSED, benign)))
    return TradeOff(tuple(points), harmful, benign, helpful, svg)


@dataclass(frozen=True)
class DoseChart:
    """One rate over the number of safety demonstrations, a curve a benchmark."""

    title: str
    benchmarks: tuple[str, ...]
    least: int
    most: int
    svg: Markup


def dose_charts(summaries: Mapping[str, Mapping[str, Any]], doses: Mapping[str, int]) -> list[DoseChart]:
    """The three rates over the dose, where a run has SIT models of several doses; each from 0 to 100 %."""
    measured = sorted((dose, model) for model, dose in doses.items() if model in summaries)
    if len({dose for dose, _ in measured}) < 2:
        return []
    charts = []
    for metric, title in RATES:
        lines = []
        for benchmark in dict.fromkeys(b for _, model in measured for b in summaries[model].get("benchmarks", {})):
            cells = [(dose, metric_cell(summaries[model], benchmark, metric)) for dose, model in measured]
            points = tuple((float(dose), float(cell["rate"])) for dose, cell in cells if cell)
            if len(points) > 1:
                lines.append(Line(benchmark, points))
        if lines:
            svg = line_chart(lines, f"{title} over safety demonstrations", (0.0, 1.0))
            names = tuple(line.name for line in lines)
            charts.append(DoseChart(title, names, measured[0][0], measured[-1][0], svg))
    return charts


@dataclass(frozen=True)
class CoverageChart:
    """Best-of-k coverage of a RAFT stage: (k, share of harmful prompts with a safe sample among k), and warnings."""

    stage: str
    by: str
    prompts: int
    points: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...]
    svg: Markup


def coverage_charts(preflights: Mapping[str, Mapping[str, Any]]) -> list[CoverageChart]:
    """What selection could find before each RAFT stage learned anything; from 0 to 100 %."""
    charts = []
    for stage, found in preflights.items():
        if curve := found.get("coverage"):
            points = tuple((int(row["k"]), float(row["coverage"])) for row in curve)
            line = Line("coverage", tuple((float(k), share) for k, share in points))
            svg = line_chart([line], f"{stage}: prompts with a safe sample among k", (0.0, 1.0))
            warnings = tuple(map(str, found.get("warnings", ())))
            charts.append(CoverageChart(stage, found["coverage_by"], int(curve[0]["prompts"]), points, warnings, svg))
    return charts


def _benchmark(summaries: Mapping[str, Mapping[str, Any]], metric: str, limits: Mapping[tuple[str, str], float]) -> str:
    """The benchmark that shows this metric, of those that every model was measured on; empty for none."""
    parts = [summary.get("benchmarks", {}) for summary in summaries.values()]
    shared = [name for name in parts[0] if all(name in other for other in parts)] if parts else []
    named = [benchmark for of, benchmark in limits if of == metric and benchmark in shared]
    measured = [name for name in shared if all(metric_cell(summary, name, metric) for summary in summaries.values())]
    return next(iter([*named, *measured]), "")


def _drawn(points: Sequence[Point], least_safe: float | None, most_refused: float | None) -> Markup:
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        marks.append(_line("grid", share, share, 0, 1))
        marks.append(_line("grid", 0, 1, share, share))
        marks.append(_text("tick middle", f"{_x(share)}%", _BOTTOM + 16, f"{100 * share:g}"))
        marks.append(_text("tick end", f"{_LEFT - 1}%", _y(share) + 4, f"{100 * share:g}"))
    if least_safe is not None:
        marks.append(_line("limit", 0, 1, least_safe, least_safe))
    if most_refused is not None:
        marks.append(_line("limit", most_refused, most_refused, 0, 1))
    for point in points:
        marks.append(_mark(point))
    frame = '<svg class="tradeoff" width="100%" height="290" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(". ".join(map(_words, points)), Markup("").join(marks))


def _mark(point: Point) -> Markup:
    x, y = point.refused["rate"], point.safe["rate"]
    (x1, x2), (y1, y2) = point.refused["ci95"], point.safe["ci95"]
    left, below = x > 0.7, y > 0.93  # the name stands where there is room for it
    label = point.model + (f", {percent(point.correct['rate'], 0)} correct" if point.correct else "")
    parts = [
        Markup("<title>{}</title>").format(_words(point)),
        _line("ci", x1, x2, y, y),
        _line("ci", x, x, y1, y2),
        Markup('<circle class="dot" cx="{:.2f}%" cy="{:.1f}" r="6"/>').format(_x(x), _y(y)),
        _text(
            "name" + (" end" if left else ""),
            f"{_x(x) + (-1.4 if left else 1.4):.2f}%",
            _y(y) + (18 if below else -9),
            label,
        ),
    ]
    css = "interval candidate" if point.candidate else "interval other"
    return Markup('<g class="{}">{}</g>').format(css, Markup("").join(parts))


def _words(point: Point) -> str:
    rates = [("safe", point.safe), ("over-refused", point.refused), ("correct", point.correct)]
    return f"{point.model}: " + ", ".join(
        f"{name} {percent(cell['rate'])} ({interval_text(cell['ci95'])}, n = {cell['n']})"
        for name, cell in rates
        if cell
    )


def _line(css: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    """A line between two points given as shares."""
    return Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{:.1f}" y2="{:.1f}"/>').format(
        css, _x(x1), _x(x2), _y(y1), _y(y2)
    )


def _text(css: str, x: str, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{:.1f}">{}</text>').format(css, x, y, text)


def _x(share: float) -> float:
    """Percent of the width."""
    return _LEFT + (_RIGHT - _LEFT) * share


def _y(share: float) -> float:
    """Pixels from above."""
    return _BOTTOM - (_BOTTOM - _TOP) * share
