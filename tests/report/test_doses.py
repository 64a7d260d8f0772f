"""Rates over the dose: where marks lie, curves that cannot be confused, every dose labelled."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest

from safeserve.report.charts import SERIES
from safeserve.report.doses import dose_charts, rows_of_labels, series_style
from safeserve.report.html import template


def cell(rate: float) -> dict[str, Any]:
    return {"rate": rate, "ci95": [max(0.0, rate - 0.1), min(1.0, rate + 0.1)], "n": 100}


def summary(safe: float, refused: float) -> dict[str, Any]:
    rates = {"harm": {"safe_rate": cell(safe)}, "look": {"over_refusal_rate": cell(refused)}}
    return {"benchmarks": {name: {"judges": {"modes": {"metrics": metrics}}} for name, metrics in rates.items()}}


def test_rates_over_the_dose() -> None:
    models = {"none": summary(0.25, 0.0), "some": summary(0.5, 0.0), "more": summary(1.0, 0.5)}
    charts = dose_charts(models, {"none": 0, "some": 100, "more": 400, "absent": 900})
    assert [(chart.title, [name for name, _ in chart.series], chart.doses) for chart in charts] == [
        ("answered safely", ["harm"], (0, 100, 400)), ("over-refused", ["look"], (0, 100, 400))
    ]  # fmt: skip
    root = ElementTree.fromstring(str(charts[0].svg))
    # 0 at 13 % of the width, 400 at 93 %; 100 % at 12 pixels, 0 % at 168
    marks = [(svg.attrib["x"], svg.attrib["y"]) for svg in root.iter("svg") if "x" in svg.attrib]
    assert marks == [("13.00%", "129.0"), ("33.00%", "90.0"), ("93.00%", "12.0")]
    bars = [line for line in root.iter("line") if line.attrib["class"] == "ci"]
    assert (bars[1].attrib["y1"], bars[1].attrib["y2"]) == ("105.6", "74.4")  # 40 and 60 %
    assert [text.text for text in root.iter("text")][-3:] == ["0", "100", "400"]
    assert "100 50.0 % (40.0 to 60.0, n = 100)" in root.attrib["aria-label"]
    assert next(title.text for title in root.iter("title")) == "harm, 0: 25.0 % (15.0 to 35.0, n = 100)"
    assert dose_charts(models, {"none": 0}) == []
    assert dose_charts(models, {"none": 100, "some": 100}) == []


def test_a_rate_without_an_interval_is_a_mark_alone() -> None:
    models = {"a": summary(0.2, 0.0), "b": summary(0.4, 0.0)}
    for model in models.values():
        model["benchmarks"]["harm"]["judges"]["modes"]["metrics"]["safe_rate"]["ci95"] = None
    svg = str(dose_charts(models, {"a": 0, "b": 1})[0].svg)
    assert 'class="ci"' not in svg
    assert svg.count('class="mark"') == 2


def test_curves_of_many_benchmarks_are_all_different() -> None:
    assert len({series_style(index)[:2] for index in range(36)}) == 36
    parts = {f"b{n}": {"judges": {"modes": {"metrics": {"safe_rate": cell(0.5)}}}} for n in range(11)}
    (chart,) = dose_charts({"a": {"benchmarks": parts}, "b": {"benchmarks": parts}}, {"a": 0, "b": 100})
    looks = re.findall(r'class="series (series-\d)".*?<path class="mark" d="(.*?)"', str(chart.svg))
    assert len(looks) == len(set(looks)) == 11
    keys = [re.search(r'class="series (series-\d)".*? d="(.*?)"', str(key)) for _, key in chart.series]
    assert [key.groups() for key in keys if key] == looks, "the key shows what is drawn"


def test_every_dose_is_labelled_and_none_over_another() -> None:
    centres, widths = [0.0, 14.0, 42.0, 70.0, 140.0], [7.0, 22.0, 22.0, 22.0, 37.0]
    rows = rows_of_labels(centres, widths)
    assert rows == [0, 1, 0, 0, 0]
    many = [float(x) for x in range(30)]
    assert rows_of_labels(many, [10.0] * 30) == [x % 15 for x in range(30)]


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _luminance(colour: str) -> float:
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(colour), strict=True))


_SEEN = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
"""Colours as seen with and without a cone type (Machado, Oliveira and Fernandes 2009, severity 1), on linear RGB."""


def _lab(colour: str, eye: str) -> tuple[float, float, float]:
    seen = [min(max(sum(a * b for a, b in zip(row, _linear(colour), strict=True)), 0), 1) for row in _SEEN[eye]]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, seen, strict=True)) for row in rows]
    x, y, z = (
        v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_of_curves_are_readable_and_told_apart(mode: int) -> None:
    style = template("report.css")
    paper = re.findall(r"--paper: (#\w+)", style)[mode]
    colours = [re.findall(rf"--s{index}: (#\w+)", style)[mode] for index in range(SERIES)]
    for colour in colours:
        dark, light = sorted((_luminance(colour), _luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 3, colour
    for eye in _SEEN:
        for one, two in combinations(colours, 2):
            apart = sum((a - b) ** 2 for a, b in zip(_lab(one, eye), _lab(two, eye), strict=True)) ** 0.5
            assert apart >= 18, (eye, one, two)
