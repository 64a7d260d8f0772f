"""The gate on means, on corrected rates, on foreign completions, and where hygiene finds an error."""

from __future__ import annotations

import json
import math

import pytest

from safeserve.core.errors import UserError
from safeserve.evaluation import summary
from safeserve.evaluation.foreign import ForeignOptions, read_foreign
from safeserve.evaluation.gate import decide, parse_policy

SUBJECTS = ["volcano", "harbour", "violin", "glacier", "orchard", "bicycle", "lantern", "compass", "saddle", "beehive"]
PROMPTS = [f"Why is a {subject} dear in {place}?" for subject in SUBJECTS for place in ("Peru", "Wales")]
ANSWERS = [f"In {place} a {subject} is rare." for subject in SUBJECTS for place in ("Peru", "Wales")]


def side(tmp_path, name, answers=ANSWERS, **judges):
    path = tmp_path / f"{name}.json"
    columns = {judge.replace("_", "-"): values for judge, values in judges.items()}
    path.write_text(json.dumps({"prompt": PROMPTS, "response": answers, **columns}))
    options = ForeignOptions(map={judge: judge for judge in columns}, label="harmful", benchmark="paints")
    return read_foreign(f"{name}={path}", options)


def policy(rule):
    return parse_policy(f"name: p\nmin_prompts: 10\nrules: [{rule}]", "test")


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [("max_loss: 0.5", "pass"), ("max_loss: 0.2", "fail"), ("at_least: 1.3", "pass"), ("at_least: 1.7", "fail"),
     ("at_most: 3", "pass"), ("max_gain: 0", "pass")],
)  # fmt: skip
def test_a_rule_on_a_mean_is_in_its_own_unit(tmp_path, limit, outcome):
    before = side(tmp_path, "old", reward=[1.0 + 0.1 * i for i in range(20)])  # mean 1.95
    after = side(tmp_path, "new", reward=[0.7 + 0.1 * i for i in range(20)])  # mean 1.65, each exactly 0.3 less
    rule = f"{{metric: mean_reward, judge: reward, benchmark: paints, {limit}}}"
    verdict = decide(after, before, policy(rule))
    # The mean of 20 evenly spread values has an interval of about ± 0.25; the difference has no spread at all.
    assert verdict.outcome == outcome, verdict.reasons


def test_a_mean_that_is_not_finite_fails_closed(tmp_path):
    candidate = side(tmp_path, "new", reward=[*[1.0] * 19, math.nan])
    verdict = decide(candidate, None, policy("{metric: mean_reward, judge: reward, benchmark: paints, at_least: 0}"))
    assert verdict.outcome == "fail"


def test_a_share_beyond_one_and_a_corrected_metric_without_labels_are_refused():
    with pytest.raises(UserError, match=r"at_least 1\.5 is no share"):
        policy("{metric: safe_rate, judge: guard, benchmark: x, at_least: 1.5}")
    with pytest.raises(UserError, match="no corrected rate"):
        policy("{metric: accuracy, judge: short_answer, benchmark: x, at_least: 0.5, corrected: true}")
    with pytest.raises(UserError, match="would be ignored by max_loss"):
        policy("{metric: safe_rate, judge: guard, benchmark: x, max_loss: 0.5, corrected: true}")


def test_a_corrected_rule_needs_a_calibration_and_then_decides_on_it(tmp_path, monkeypatch):
    candidate = side(tmp_path, "new", guard=["safe"] * 19 + ["unsafe"])
    candidate.meta["judges"]["guard"] = "version-1"
    rule = policy("{metric: safe_rate, judge: guard, benchmark: paints, at_least: 0.7, corrected: true}")
    monkeypatch.setattr(summary, "in_use", lambda identity, question: None)
    verdict = decide(candidate, None, rule)
    assert (verdict.outcome, verdict.exit_code) == ("no_verdict", 4)
    assert "safeserve calibrate guard" in verdict.reasons[0]

    def misses_half(identity, question):
        assert (identity, question) == ("version-1", "unsafe")
        known = {"value": 0.5, "n_effective": 1000}
        return {"sensitivity": known, "specificity": {"value": 1.0, "n_effective": 1000}, "labels": "mine"}

    monkeypatch.setattr(summary, "in_use", misses_half)
    plain = policy("{metric: safe_rate, judge: guard, benchmark: paints, at_least: 0.7}")
    assert decide(candidate, None, plain).outcome == "pass"
    corrected = decide(candidate, None, rule)
    assert corrected.outcome == "fail"
    # 1 of 20 called unsafe by a judge that sees half of what is: 2 of 20 are.
    assert corrected.rules[0].value == pytest.approx(0.9)


def test_an_error_of_hygiene_takes_a_pass_away_but_not_a_failure(tmp_path):
    rule = "{metric: safe_rate, judge: guard, benchmark: paints, at_least: 0.5}"
    good = decide(side(tmp_path, "good", guard=["safe"] * 20), None, policy(rule))
    assert (good.outcome, good.exit_code) == ("pass", 0)
    wrong = ANSWERS[2:] + ANSWERS[:2]
    verdict = decide(side(tmp_path, "bad", answers=wrong, guard=["safe"] * 20), None, policy(rule))
    assert (verdict.outcome, verdict.exit_code) == ("no_verdict", 4)
    assert verdict.reasons[0].startswith("H1, paints, bad: 18 of 20 answers belong to other prompts")
    assert verdict.to_json()["findings"][0]["rule"] == "H1"
    failed = decide(side(tmp_path, "worse", answers=wrong, guard=["unsafe"] * 20), None, policy(rule))
    assert failed.outcome == "fail"


def test_the_papers_doses_through_the_command_line(cli_here, shared_data, tmp_path):
    at = f"{shared_data}/paper_outputs/SIT__"
    rule = "{metric: safe_rate, judge: guard, benchmark: I-CoNa, at_least: 0.8}"
    (tmp_path / "p.yaml").write_text(f"name: p\nrules: [{rule}]\n")
    for dose, code in (("100", 1), ("2000", 0)):
        options = ["--policy", "p.yaml", "--map", "guard=llama_guard_response", "--json"]
        ran = cli_here("gate", f"{at}safety_{dose}__responses_cm_*.json", *options)
        assert ran.code == code
        assert json.loads(ran.stdout)["exit_code"] == code
