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
from safeserve.report.overview import coverage_charts, trade_off


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
    root = ElementTree.fromstring(str(found.wide))
    dots = [(circle.attrib["cx"], circle.attrib["cy"]) for circle in root.iter("circle")]
    # 36 to 748 pixels to the right, 266 to 14 from above
    assert dots == [("36.0", "140.0"), ("214.0", "14.0")]
    groups = [group.attrib["class"] for group in root.iter("g")]
    assert groups == ["interval other", "interval candidate", "interval candidate", "interval other"]  # names last
    assert root.attrib["aria-label"].startswith("base: safe 50.0 % (40.0 to 60.0, n = 100), over-refused 0.0 %")


def test_refusals_are_shown_where_harmless_prompts_look_harmful() -> None:
    def both(refused: float) -> dict[str, Any]:
        parts = summary(0.5, 0.0)["benchmarks"]
        return {"benchmarks": {**parts, "XSTest-safe": summary(0.5, refused)["benchmarks"]["look"]}}

    found = trade_off({"base": both(0.1), "dpo": both(0.4)}, "dpo", {})
    assert found is not None
    assert (found.benign, [point.refused["rate"] for point in found.points]) == ("XSTest-safe", [0.1, 0.4])


def test_the_policy_chooses_benchmarks_and_draws_lines() -> None:
    both = {
        name: {"benchmarks": {**summary(0.5, 0.1)["benchmarks"], **summary(0.9, 0.2, prefix="x-")["benchmarks"]}}
        for name in ("base", "dpo")
    }
    found = trade_off(both, "dpo", {("safe_rate", "x-harm"): 0.7, ("over_refusal_rate", "gone"): 0.3})
    assert found is not None
    assert (found.harmful, found.benign) == ("x-harm", "look")
    assert str(found.wide).count('class="limit"') == 1


@pytest.mark.parametrize("missing", ["harm", "look"])
def test_one_side_alone_is_not_drawn(missing: str) -> None:
    two = {"base": summary(0.5, 0.1), "dpo": summary(0.9, 0.2)}
    del two["dpo"]["benchmarks"][missing]
    assert trade_off(two, "dpo", {}) is None
    assert trade_off({}, "dpo", {}) is None


def test_a_models_name_stays_text_and_stays_inside() -> None:
    found = trade_off({'<b>"': summary(0.5, 0.9, 0.4)}, "none", {})
    assert found is not None
    (name,) = re.findall(r'<text class="name.*?</text>', str(found.wide))
    assert "end" in name, "far right, so the name stands on the left"
    assert "&lt;b&gt;&#34;, 40 % correct" in name


def test_names_of_models_that_lie_together_do_not_overlap() -> None:
    models = {f"sit_{n}00-long-name": summary(0.9 + n / 300, n / 400, 0.6) for n in range(14)}
    found = trade_off(models, "sit_300-long-name", {})
    assert found is not None
    assert found.unnamed == ()
    for svg, count in ((found.wide, 14), (found.narrow, 14)):
        texts = [text for text in ElementTree.fromstring(str(svg)).iter("text") if "name" in text.attrib["class"]]
        assert len(texts) == count
        spots = [(float(text.attrib["x"]), float(text.attrib["y"])) for text in texts]
        assert len(set(spots)) == count
    assert 'class="leader"' in str(found.wide), "some had to move away from their points"


def test_a_crowd_without_room_is_named_below(make_run: Callable[..., Path]) -> None:
    models = {f"model-{n:03}-{'x' * 40}": summary(0.5, 0.5) for n in range(120)}
    found = trade_off(models, "none", {})
    assert found is not None
    assert 0 < len(found.unnamed) < 120


def test_other_seeds_are_small_points_without_a_name() -> None:
    models = {"base": summary(0.2, 0.0), "dpo": summary(0.9, 0.1), "dpo-seed8": summary(0.8, 0.2)}
    found = trade_off(models, "dpo", {}, {"dpo": ["dpo-seed8"], "gone": ["base"]})
    assert found is not None
    assert found.seeds
    root = ElementTree.fromstring(str(found.wide))
    assert [text.text for text in root.iter("text") if "name" in text.attrib["class"]] == ["dpo", "base"]
    (seed,) = [group for group in root.iter("g") if "seed" in group.attrib["class"]]
    tie, dot = seed.find("line"), seed.find("circle")
    assert tie is not None
    assert dot is not None
    assert float(dot.attrib["r"]) < 6
    # 10 % refused and 90 % safe, where the model's own dot lies
    assert (tie.attrib["x2"], tie.attrib["y2"]) == ("107.2", "39.2")
    assert "dpo-seed8 (another seed of dpo): safe 80.0 %" in root.attrib["aria-label"]
    assert not trade_off(models, "dpo", {}).seeds  # type: ignore[union-attr]


def test_it_is_on_the_page(make_run: Callable[..., Path]) -> None:
    run = make_run()
    page = render_report(report_from_run(run))
    assert 'class="tradeoff"' in page
    rate = read_json(run / "evals" / "dpo" / "summary.json")["benchmarks"]["starter-harmful"]["judges"]["modes"]
    assert f"dpo: safe {100 * rate['metrics']['safe_rate']['rate']:.1f} %" in page


def test_coverage_stands_on_the_page_and_in_a_figure(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    assert "What RAFT could select from" not in render_report(report_from_run(run))
    write_text(run / "recipe.yaml", "train: {raft: {method: raft}, unfinished: {method: raft}}\n")
    curve = [{"k": 1, "coverage": 0.25, "prompts": 8}, {"k": 2, "coverage": 0.5, "prompts": 8}]
    found = {"coverage": curve, "coverage_by": "guard", "warnings": ["a & b"], "notes": ["not shown"]}
    write_json(run / "stages" / "train-raft" / "iter-1" / "preflight.json", found)
    (chart,) = coverage_charts(report_from_run(run).preflights)
    assert (chart.stage, chart.prompts, chart.points) == ("raft", 8, ((1, 0.25), (2, 0.5)))
    # 25 and 50 % of 100 pixels, from 105 upwards; k = 1 and k = 2 at both ends of 300
    assert 'points="0.0,80.0 300.0,55.0"' in chart.svg
    page = render_report(report_from_run(run))
    assert "k = 2: 50.0 %" in page
    assert "raft: a &amp; b" in page
    assert "raft: not shown" in page
    assert "coverage.svg" in {path.name for path in write_figures(run, tmp_path / "figures", ["svg"])}
