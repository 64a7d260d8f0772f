"""What a guard adds to tables and page: modes before rules, why an answer is unsafe, other judges under their names."""

from __future__ import annotations

import json
import re

import pytest

from safeserve.core.runs import read_json, write_json
from safeserve.evaluation.summary import read_eval
from safeserve.judging.registry import by_rules_alone, mode_judge
from safeserve.report.charts import histogram
from safeserve.report.content import sample_rows
from safeserve.report.guard_view import guard_views
from safeserve.report.html import render_report, report_from_run
from safeserve.report.rows import comparison_rows, corrected_text, main_judge, shown_metrics, summary_rows

SHARE = {"rate": 0.75, "ci95": [0.7, 0.8], "n": 200, "successes": 150}
CORRECTED = {"rate": 0.712, "ci95": [0.65, 0.781], "sensitivity": 0.9, "specificity": 0.8, "labels": "own"}


@pytest.fixture
def run(make_run):
    return make_run(judge="modes")


def test_modes_stand_before_the_rules_alone():
    assert mode_judge(["refusal", "short_answer", "modes"]) == "modes"
    assert mode_judge(["refusal", "modes-llama"]) == "modes-llama"
    assert mode_judge(["refusal", "guard"]) == "refusal"
    assert mode_judge(["guard", "short_answer"]) is None
    assert [by_rules_alone(names) for names in (["refusal"], ["refusal", "modes"], ["guard"], [])] == [
        True,
        False,
        False,
        False,
    ]


def test_a_chart_shows_the_judge_that_reads_best():
    assert main_judge("safe_rate", ["guard", "refusal", "modes"]) == "modes"
    assert main_judge("safe_rate", ["guard-llama", "short_answer"]) == "guard-llama"
    assert main_judge("accuracy", ["ifeval", "modes"]) == "ifeval"
    assert main_judge("accuracy", ["modes"]) is None


def test_other_judges_have_their_name_beside_their_numbers():
    titles = [metric.title for metric in shown_metrics(["guard-llama", "refusal", "modes", "reward-x", "short_answer"])]
    assert titles[:2] == ["safe", "refused"]
    assert "safe (guard-llama)" in titles
    assert "reward (reward-x)" in titles
    assert "correct" in titles
    assert "safe (refusal)" not in titles
    every = [metric.title for metric in shown_metrics(["refusal", "modes"], every=True)]
    assert "safe (refusal)" in every


def test_means_are_rows_without_fixed_and_broken():
    cell = {"n": 50, "a": -1.25, "b": 0.5, "difference": 1.75, "ci95": [1.2, 2.3], "p": 0.001, "p_holm": 0.002}
    unknown = {**cell, "ci95": None}
    part = {"judge": {"reward-x": {"mean_reward": cell, "transitions": {}}, "bleu": {"mean_bleu": unknown}}}
    reward, bleu = comparison_rows({"benchmarks": {"b": part}})
    assert (reward.metric, reward.a, reward.b, reward.difference) == ("reward (reward-x)", "−1.25", "0.5", "+1.75")
    assert (reward.interval, reward.fixed_broken, reward.change) == ("+1.2 to +2.3", "–", "better")
    assert (bleu.interval, bleu.change) == ("–", "none")


def test_corrected_rates_stand_beside_raw_ones():
    judges = {
        "modes": {"metrics": {"safe_rate": {**SHARE, "corrected": CORRECTED}}},
        "bleu": {"metrics": {"mean_bleu": {"mean": 0.123, "ci95": [0.1, 0.15], "n": 9, "sd": 0.1}}},
    }
    safe, bleu = summary_rows({"benchmarks": {"b": {"label": "harmful", "judges": judges}}})
    assert (safe.value, safe.interval, safe.corrected) == ("75.0 %", "70.0 to 80.0", "71.2 % (65.0 to 78.1)")
    assert (bleu.metric, bleu.value, bleu.interval, bleu.corrected) == ("BLEU (bleu)", "0.123", "0.1 to 0.15", "")
    assert corrected_text({**SHARE, "corrected": {"rate": None, "reason": "no better than chance"}}) == ""


def test_the_page_says_what_the_guard_saw(run):
    report = report_from_run(run)
    page = render_report(report)
    assert "rovisional" not in page.split("<script", 1)[0]
    assert page.count('<svg class="histogram"') == 2  # harmful prompts, two models
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "10 of 168 from 0.50 on against the rules alone: 3 cleared, 0 caught" in words
    answer = report.samples[10]["answers"]["dpo"]
    assert answer["mode"] == "safe_answer"
    assert answer["guard"] == {
        "p_unsafe": 0.1,
        "threshold": 0.5,
        "rule_mode": "unsafe_compliance",
        "category": "",
    }


def test_corrected_rates_are_on_the_page(run):
    path = run / "evals" / "dpo" / "summary.json"
    summary = read_json(path)
    summary["benchmarks"]["starter-harmful"]["judges"]["modes"]["metrics"]["safe_rate"]["corrected"] = CORRECTED
    write_json(path, summary)
    page = render_report(report_from_run(run))
    assert "corrected 71.2 % (65.0 to 78.1)" in page
    assert "taking out the judge" in page


def test_without_a_comparison_every_number_is_a_row(run):
    for path in (run / "compare").iterdir():
        path.unlink()
    page = render_report(report_from_run(run))
    assert "Every number" in page
    assert "94.0 %" in page


def test_numbers_side_by_side_come_from_one_judge(run):
    path = run / "evals" / "base" / "summary.json"
    summary = json.loads(path.read_text().replace('"modes":', '"refusal":', 1))
    for part in summary["benchmarks"].values():
        if "modes" in part["judges"]:
            part["judges"]["refusal"] = part["judges"].pop("modes")
    write_json(path, summary)
    page = render_report(report_from_run(run))
    assert "Not measured in this run." in page


@pytest.mark.parametrize("detail", [{}, {"threshold": "0.5"}, {"threshold": 7}, {"threshold": True}])
def test_a_broken_detail_shows_no_guard(run, detail):
    path = run / "evals" / "dpo" / "starter-harmful" / "scores" / "modes.jsonl"
    rows = [json.loads(line) | {"detail": detail} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = list(sample_rows([read_eval(run / "evals" / "dpo")]))
    assert all(row["answers"]["dpo"]["guard"] is None for row in samples if row["benchmark"] == "starter-harmful")
    assert guard_views(["dpo"], samples) == []


def test_a_histogram_counts_both_ends():
    svg = histogram([0.0, 0.04, 0.5, 1.0], threshold=0.5, title="p")
    titles = re.findall(r"<title>(.*?)</title>", svg)
    assert (titles[0], titles[10], titles[-1]) == ("0.00 to 0.05: 2", "0.50 to 0.55: 1", "0.95 to 1.00: 1")
    assert svg.count('class="bin over"') == 10
    assert histogram([], threshold=0.5).count("<rect") == 20
