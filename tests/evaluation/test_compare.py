"""compare: hand-computed differences, and the refusal to compare what is not comparable."""

from __future__ import annotations

import pytest

from safeserve.core.errors import UserError
from safeserve.core.runs import jsonl_lines, read_json, read_jsonl, write_json, write_jsonl
from safeserve.evaluation.compare import compare
from safeserve.evaluation.summary import read_eval


def labels(unsafe: int, safe: int) -> list[str]:
    return ["unsafe_compliance"] * unsafe + ["safe_answer"] * safe


def test_difference_fixed_broken_and_p(make_eval):
    # 10 pairs: 6 unsafe become safe, 1 safe becomes unsafe, 3 stay unsafe.
    a = make_eval("base", harmful=labels(9, 1))
    b = make_eval("dpo", harmful=["full_refusal"] * 6 + ["unsafe_compliance"] * 4)
    result = compare(read_eval(a), read_eval(b))
    cell = result["benchmarks"]["starter-harmful"]["judge"]["refusal"]["safe_rate"]
    assert (result["a"], result["b"]) == ("base", "dpo")
    assert (cell["n"], cell["a"], cell["b"], cell["fixed"], cell["broken"]) == (10, 0.1, 0.6, 6, 1)
    assert cell["difference"] == pytest.approx(0.5)
    assert cell["p"] == pytest.approx(2 * (1 + 7) / 2**7)  # P(X <= 1), X ~ Bin(7, 1/2), doubled
    low, high = cell["ci95"]
    assert -1 <= low < 0.5 < high <= 1
    transitions = result["benchmarks"]["starter-harmful"]["judge"]["refusal"]["transitions"]
    assert transitions == {
        "safe_answer": {"unsafe_compliance": 1},
        "unsafe_compliance": {"full_refusal": 6, "unsafe_compliance": 3},
    }


def test_fixed_means_better_also_where_lower_is_better(make_eval):
    a = make_eval("base", benign=["full_refusal", "full_refusal", "helpful_answer"])
    b = make_eval("dpo", benign=["helpful_answer", "helpful_answer", "full_refusal"])
    cell = compare(read_eval(a), read_eval(b))["benchmarks"]["starter-look-alike"]["judge"]["refusal"]
    assert cell["over_refusal_rate"]["difference"] == pytest.approx(-1 / 3)
    assert (cell["over_refusal_rate"]["fixed"], cell["over_refusal_rate"]["broken"]) == (2, 1)


def test_holm_over_benchmarks(make_eval):
    a = make_eval("base", benign=["full_refusal"] * 6, correct=["correct"] * 4)
    b = make_eval("dpo", benign=["helpful_answer"] * 6, correct=["correct"] * 4)
    parts = compare(read_eval(a), read_eval(b))["benchmarks"]
    one = parts["starter-look-alike"]["judge"]["refusal"]["over_refusal_rate"]
    two = parts["starter-helpful"]["judge"]["refusal"]["over_refusal_rate"]
    assert (one["p"], two["p"]) == (pytest.approx(2 / 64), 1.0)
    assert (one["p_holm"], two["p_holm"]) == (pytest.approx(4 / 64), 1.0)
    # Another metric is another family: accuracy was measured on one benchmark only.
    assert parts["starter-helpful"]["judge"]["short_answer"]["accuracy"]["p_holm"] == 1.0


def test_only_pairs_scored_on_both_sides_count_and_it_is_said(make_eval):
    unscored = {"id": "?", "k": 0, "value": None, "label": None, "reason": "cut off"}
    a = make_eval("base", harmful=["unsafe_compliance", "unsafe_compliance", unscored])
    b = make_eval("dpo", harmful=["safe_answer", unscored, "safe_answer"])
    result = compare(read_eval(a), read_eval(b))
    assert result["benchmarks"]["starter-harmful"]["judge"]["refusal"]["safe_rate"]["n"] == 1
    assert any("2 of 3 samples lack a score" in note for note in result["notes"])


def test_no_pair_scored_gives_no_numbers(make_eval):
    unscored = {"id": "?", "k": 0, "value": None, "label": None, "reason": "cut off"}
    result = compare(read_eval(make_eval("a", harmful=[unscored])), read_eval(make_eval("b", harmful=["safe_answer"])))
    assert result["benchmarks"]["starter-harmful"]["judge"]["refusal"] == {"transitions": {}}


def test_pairs_are_matched_by_id_not_by_position(make_eval):
    a = make_eval("base", harmful=["unsafe_compliance", "safe_answer", "safe_answer"])
    b = make_eval("dpo", harmful=["unsafe_compliance", "safe_answer", "safe_answer"])
    for file in ("prompts.jsonl", "completions.jsonl", "scores/refusal.jsonl"):
        path = b / "starter-harmful" / file
        write_jsonl(path, reversed(read_jsonl(path)))
    cell = compare(read_eval(a), read_eval(b))["benchmarks"]["starter-harmful"]["judge"]["refusal"]["safe_rate"]
    assert (cell["fixed"], cell["broken"]) == (0, 0)


def test_another_prompt_under_the_same_id_is_refused(make_eval):
    a, b = make_eval("base", harmful=labels(1, 1)), make_eval("dpo", harmful=labels(1, 1))
    path = b / "starter-harmful" / "prompts.jsonl"
    path.write_text("".join(jsonl_lines(read_jsonl(path))).replace("question 1", "question one"))
    with pytest.raises(UserError, match='id "p001" has other messages'):
        compare(read_eval(a), read_eval(b))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"sampling": {"max_new_tokens": 64, "temperature": 0.0, "seed": 7}}, "max_new_tokens 120 and 64"),
        ({"judges": {"refusal": "rules-2"}}, r'judge "refusal" was another version .*rules-1.*rules-2'),
    ],
)
def test_other_decoding_or_another_judge_is_refused(make_eval, meta, message):
    a, b = make_eval("base", harmful=labels(1, 1)), make_eval("dpo", harmful=labels(1, 1), meta=meta)
    with pytest.raises(UserError, match=message):
        compare(read_eval(a), read_eval(b))


def test_another_seed_is_another_draw_of_the_same_decoding(make_eval):
    sampling = {"max_new_tokens": 120, "temperature": 0.0, "seed": 8}
    a, b = make_eval("base", harmful=labels(1, 1)), make_eval("dpo", harmful=labels(1, 1), meta={"sampling": sampling})
    assert compare(read_eval(a), read_eval(b))["notes"] == []


def test_what_is_not_recorded_is_said(make_eval):
    a, b = make_eval("base", harmful=labels(1, 1)), make_eval("dpo", harmful=labels(1, 1))
    write_json(b / "summary.json", {"model": "dpo"})
    assert read_json(b / "summary.json") == {"model": "dpo"}
    notes = " ".join(compare(read_eval(a), read_eval(b))["notes"])
    assert "How dpo was decoded is not recorded" in notes
    assert "judge refusal is not recorded" in notes


def test_benchmarks_of_one_side_only(make_eval):
    a = make_eval("base", harmful=labels(1, 1), benign=["helpful_answer"])
    b = make_eval("dpo", harmful=labels(1, 1))
    result = compare(read_eval(a), read_eval(b))
    assert list(result["benchmarks"]) == ["starter-harmful"]
    assert "starter-look-alike was measured on base only." in result["notes"]
    c = make_eval("other", correct=["correct"])
    with pytest.raises(UserError, match="share no benchmark"):
        compare(read_eval(b), read_eval(c))


def test_repeated_samples_are_one_cluster(make_eval):
    folders = [make_eval(name, harmful=labels(1, 1)) for name in ("base", "dpo")]
    for folder in folders:
        for file in ("completions.jsonl", "scores/refusal.jsonl"):
            path = folder / "starter-harmful" / file
            rows = read_jsonl(path)
            write_jsonl(path, [*rows, *({**row, "k": 1} for row in rows)])
    result = compare(*map(read_eval, folders))
    assert result["benchmarks"]["starter-harmful"]["judge"]["refusal"]["safe_rate"]["n"] == 4
    assert any("each prompt as one cluster" in note for note in result["notes"])


def test_another_cap_on_a_benchmarks_answers_is_other_decoding(make_eval):
    def capped(tokens):
        return {"benchmarks": {"starter-harmful": {"max_new_tokens": tokens}}}

    a = read_eval(make_eval("base", harmful=labels(2, 2), meta=capped(120)))
    same = read_eval(make_eval("same", harmful=labels(2, 2), meta=capped(120)))
    unknown = read_eval(make_eval("unknown", harmful=labels(2, 2)))
    other = read_eval(make_eval("other", harmful=labels(2, 2), meta=capped(96)))
    compare(a, same)
    compare(a, unknown)
    with pytest.raises(UserError, match=r"at most 120 tokens in .* and 96 in"):
        compare(a, other)
