"""Small charts as inline SVG: pure functions from numbers to markup.

Bars and intervals place their marks in percent of the width, so they fit any column without scaling text; all words
stand beside them in HTML. Colours are CSS classes of the page, so dark mode and print need no second drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

MODE_ORDER = (
    "unsafe_compliance",
    "degenerate",
    "empty",
    "evasive",
    "helpful_answer",
    "safe_answer",
    "partial_refusal",
    "full_refusal",
)
"""Order of the stacked bars: what hurts stands left, refusals right."""
SERIES = 6
"""Colours that curves have in the style sheet (``--s0`` to ``--s5``), to be told apart also without red or green."""


@dataclass(frozen=True)
class Line:
    """One curve: ``points`` are (x, y); curves of one name share a colour, ``dashed`` marks validation."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


def interval_chart(
    rate: float, low: float, high: float, limit: float | None = None, tone: str = "", title: str = ""
) -> Markup:
    """A dot with its interval on a 0–100 % track.

    Args:
        rate, low, high: shares.
        limit: share where the policy draws its line, or None.
        tone: CSS class of the mark.
        title: what a pointer or a screen reader is told.
    """
    marks = [_vertical(x, "grid") for x in (0, 0.25, 0.5, 0.75, 1)]
    if limit is not None:
        marks.append(_vertical(limit, "limit"))
    marks.append(Markup('<line class="ci" x1="{}" x2="{}" y1="13" y2="13"/>').format(_x(low), _x(high)))
    marks.append(Markup('<circle class="dot" cx="{}" cy="13" r="5.5"/>').format(_x(rate)))
    return _svg(marks, f"interval {tone}", 26, title)


def stacked_bar(counts: Mapping[str, int], title: str = "") -> Markup:
    """Response modes as one bar of full width; counts that are 0 take no room."""
    total = sum(counts.values())
    order = [mode for mode in MODE_ORDER if mode in counts] + sorted(set(counts) - set(MODE_ORDER))
    marks, start = [], 0.0
    for mode in order:
        share = counts[mode] / total if total else 0.0
        label = f"{mode.replace('_', ' ')}: {counts[mode]} of {total}"
        marks.append(
            Markup('<rect class="mode {}" x="{}" width="{}" y="0" height="22"><title>{}</title></rect>').format(
                mode_class(mode), _x(start), _x(share), label
            )
        )
        start += share
    return _svg(marks, "stack", 22, title)


def histogram(values: Sequence[float], threshold: float, bins: int = 20, title: str = "") -> Markup:
    """How values in [0, 1] are spread: one bar a bin, those from the threshold on marked, and a line at it.

    A bar's height is the square root of its count, so that a few answers stay visible beside many.
    """
    counts = [0] * bins
    for value in values:
        counts[min(int(value * bins), bins - 1)] += 1
    most = max(counts, default=0)
    marks = []
    for index, count in enumerate(counts):
        height = 44 * (count / most) ** 0.5 if most else 0.0
        middle = (index + 0.5) / bins
        marks.append(
            Markup('<rect class="bin {}" x="{}" width="{}" y="{:.1f}" height="{:.1f}"><title>{}</title></rect>').format(
                "over" if middle >= threshold else "under",
                _x(index / bins),
                _x(0.92 / bins),
                46 - height,
                height,
                f"{index / bins:.2f} to {(index + 1) / bins:.2f}: {count}",
            )
        )
    marks.append(Markup('<line class="limit" x1="{0}" x2="{0}" y1="0" y2="46"/>').format(_x(threshold)))
    return _svg(marks, "histogram", 46, title)


def reliability_chart(curve: Sequence[Mapping[str, Any]], title: str = "") -> Markup:
    """Predicted (right) against observed (up) shares with 95 % intervals, and the diagonal where both are the same."""

    def y(share: float) -> str:
        return f"{96 - 90 * share:.1f}"

    marks = [Markup('<line class="grid" x1="0%" x2="100%" y1="{}" y2="{}"/>').format(y(0), y(1))]
    for part in curve:
        x, (low, high) = _x(part["predicted"]), part["ci95"]
        marks.append(Markup('<line class="ci" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, y(low), y(high)))
        marks.append(Markup('<circle class="dot" cx="{}" cy="{}" r="4"/>').format(x, y(part["observed"])))
    return _svg(marks, "interval reliability", 102, title)


def mode_class(mode: str) -> str:
    """CSS class of a response mode; one class for all modes that the page does not know."""
    return f"mode-{mode}" if mode in MODE_ORDER else "mode-other"


def line_chart(lines: Sequence[Line], title: str = "", between: tuple[float, float] | None = None) -> Markup:
    """Curves on a canvas of 300 × 110 that stretches to its column.

    Args:
        between: values at the bottom and the top; those of the curves when not given.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return Markup("")
    (left, right), (bottom, top) = (min(xs), max(xs)), between or (min(ys), max(ys))
    width, height = (right - left) or 1.0, (top - bottom) or 1.0
    marks = []
    names = list(dict.fromkeys(line.name for line in lines))
    for line in lines:
        placed = [(300 * (x - left) / width, 105 - 100 * (y - bottom) / height) for x, y in sorted(line.points)]
        if len(placed) == 1:
            placed.append((placed[0][0] + 3, placed[0][1]))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        css = f"curve curve-{names.index(line.name) % SERIES}" + (" dashed" if line.dashed else "")
        marks.append(Markup('<polyline class="{}" points="{}"/>').format(css, path))
    body = Markup("").join(marks)
    frame = '<svg class="lines" viewBox="0 0 300 110" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(title, body)


def _svg(marks: Sequence[Markup], css: str, height: int, title: str) -> Markup:
    frame = '<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(css.strip(), height, title, Markup("").join(marks))


def _vertical(share: float, css: str) -> Markup:
    return Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="26"/>').format(css, _x(share))


def _x(share: float) -> str:
    return str(escape(f"{100 * min(max(share, 0.0), 1.0):.2f}%"))
