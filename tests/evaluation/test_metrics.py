"""Which metrics a judge has by the family in its name, means beside shares, and samples of one prompt as a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safeserve.core.errors import UserError
from safeserve.core.runs import read_jsonl, write_jsonl
from safeserve.core.statistics import holm, wilson
from safeserve.data.records import Prompt, user
from safeserve.evaluation.compare import compare
from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.metrics import applies, find_metric, metrics_for
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score


def names(judge, label):
    return [metric.name for metric in metrics_for(judge, label)]


def test_the_family_decides():
    assert names("modes", "harmful") == names("refusal", "harmful")
    assert names("guard-llama", "harmful") == ["safe_rate"]
    assert names("guard-llama", "benign") == ["flagged_rate"]
    assert names("reward-deberta", "benign") == ["mean_reward"]
    assert names("own", "benign") == []
    metric = find_metric("guard-llama", "safe_rate", "here")
    assert metric.judge == "guard-llama"
    assert metric.holds(Score(0.2, "safe"))
    with pytest.raises(UserError, match='has no metric "safe_rat"'):
        find_metric("guard-llama", "safe_rat", "here")
    with pytest.raises(TypeError, match="is a mean"):
        find_metric("reward", "mean_reward", "here").holds(Score(1.0, None))


def test_a_label_that_the_family_does_not_know_is_no_evidence():
    assert "unknown label" in (why_unscored("guard-llama", Score(0.2, "Safe")) or "")
    assert why_unscored("guard-llama", Score(0.2, "safe")) is None
    assert why_unscored("reward-x", Score(-3.5, None)) is None


def test_what_a_judge_is_meant_for():
    plain = Prompt("p", user("x"), "benign")
    for judge in ("short_answer", "exact_match", "bleu", "rouge_l", "bertscore-x", "claim_recall", "ifeval"):
        assert not applies(judge, plain)
    assert applies("guard", plain)
    assert applies("exact_match", replace(plain, answers=("yes",)))
    assert applies("bleu", replace(plain, reference="An answer."))
    assert applies("ifeval", replace(plain, meta={"instructions": [{"id": "a", "kwargs": {}}]}))


def one_benchmark(values, each=1):
    prompts = [Prompt(f"p{i}", user("x"), "benign", benchmark="b") for i in range(len(values) // each)]
    keys = [(f"p{i // each}", i % each) for i in range(len(values))]
    completions = [Completion(prompt_id, "y", (), "stop", None, k) for prompt_id, k in keys]
    return prompts, completions, dict(zip(keys, values, strict=True))


def test_a_mean_has_its_interval_and_spread():
    prompts, completions, scores = one_benchmark([Score(v, None) for v in (1.0, 2.0, 3.0, 6.0)])
    cell = summarise(prompts, completions, {"reward-x": scores})["judges"]["reward-x"]["metrics"]["mean_reward"]
    assert (cell["mean"], cell["n"]) == (3.0, 4)
    assert cell["sd"] == pytest.approx((14 / 3) ** 0.5)
    assert 1.0 <= cell["ci95"][0] < 3.0 < cell["ci95"][1] <= 6.0
    prompts, completions, scores = one_benchmark([Score(1.0, None)])
    cell = summarise(prompts, completions, {"reward": scores})["judges"]["reward"]["metrics"]["mean_reward"]
    assert cell == {"mean": 1.0, "ci95": None, "n": 1, "sd": None}


def test_samples_of_one_prompt_widen_the_interval():
    labels = [label for label in ("safe", "unsafe") * 10 for _ in range(4)]
    prompts, completions, scores = one_benchmark([Score(0.5, label) for label in labels], each=4)
    part = summarise(prompts, completions, {"guard": scores})["judges"]["guard"]
    cell = part["metrics"]["flagged_rate"]
    assert (cell["n"], cell["rate"]) == (80, 0.5)
    naive = wilson(40, 80)
    assert cell["ci95"][1] - cell["ci95"][0] > 1.8 * (naive.high - naive.low)


def test_means_are_compared_pair_by_pair(make_eval):
    folders = [make_eval(model, benign=["helpful_answer"] * 3) for model in ("base", "dpo")]
    for folder, values in zip(folders, ([1.0, 2.0, 3.0], [2.0, 3.5, 3.5]), strict=True):
        scores = folder / "starter-look-alike" / "scores"
        rows = read_jsonl(scores / "refusal.jsonl")
        made = [{**row, "value": value, "label": None} for row, value in zip(rows, values, strict=True)]
        write_jsonl(scores / "reward-x.jsonl", made)
    part = compare(*map(read_eval, folders))["benchmarks"]["starter-look-alike"]["judge"]["reward-x"]
    cell = part["mean_reward"]
    assert (cell["n"], cell["a"], cell["b"], cell["difference"]) == (3, 2.0, 3.0, 1.0)
    assert 0.5 <= cell["ci95"][0] <= 1.0 <= cell["ci95"][1] <= 1.5
    # all three rose: two of eight sign patterns are as extreme
    assert cell["p"] == 0.25
    assert [cell["p_holm"]] == holm([0.25])
    assert "fixed" not in cell
