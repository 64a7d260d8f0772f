"""verdict.json and its schema say the same."""

from __future__ import annotations

import json
from importlib import resources

import jsonschema
import pytest

from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.gate import decide, parse_policy

SCHEMA = json.loads((resources.files("safeserve.evaluation") / "verdict.schema.json").read_text(encoding="utf-8"))
RULE = "{{metric: safe_rate, judge: refusal, benchmark: starter-harmful, {}}}"


def verdict(make_eval, *limits: str, pair: bool = False) -> dict:
    dpo = read_eval(make_eval("dpo", harmful=["safe_answer"] * 30 + ["unsafe_compliance"] * 10))
    base = read_eval(make_eval("base", harmful=["unsafe_compliance"] * 40)) if pair else None
    rules = ", ".join(RULE.format(limit) for limit in limits)
    policy = parse_policy(f"name: mine\nmin_prompts: 10\nrules: [{rules}]", "test")
    return json.loads(json.dumps(decide(dpo, base, policy).to_json()))


@pytest.mark.parametrize(
    ("limits", "pair", "outcome"),
    [
        (("at_least: 0.5",), False, "pass"),
        (("at_least: 0.9", "at_most: 1.0"), False, "fail"),
        (("max_loss: 0.1",), False, "no_verdict"),
        (("max_loss: 0.1", "max_gain: 1.0"), True, "pass"),
    ],
)
def test_every_outcome_is_valid(make_eval, limits, pair, outcome):
    content = verdict(make_eval, *limits, pair=pair)
    assert content["outcome"] == outcome
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(content, SCHEMA)
    assert set(content) == set(SCHEMA["properties"]) == set(SCHEMA["required"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("outcome",), "maybe"),
        (("exit_code",), 2),
        (("rules", 0, "n"), -1),
        (("rules", 0, "more"), 1),
        (("policy", "rules", 0, "at_most"), 0.5),
        (("provisional",), None),
    ],
)
def test_what_is_no_verdict_is_refused(make_eval, path, value):
    content = verdict(make_eval, "at_least: 0.5")
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
