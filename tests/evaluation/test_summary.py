"""summarise against hand-computed numbers, and the reader's messages for every way a folder can be broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from safeserve.core.errors import EvidenceError, UserError
from safeserve.data.records import Prompt, user
from safeserve.evaluation.hygiene import check_side
from safeserve.evaluation.summary import find_eval, read_eval, summarise
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score


def prompt(prompt_id, label="harmful", category="", answers=()):
    return Prompt(prompt_id, user("q"), label, category, "b", None, answers)


def answer(prompt_id, k=0):
    return Completion(prompt_id, "text", (1,), "stop", None, k)


def refusal(label, flags=()):
    return Score(1.0 if label == "unsafe_compliance" else 0.0, label, None, flags)


def four_harmful():
    prompts = [
        prompt("a", category="x"),
        prompt("b", category="x"),
        prompt("c", category="y"),
        prompt("d", category="y"),
    ]
    scores = {
        ("a", 0): refusal("full_refusal"),
        ("b", 0): refusal("unsafe_compliance", ("truncated", "repetitive")),
        ("c", 0): refusal("degenerate", ("repetitive",)),
        ("d", 0): refusal("safe_answer"),
    }
    return prompts, [answer(p.id) for p in prompts], scores


def test_rates_of_a_harmful_benchmark():
    prompts, completions, scores = four_harmful()
    part = summarise(prompts, completions, {"refusal": scores})
    judged = part["judges"]["refusal"]
    assert (part["label"], part["n"], judged["n_scored"], judged["n_unscored"]) == ("harmful", 4, 4, 0)
    successes = {name: cell["successes"] for name, cell in judged["metrics"].items()}
    assert successes == {
        "safe_rate": 3,
        "refusal_rate": 1,
        "degenerate_rate": 1,
        "truncated_rate": 1,
        "repetitive_rate": 2,
    }
    # Wilson by hand for 3 of 4: centre (.75 + z²/8) / (1 + z²/4), z = 1.959964
    z2 = 1.959964**2
    centre, spread = (0.75 + z2 / 8) / (1 + z2 / 4), math.sqrt(z2 * (0.75 * 0.25 / 4 + z2 / 64)) / (1 + z2 / 4)
    assert judged["metrics"]["safe_rate"]["rate"] == 0.75
    assert judged["metrics"]["safe_rate"]["ci95"] == pytest.approx([centre - spread, centre + spread], abs=1e-6)
    assert judged["by_category"]["x"]["safe_rate"]["rate"] == 0.5
    assert judged["by_category"]["y"]["safe_rate"]["n"] == 2
    assert judged["flags"] == {"repetitive": 2, "truncated": 1}
    assert judged["modes"]["unsafe_compliance"] == 1
    assert sum(judged["modes"].values()) == 4


def test_benign_benchmark_counts_over_refusal_not_safety():
    prompts = [prompt(name, "benign") for name in "abc"]
    scores = {
        ("a", 0): refusal("full_refusal"),
        ("b", 0): refusal("partial_refusal"),
        ("c", 0): refusal("helpful_answer"),
    }
    metrics = summarise(prompts, [answer(p.id) for p in prompts], {"refusal": scores})["judges"]["refusal"]["metrics"]
    assert "safe_rate" not in metrics
    assert metrics["over_refusal_rate"]["successes"] == 1
    assert metrics["over_refusal_any_rate"]["successes"] == 2


def test_unscored_is_counted_with_reasons_and_never_as_safe():
    prompts, completions, scores = four_harmful()
    scores[("a", 0)] = Score(None, None, "guard was cut off")
    scores[("c", 0)] = Score(math.nan, "safe_answer")
    scores[("d", 0)] = Score(0.0, "safe_anwser")
    judged = summarise(prompts, completions, {"refusal": scores})["judges"]["refusal"]
    assert judged["n_unscored"] == 3
    assert judged["unscored_reasons"] == {
        "guard was cut off": 1,
        "unknown label 'safe_anwser'": 1,
        "value is not finite (nan)": 1,
    }
    assert judged["metrics"]["safe_rate"] == {"rate": 0.0, "ci95": pytest.approx([0.0, 0.7935], abs=1e-4)} | {
        "n": 1,
        "successes": 0,
    }


def test_prompts_without_accepted_answers_are_not_applicable_rather_than_unscored():
    prompts = [prompt("a", "benign", answers=("paris",)), prompt("b", "benign")]
    scores = {("a", 0): Score(1.0, "correct"), ("b", 0): Score(None, None, "no accepted answers")}
    judged = summarise(prompts, [answer("a"), answer("b")], {"short_answer": scores})["judges"]["short_answer"]
    assert (judged["n_scored"], judged["n_unscored"], judged["n_not_applicable"]) == (1, 0, 1)
    assert judged["metrics"]["accuracy"]["rate"] == 1.0


def test_all_unscored_gives_no_rate():
    prompts = [prompt("a")]
    part = summarise(prompts, [answer("a")], {"refusal": {("a", 0): Score(None, None, "broken")}})
    assert part["judges"]["refusal"]["metrics"]["safe_rate"] == {"rate": None, "ci95": None, "n": 0, "successes": 0}


def test_several_samples_a_prompt_all_count():
    scores = {("a", 0): refusal("safe_answer"), ("a", 1): refusal("unsafe_compliance")}
    part = summarise([prompt("a")], [answer("a", 0), answer("a", 1)], {"refusal": scores})
    assert part["n"] == 2
    assert part["judges"]["refusal"]["metrics"]["safe_rate"]["successes"] == 1


def test_an_own_judge_without_metrics_still_shows_its_labels():
    part = summarise([prompt("a")], [answer("a")], {"own": {("a", 0): Score(0.3, "fine")}})
    assert part["judges"]["own"]["modes"] == {"fine": 1}
    assert part["judges"]["own"]["metrics"] == {}


def test_no_completions_or_no_scores_is_missing_evidence():
    with pytest.raises(EvidenceError, match="safeserve eval"):
        summarise([prompt("a")], [], {"refusal": {}})
    with pytest.raises(EvidenceError, match="safeserve score"):
        summarise([prompt("a")], [answer("a")], {"refusal": {}})


def test_what_does_not_belong_together_is_refused():
    good = {("a", 0): refusal("safe_answer")}
    with pytest.raises(UserError, match="mixed"):
        summarise([prompt("a"), prompt("b", "benign")], [answer("a")], {"refusal": good})
    with pytest.raises(UserError, match='"zz" belongs to none'):
        summarise([prompt("a")], [answer("zz")], {"refusal": good})
    with pytest.raises(UserError, match='no line for id "b"'):
        summarise([prompt("a"), prompt("b")], [answer("a"), answer("b")], {"refusal": good})


def test_read_eval_round_trip(make_eval):
    folder = make_eval("base", harmful=["safe_answer", "unsafe_compliance"], correct=["correct"])
    read = read_eval(folder)
    assert read.model == "base"
    assert list(read.benchmarks) == ["starter-harmful", "starter-helpful"]
    part = read.benchmarks["starter-harmful"]
    assert part.label == "harmful"
    assert part.scores["refusal"]["p001", 0].label == "unsafe_compliance"
    assert part.completions["p000", 0].text == "An answer."
    assert read.judge_identities["refusal"] == "rules-1"


def append(path: Path, row) -> None:
    with path.open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("prompts.jsonl", {"id": "x", "label": "harmful"}, r'prompts.jsonl line 3: key "messages" is missing'),
        ("prompts.jsonl", {"id": "p000", "messages": [], "label": "harmful"}, 'line 3: id "p000" appears twice'),
        ("prompts.jsonl", {"id": "x", "messages": [], "label": "evil"}, "line 3: label: .*'harmful' or 'benign'"),
        ("prompts.jsonl", {"id": "x", "messages": [], "label": "benign"}, "line 3: harmful and benign"),
        ("prompts.jsonl", {"id": "x", "messages": [], "label": "harmful"}, "1 prompts have no completion"),
        ("completions.jsonl", "{broken", "completions.jsonl line 3: not valid JSON"),
        ("completions.jsonl", {"text": "no id"}, 'line 3: no "id" field'),
        ("completions.jsonl", {"id": "p000", "k": 0}, 'line 3: id "p000", k 0 is already on line 1'),
        ("completions.jsonl", {"id": "zz", "k": 0}, 'line 3: id "zz" is not in prompts.jsonl'),
        ("completions.jsonl", {"id": "p000", "k": 1, "txt": ""}, 'line 3: key "text" is missing'),
        ("completions.jsonl", {"id": "p000", "k": "one"}, '"k" must be a whole number'),
        ("scores/refusal.jsonl", {"id": "p000", "k": 7, "value": 0}, 'line 3: id "p000", k 7 has no line'),
        ("scores/refusal.jsonl", {"id": "p000", "k": 0, "value": 0}, "line 3: .* already on line 1"),
    ],
)
def test_broken_folders_name_file_and_line(make_eval, file, row, message):
    folder = make_eval("base", harmful=["safe_answer", "unsafe_compliance"])
    append(folder / "starter-harmful" / file, row)
    with pytest.raises(UserError, match=message):
        read_eval(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"value": "0.5"}, '"value" must be a number'),
        ({"value": True}, '"value" must be a number'),
        ({"value": None, "reason": None}, 'without a "reason"'),
        ({"value": 0.0, "flags": "truncated"}, "flags: Input should be a valid tuple"),
    ],
)
def test_broken_scores_name_the_line(make_eval, row, message):
    folder = make_eval("base", harmful=["safe_answer", {"id": "?", "k": 0, "label": "safe_answer", **row}])
    with pytest.raises(UserError, match=f"refusal.jsonl line 2: .*{message}"):
        read_eval(folder)


def test_a_score_file_cut_short_is_not_read_as_complete(make_eval):
    folder = make_eval("base", harmful=["safe_answer", "unsafe_compliance"])
    path = folder / "starter-harmful" / "scores" / "refusal.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="1 completions have no score"):
        read_eval(folder)


def test_find_eval(make_eval, tmp_path):
    folder = make_eval("base", harmful=["safe_answer"])
    runs = tmp_path / "runs"
    assert find_eval("r:base", runs) == folder
    assert find_eval(f"{runs / 'r'}:base") == folder
    assert find_eval(str(folder)) == folder
    with pytest.raises(UserError, match='Did you mean "base"'):
        find_eval("r:bsae", runs)
    with pytest.raises(UserError, match='no run "q"'):
        find_eval("q:base", runs)
    with pytest.raises(UserError, match="Give RUN:MODEL"):
        find_eval("nothing", runs)
    with pytest.raises(UserError, match=r"no BENCHMARK/prompts\.jsonl"):
        read_eval(runs)


def test_rows_that_stay_in_their_files_come_to_the_same(make_eval):
    labels = ["safe_answer", "unsafe_compliance", "full_refusal", "degenerate"] * 3
    unscored = {"value": None, "label": None, "reason": "broken", "id": "", "k": 0}
    folder = make_eval("a", harmful=[*labels, unscored], benign=["full_refusal", "helpful_answer"] * 6)
    held, stored = read_eval(folder), read_eval(folder, held=False)
    assert stored == held
    for name, part in held.benchmarks.items():
        again = stored.benchmarks[name]
        assert not isinstance(again.completions, dict)
        both = [summarise(p.prompts.values(), p.completions.values(), p.scores) for p in (part, again)]
        assert both[0] == both[1]
    assert check_side(stored) == check_side(held) != []
