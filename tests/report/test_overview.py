"""The trade-off picture: where marks lie, which benchmarks it takes, and when it is left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from safeserve.core.runs import read_json, write_json, write_text
from safeserve.report.figures import write_figures
from safeserve.report.html import render_report, report_from_run
from safeserve.report.overview import coverage_charts, dose_charts, trade_off


def cell(rate: float) -> dict[str, Any]:
    return {"rate": rate, "ci95": [max(0.0, rate - 0.1), min(1.0, rate + 0.1)], "n": 100, "successes": 100 * rate}


def summary(safe: float, refused: float, correct: float | None = None, prefix: str = "") -> dict[str, Any]:
    parts = {
        "harm": {"modes": {"safe_rate": cell(safe)}},
        "look": {"modes": {"over_refusal_rate": cell(refused)}},
    }
    if correct is not None:
        parts["quiz"] = {"short_answer": {"accuracy": cell(correct)}}
    return {
        "benchmarks": {
            prefix + name: {"judges": {judge: {"metrics": metrics} for judge, metrics in judges.items()}}
            for name, judges in parts.items()
        }
    }


def test_marks_lie_where_the_rates_are() -> None:
    found = trade_off({"base": summary(0.5, 0.0), "dpo": summary(1.0, 0.25)}, "dpo", {})
    assert found is not None
    root = ElementTree.fromstring(str(found.svg))
    dots = [(circle.attrib["cx"], circle.attrib["cy"]) for circle in root.iter("circle")]
    # 7 % to 97 % of the width, 266 to 14 pixels from above
    assert dots == [("7.00%", "140.0"), ("29.50%", "14.0")]
    groups = [group.attrib["class"] for group in root.iter("g")]
    assert groups == ["interval other", "interval candidate"]
    assert root.attrib["aria-label"].startswith("base: safe 50.0 % (40.0 to 60.0, n = 100), over-refused 0.0 %")


def test_the_policy_chooses_benchmarks_and_draws_lines() -> None:
    both = {
        name: {"benchmarks": {**summary(0.5, 0.1)["benchmarks"], **summary(0.9, 0.2, prefix="x-")["benchmarks"]}}
        for name in ("base", "dpo")
    }
    found = trade_off(both, "dpo", {("safe_rate", "x-harm"): 0.7, ("over_refusal_rate", "gone"): 0.3})
    assert found is not None
    assert (found.harmful, found.benign) == ("x-harm", "look")
    assert str(found.svg).count('class="limit"') == 1


@pytest.mark.parametrize("missing", ["harm", "look"])
def test_one_side_alone_is_not_drawn(missing: str) -> None:
    two = {"base": summary(0.5, 0.1), "dpo": summary(0.9, 0.2)}
    del two["dpo"]["benchmarks"][missing]
    assert trade_off(two, "dpo", {}) is None
    assert trade_off({}, "dpo", {}) is None


def test_a_models_name_stays_text_and_stays_inside() -> None:
    found = trade_off({'<b>"': summary(0.5, 0.9, 0.4)}, "none", {})
    assert found is not None
    (name,) = re.findall(r'<text class="name.*?</text>', str(found.svg))
    assert "end" in name, "far right, so the name stands on the left"
    assert "&lt;b&gt;&#34;, 40 % correct" in name


def test_it_is_on_the_page(make_run: Callable[..., Path]) -> None:
    run = make_run()
    page = render_report(report_from_run(run))
    assert 'class="tradeoff"' in page
    rate = read_json(run / "evals" / "dpo" / "summary.json")["benchmarks"]["starter-harmful"]["judges"]["modes"]
    assert f"dpo: safe {100 * rate['metrics']['safe_rate']['rate']:.1f} %" in page


def test_rates_over_the_dose() -> None:
    models = {"none": summary(0.25, 0.0), "some": summary(0.5, 0.0), "more": summary(1.0, 0.5)}
    charts = dose_charts(models, {"none": 0, "some": 100, "more": 400, "absent": 900})
    assert [(chart.title, chart.benchmarks, chart.least, chart.most) for chart in charts] == [
        ("answered safely", ("harm",), 0, 400), ("over-refused", ("look",), 0, 400)
    ]  # fmt: skip
    # 300 wide; 100 % at 5, 0 % at 105
    assert 'points="0.0,80.0 75.0,55.0 300.0,5.0"' in str(charts[0].svg)
    assert dose_charts(models, {"none": 0}) == []
    assert dose_charts(models, {"none": 100, "some": 100}) == []


def test_coverage_stands_on_the_page_and_in_a_figure(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    assert "What RAFT could select from" not in render_report(report_from_run(run))
    write_text(run / "recipe.yaml", "train: {raft: {method: raft}, unfinished: {method: raft}}\n")
    curve = [{"k": 1, "coverage": 0.25, "prompts": 8}, {"k": 2, "coverage": 0.5, "prompts": 8}]
    found = {"coverage": curve, "coverage_by": "guard", "warnings": ["a & b"]}
    write_json(run / "stages" / "train-raft" / "iter-1" / "preflight.json", found)
    (chart,) = coverage_charts(report_from_run(run).preflights)
    assert (chart.stage, chart.prompts, chart.points) == ("raft", 8, ((1, 0.25), (2, 0.5)))
    # 25 and 50 % of 100 pixels, from 105 upwards; k = 1 and k = 2 at both ends of 300
    assert 'points="0.0,80.0 300.0,55.0"' in chart.svg
    page = render_report(report_from_run(run))
    assert "k = 2: 50.0 %" in page
    assert "raft: a &amp; b" in page
    assert "coverage.svg" in {path.name for path in write_figures(run, tmp_path / "figures", ["svg"])}
