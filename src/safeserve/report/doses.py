"""Rates over the number of safety demonstrations: curves told apart by colour, mark and dash, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from safeserve.report.charts import SERIES
from safeserve.report.labels import text_width
from safeserve.report.overview import RATES
from safeserve.report.rows import interval_text, metric_cell, percent

_TOP, _BOTTOM, _LEFT, _RIGHT = 12.0, 168.0, 13.0, 93.0
"""Where 100 % and 0 % lie: pixels from above, percent of the width."""
_NARROWEST = 290.0
"""Pixels: doses must be readable side by side also in a column this narrow."""
_TICK = 12.0
_MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5l5.2 9h-10.4z",
    "M0 -5.8l5.2 5.8l-5.2 5.8l-5.2 -5.8z",
    "M0 5.5l5.2 -9h-10.4z",
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
)
"""Circle, square, triangle, diamond, triangle downwards, cross: around (0, 0)."""
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class DoseChart:
    """One rate over the number of safety demonstrations, a curve a benchmark, with the key of each."""

    title: str
    series: tuple[tuple[str, Markup], ...]
    doses: tuple[int, ...]
    svg: Markup


def dose_charts(summaries: Mapping[str, Mapping[str, Any]], doses: Mapping[str, int]) -> list[DoseChart]:
    """The three rates over the dose, where a run has SIT models of several doses; each from 0 to 100 %."""
    measured = sorted((dose, model) for model, dose in doses.items() if model in summaries)
    levels = tuple(sorted({dose for dose, _ in measured}))
    if len(levels) < 2:
        return []
    charts = []
    for metric, title in RATES:
        curves = {}
        for benchmark in dict.fromkeys(b for _, model in measured for b in summaries[model].get("benchmarks", {})):
            cells = [(dose, metric_cell(summaries[model], benchmark, metric)) for dose, model in measured]
            points = [(dose, cell) for dose, cell in cells if cell]
            if len(points) > 1:
                curves[benchmark] = points
        if curves:
            series = tuple((name, series_key(index)) for index, name in enumerate(curves))
            charts.append(DoseChart(title, series, levels, _drawn(title, levels, curves)))
    return charts


def series_style(index: int) -> tuple[str, str, str]:
    """CSS class (colour), mark and dashes of a curve; colour and mark together differ for the first 36."""
    return f"series-{index % SERIES}", _MARKS[(index + index // SERIES) % len(_MARKS)], _DASHES[index % len(_DASHES)]


def series_key(index: int) -> Markup:
    """A piece of the curve, to stand before its name."""
    css, mark, dashes = series_style(index)
    return Markup(
        '<svg class="series {}" width="34" height="12" aria-hidden="true">'
        '<line class="join" x1="0" x2="34" y1="6" y2="6" stroke-dasharray="{}"/>'
        '<path class="mark" transform="translate(17 6)" d="{}"/></svg>'
    ).format(css, dashes, mark)


def rows_of_labels(centres: Sequence[float], widths: Sequence[float], gap: float = 5.0) -> list[int]:
    """The row in which each label stands, 0 first, so that no two of a row touch; centres ascend."""
    ends: list[float] = []
    rows = []
    for centre, width in zip(centres, widths, strict=True):
        left = centre - width / 2
        row = next((row for row, end in enumerate(ends) if end + gap <= left), len(ends))
        ends[row : row + 1] = [centre + width / 2]
        rows.append(row)
    return rows


def _drawn(title: str, levels: Sequence[int], curves: Mapping[str, Sequence[tuple[int, Any]]]) -> Markup:
    def x(dose: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (dose - levels[0]) / (levels[-1] - levels[0])

    names = [f"{dose:,}" for dose in levels]
    centres = [_NARROWEST * x(dose) / 100 for dose in levels]
    rows = rows_of_labels(centres, [text_width(name, _TICK) for name in names])
    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        marks.append(_line("grid", _LEFT, _RIGHT, _y(share), _y(share)))
        marks.append(_text("tick end", _LEFT, _y(share) + 4, f"{100 * share:g}", -14))
    for dose, name, row in zip(levels, names, rows, strict=True):
        marks.append(_line("grid", x(dose), x(dose), _BOTTOM, _BOTTOM + 5 + 14 * row))
        marks.append(_text("tick middle", x(dose), _BOTTOM + 17 + 14 * row, name))
    for index, (benchmark, points) in enumerate(curves.items()):
        # Curves stand a little beside each other, so that intervals at the same dose do not cover each other.
        beside = 4.0 * (index - (len(curves) - 1) / 2)
        marks.append(_curve(benchmark, [(dose, x(dose), cell) for dose, cell in points], index, beside))
    told = ". ".join(
        f"{benchmark}: " + ", ".join(f"{dose:,} {_words(cell)}" for dose, cell in points)
        for benchmark, points in curves.items()
    )
    frame = '<svg class="doses" width="100%" height="{}" role="img" aria-label="{}">{}</svg>'
    height = int(_BOTTOM + 24 + 14 * max(rows))
    return Markup(frame).format(height, f"{title} over safety demonstrations. {told}", Markup("").join(marks))


def _curve(name: str, points: Sequence[tuple[int, float, Any]], index: int, beside: float) -> Markup:
    """One curve of (dose, percent of the width, cell): lines, then intervals, then marks."""
    css, mark, dashes = series_style(index)
    joins, intervals, marks = [], [], []
    for (_, x1, one), (_, x2, two) in pairwise(points):
        join = '<line class="join" x1="{:.2f}%" x2="{:.2f}%" y1="{:.1f}" y2="{:.1f}" stroke-dasharray="{}"/>'
        joins.append(Markup(join).format(x1, x2, _y(one["rate"]), _y(two["rate"]), dashes))
    for dose, x, cell in points:
        if limits := cell.get("ci95"):
            intervals.append(_line("ci", x, x, _y(limits[0]), _y(limits[1])))
        told = f"{name}, {dose:,}: {_words(cell)}"
        place = '<svg x="{:.2f}%" y="{:.1f}"><path class="mark" d="{}"><title>{}</title></path></svg>'
        marks.append(Markup(place).format(x, _y(cell["rate"]), mark, told))
    group = '<g class="series {}" transform="translate({:.1f} 0)">{}</g>'
    return Markup(group).format(css, beside, Markup("").join([*joins, *intervals, *marks]))


def _words(cell: Mapping[str, Any]) -> str:
    return f"{percent(cell['rate'])} ({interval_text(cell.get('ci95'))}, n = {cell['n']})"


def _line(css: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.2f}%" x2="{:.2f}%" y1="{:.1f}" y2="{:.1f}"/>').format(css, x1, x2, y1, y2)


def _text(css: str, x: float, y: float, text: str, dx: float = 0.0) -> Markup:
    return Markup('<text class="{}" x="{:.2f}%" y="{:.1f}" dx="{:g}">{}</text>').format(css, x, y, dx, text)


def _y(share: float) -> float:
    """Pixels from above."""
    return _BOTTOM - (_BOTTOM - _TOP) * share
