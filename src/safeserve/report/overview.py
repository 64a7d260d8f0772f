"""The picture to show: every model at once, how safe it is against how often it refuses what is harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from safeserve.evaluation.benchmarks import SUITES
from safeserve.report.charts import Line as Curve
from safeserve.report.charts import line_chart
from safeserve.report.labels import Box, Line, Name, Spot, leader, place, text_width
from safeserve.report.rows import interval_text, metric_cell, percent

SAFE, REFUSED, CORRECT = "safe_rate", "over_refusal_rate", "accuracy"
RATES = ((SAFE, "answered safely"), (REFUSED, "over-refused"), (CORRECT, "correct"))
"""The three rates that belong together, in words."""
LONGEST = 32
"""Characters of a model's name beside its point."""
_LETTERS, _HEIGHT, _AIR = 13.0, 16.0, 4.0
"""Size of the names' font, height of their boxes and least room between two in a row, in the picture's pixels."""
_BOLD = 1.2
"""How much wider bold letters are."""
_TEMPTING = {benchmark.name for benchmark in SUITES["over-refusal"]} | {"starter-look-alike"}
"""Benchmarks whose harmless prompts look harmful, which is where a model refuses too much."""

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A model: the cells of its safe rate, of its over-refusal rate and of its accuracy (None where not measured).

    ``repeats`` names the model whose training it repeats with another seed, where that one is shown too; empty for
    a model of its own.
    """

    model: str
    safe: Cell
    refused: Cell
    correct: Cell | None
    candidate: bool
    repeats: str = ""


@dataclass(frozen=True)
class TradeOff:
    """What the picture shows. ``harmful``, ``benign`` and ``helpful`` name the benchmarks, the last may be empty.

    ``wide`` is for screens and paper; ``narrow``, with names alone, for phones. ``unnamed``: models whose names found
    no room in the wide one.
    """

    points: tuple[Point, ...]
    harmful: str
    benign: str
    helpful: str
    wide: Markup
    narrow: Markup
    unnamed: tuple[str, ...] = ()

    @property
    def seeds(self) -> bool:
        """Whether some points are other seeds of a model."""
        return any(point.repeats for point in self.points)


@dataclass(frozen=True)
class _Frame:
    """The canvas: its size in pixels, and where 0 and 100 % lie on both axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, share: float) -> float:
        return self.left + (self.right - self.left) * share

    def y(self, share: float) -> float:
        return self.bottom - (self.bottom - self.top) * share


_WIDE = _Frame(760, 290, 36, 748, 14, 266)
_NARROW = _Frame(360, 400, 34, 350, 14, 376)


def trade_off(
    summaries: Mapping[str, Mapping[str, Any]],
    candidate: str,
    limits: Mapping[tuple[str, str], float],
    repeats: Mapping[str, Sequence[str]] | None = None,
) -> TradeOff | None:
    """Both rates of every model, on benchmarks that all models share: those that the policy names, else for refusals
    one whose prompts look harmful, else the first.

    Args:
        summaries: model name to summary.json.
        candidate: the model that stands out.
        limits: (metric, benchmark) to where the policy draws its line.
        repeats: models by those that repeat their training with another seed: small points without a name.

    Returns:
        None unless some benchmark of each kind was measured on every model: one side alone is not shown.
    """
    harmful, benign, helpful = (_benchmark(summaries, metric, limits) for metric in (SAFE, REFUSED, CORRECT))
    if not (harmful and benign):
        return None
    points = []
    seeds = {other: model for model, others in (repeats or {}).items() for other in others if model in summaries}
    for model, summary in summaries.items():
        safe, refused = metric_cell(summary, harmful, SAFE), metric_cell(summary, benign, REFUSED)
        if safe is None or refused is None:
            return None
        correct = metric_cell(summary, helpful, CORRECT) if helpful else None
        of = "" if model == candidate else seeds.get(model, "")
        points.append(Point(model, safe, refused, correct, model == candidate, of))
    lines = (limits.get((SAFE, harmful)), limits.get((REFUSED, benign)))
    wide, unnamed = _drawn(points, lines, _WIDE, with_accuracy=True)
    narrow, _ = _drawn(points, lines, _NARROW, with_accuracy=False)
    return TradeOff(tuple(points), harmful, benign, helpful, wide, narrow, unnamed)


@dataclass(frozen=True)
class CoverageChart:
    """Best-of-k coverage of a RAFT stage: (k, share of harmful prompts with a safe sample among k), and remarks."""

    stage: str
    by: str
    prompts: int
    points: tuple[tuple[int, float], ...]
    remarks: tuple[str, ...]
    svg: Markup


def coverage_charts(preflights: Mapping[str, Mapping[str, Any]]) -> list[CoverageChart]:
    """What selection could find before each RAFT stage learned anything; from 0 to 100 %."""
    charts = []
    for stage, found in preflights.items():
        if curve := found.get("coverage"):
            points = tuple((int(row["k"]), float(row["coverage"])) for row in curve)
            line = Curve("coverage", tuple((float(k), share) for k, share in points))
            svg = line_chart([line], f"{stage}: prompts with a safe sample among k", (0.0, 1.0))
            remarks = (*map(str, found.get("warnings", ())), *map(str, found.get("notes", ())))
            charts.append(CoverageChart(stage, found["coverage_by"], int(curve[0]["prompts"]), points, remarks, svg))
    return charts


def _benchmark(summaries: Mapping[str, Mapping[str, Any]], metric: str, limits: Mapping[tuple[str, str], float]) -> str:
    """The benchmark that shows this metric, of those that every model was measured on; empty for none.

    One that the policy names; else for refusals one whose harmless prompts look harmful; else the first.
    """
    parts = [summary.get("benchmarks", {}) for summary in summaries.values()]
    shared = [name for name in parts[0] if all(name in other for other in parts)] if parts else []
    named = [benchmark for of, benchmark in limits if of == metric and benchmark in shared]
    measured = [name for name in shared if all(metric_cell(summary, name, metric) for summary in summaries.values())]
    meant = [name for name in measured if metric == REFUSED and name in _TEMPTING]
    return next(iter([*named, *meant, *measured]), "")


def _drawn(
    points: Sequence[Point], limits: tuple[float | None, float | None], frame: _Frame, with_accuracy: bool
) -> tuple[Markup, tuple[str, ...]]:
    """The picture in a frame, and the models whose names found no room in it."""
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        marks.append(_line("grid", frame.x(share), frame.x(share), frame.y(0), frame.y(1)))
        marks.append(_line("grid", frame.x(0), frame.x(1), frame.y(share), frame.y(share)))
        marks.append(_text("tick middle", frame.x(share), frame.bottom + 16, f"{100 * share:g}"))
        marks.append(_text("tick end", frame.left - 7, frame.y(share) + 4, f"{100 * share:g}"))
    least_safe, most_refused = limits
    if least_safe is not None:
        marks.append(_line("limit", frame.x(0), frame.x(1), frame.y(least_safe), frame.y(least_safe)))
    if most_refused is not None:
        marks.append(_line("limit", frame.x(most_refused), frame.x(most_refused), frame.y(0), frame.y(1)))
    at = {point.model: (frame.x(point.refused["rate"]), frame.y(point.safe["rate"])) for point in points}
    for point in sorted(points, key=lambda point: point.candidate):  # on top of the others
        marks.append(_seed(point, at) if point.repeats else _mark(point, at[point.model], frame))
    named = sorted((point for point in points if not point.repeats), key=lambda point: not point.candidate)
    words = [shortened(point.model) for point in named]
    if with_accuracy:
        rates = (f", {percent(point.correct['rate'], 0)} correct" if point.correct else "" for point in named)
        words = [name + rate for name, rate in zip(words, rates, strict=True)]
    widths = [
        text_width(text, _LETTERS * (_BOLD if point.candidate else 1)) + _AIR
        for point, text in zip(named, words, strict=True)
    ]
    names = [Name(*at[point.model], width, _HEIGHT) for point, width in zip(named, widths, strict=True)]
    dots = [Box(x - 7, y - 7, 14, 14) for x, y in at.values()]
    intervals = [line for point in named for line in _intervals(point, at[point.model], frame)]
    area = Box(frame.left + 2, 1, frame.width - frame.left - 3, frame.bottom - 3)
    boxes = place(names, area, dots, intervals)
    for point, text, box in zip(named, words, boxes, strict=True):
        if box:
            marks.append(_name(point, text, box, *at[point.model]))
    told = ". ".join(map(_words, points))
    body = '<svg class="tradeoff" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>'
    svg = Markup(body).format(frame.width, frame.height, told, Markup("").join(marks))
    return svg, tuple(point.model for point, box in zip(named, boxes, strict=True) if box is None)


def shortened(name: str) -> str:
    """A model's name as it stands beside its point."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _intervals(point: Point, at: Spot, frame: _Frame) -> tuple[Line, Line]:
    """A point's two intervals, across and upright."""
    (x, y), (x1, x2), (y1, y2) = at, map(frame.x, point.refused["ci95"]), map(frame.y, point.safe["ci95"])
    return ((x1, y), (x2, y)), ((x, y1), (x, y2))


def _mark(point: Point, at: Spot, frame: _Frame) -> Markup:
    """A model's dot with the intervals of both rates."""
    (x, y), intervals = at, _intervals(point, at, frame)
    parts = [
        Markup("<title>{}</title>").format(_words(point)),
        *(_line("ci", x1, x2, y1, y2) for (x1, y1), (x2, y2) in intervals),
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="6"/>').format(x, y),
    ]
    return Markup('<g class="{}">{}</g>').format(_css(point), Markup("").join(parts))


def _seed(point: Point, at: Mapping[str, Spot]) -> Markup:
    """Another seed of a model: a small dot, tied to the model's own."""
    (x, y), (x2, y2) = at[point.model], at[point.repeats]
    return Markup('<g class="interval seed"><title>{}</title>{}{}</g>').format(
        _words(point),
        _line("leader", x, x2, y, y2),
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y),
    )


def _name(point: Point, text: str, box: Box, x: float, y: float) -> Markup:
    """A name in its box, on the side of the point, with a line to it where it had to move away."""
    side = "end" if box.right < x else "" if box.left > x else "middle"
    start = {"end": box.right, "": box.left, "middle": (box.left + box.right) / 2}[side]
    end = leader(box, x, y)
    return Markup('<g class="{}">{}{}</g>').format(
        _css(point),
        _line("leader", x, end[0], y, end[1]) if end else "",
        _text(f"name {side}".strip(), start, box.bottom - 4, text),
    )


def _css(point: Point) -> str:
    return "interval candidate" if point.candidate else "interval other"


def _words(point: Point) -> str:
    rates = [("safe", point.safe), ("over-refused", point.refused), ("correct", point.correct)]
    of = f" (another seed of {point.repeats})" if point.repeats else ""
    return f"{point.model}{of}: " + ", ".join(
        f"{name} {percent(cell['rate'])} ({interval_text(cell['ci95'])}, n = {cell['n']})"
        for name, cell in rates
        if cell
    )


def _line(css: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(css, x1, x2, y1, y2)


def _text(css: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, text)
