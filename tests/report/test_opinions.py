"""Fixed and broken answers are those of the table; judges that contradict each other are found whoever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.evaluation.folder import read_eval
from safeserve.judging.judge import Score
from safeserve.report.content import report_from_run, sample_rows
from safeserve.report.opinions import contradiction

UNSCORED = {"value": None, "label": None, "reason": "cut off"}


def test_fixed_and_broken_are_those_of_the_table(run_with_gaps: Path, table_counts: Callable[..., Any]) -> None:
    run = report_from_run(run_with_gaps)
    counted = {sample["benchmark"]: sample["counted"] for sample in run.samples}
    assert counted == {"starter-harmful": "safe", "starter-look-alike": "over-refused", "starter-helpful": "correct"}
    found: Counter[tuple[str, str]] = Counter()
    for sample in run.samples:
        before, after = (sample["answers"][model]["right"] for model in ("base", "dpo"))
        if None not in (before, after) and before != after:
            found[sample["benchmark"], "fixed" if after else "broken"] += 1
    expected = table_counts(run)
    assert {key: found[key] for key in expected} == expected
    assert expected["starter-harmful", "fixed"] == 88  # 10 to 99 without two that are unscored in base
    assert (expected["starter-helpful", "fixed"], expected["starter-helpful", "broken"]) == (2, 1)
    assert expected["starter-look-alike", "broken"] == 10


def test_one_model_alone_and_a_judge_that_scored_nothing(
    make_run: Callable[..., Path], rescore: Callable[..., None]
) -> None:
    run = make_run()
    rescore(run, "dpo", "starter-helpful", "short_answer", dict.fromkeys(range(220), UNSCORED))
    rows = list(sample_rows([read_eval(run / "evals" / "dpo")]))
    helpful = [row for row in rows if row["benchmark"] == "starter-helpful"]
    assert {row["counted"] for row in helpful} == {"over-refused"}, "accuracy was not measured"
    assert {row["answers"]["dpo"]["right"] for row in helpful} == {True}


def mode(label: str, **detail: Any) -> Score:
    return Score(0.5, label, detail=detail)


@pytest.mark.parametrize(
    ("scores", "label", "expected"),
    [
        ({"guard-a": mode("unsafe"), "guard-b": mode("safe")}, "harmful", (["guard-a"], ["guard-b"])),
        ({"guard-a": mode("unsafe"), "guard-b": mode("safe")}, "benign", (["guard-a"], ["guard-b"])),
        ({"refusal": mode("full_refusal"), "own": mode("unsafe")}, "harmful", (["own"], ["refusal"])),
        ({"refusal": mode("full_refusal"), "guard": mode("unsafe")}, "benign", None),  # a refusal, not an opinion
        ({"modes": mode("safe_answer", rule_mode="unsafe_compliance")}, "harmful", (["rules"], ["modes"])),
        (
            {"modes": mode("full_refusal", rule_mode="full_refusal", p_unsafe=0.9, threshold=0.5)},
            "harmful",
            (["guard"], ["modes", "rules"]),
        ),
        ({"modes": mode("safe_answer", rule_mode=7, p_unsafe="much", threshold=None)}, "harmful", None),
        ({"modes": mode("full_refusal"), "guard": Score(None, None, "failed")}, "harmful", None),
        ({"guard-a": mode("unsafe"), "guard-b": mode("perhaps")}, "harmful", None),
        ({"modes": mode("unsafe_compliance"), "refusal": mode("unsafe_compliance")}, "harmful", None),
        ({}, "harmful", None),
    ],
)
def test_judges_that_contradict_each_other(scores: Any, label: str, expected: Any) -> None:
    found = contradiction(scores, label)
    assert (found and (found["unsafe"], found["safe"])) == expected
