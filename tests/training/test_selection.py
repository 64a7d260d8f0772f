"""Selection: what each rule picks, what it can never pick, and that the order of its input changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.core.errors import UserError
from safeserve.training import selection as rules
from safeserve.training.selection import Candidate, Sample, best_and_worst, read_picks, select, switched, weighted


def candidate(name: str, *samples: tuple[float | None, float | None], harmful: bool = True) -> Candidate:
    """A prompt whose sample k has the k-th (reward, P(unsafe))."""
    made = tuple(Sample(k, f"{name} {k}", reward, p) for k, (reward, p) in enumerate(samples))
    return Candidate(name, harmful, made)


TWO = [candidate("a", (1.0, 0.9), (0.5, 0.1), (0.2, 0.0)), candidate("b", (3.0, 0.6), (2.0, 0.7))]


def test_top1_takes_the_best_of_each_prompt() -> None:
    assert select(TWO, rules.top1, ["reward"], "none").picks == {"a": (0,), "b": (0,)}


def test_topk_ranks_all_samples_together() -> None:
    assert rules.topk(TWO, count=3) == {"b": [0, 1], "a": [0]}
    assert rules.topk(TWO, share=0.4) == {"b": [0, 1]}  # 2 of 5
    assert rules.topk(TWO, share=0.01) == {"b": [0]}  # at least one
    found = select(TWO, partial(rules.topk, share=0.4), ["reward"], "others are better")
    assert found.dropped == {"a": "others are better"}


def test_threshold_takes_every_sample_that_reaches_it_best_first() -> None:
    assert select(TWO, partial(rules.threshold, at_least=0.5), ["reward"], "n").picks == {"a": (0, 1), "b": (0, 1)}
    assert select(TWO, partial(rules.threshold, at_least=2.5), ["reward"], "n").dropped == {"a": "n"}


def test_constrained_takes_the_best_safe_one_and_drops_prompts_without() -> None:
    found = select(TWO, partial(rules.constrained, tau=0.1), ["reward", "p_unsafe"], "unsafe")
    assert (found.picks, found.dropped) == ({"a": (1,)}, {"b": "unsafe"})


def test_a_refusal_of_a_benign_prompt_is_not_allowed_and_the_worst_of_its_pair() -> None:
    declines = Sample(0, "I cannot.", 9.0, 0.0, refused=True)
    answers, unsafe = Sample(1, "With flour.", 1.0, 0.1), Sample(2, "With arsenic.", 5.0, 0.9)
    both = Candidate("a", False, (declines, answers, unsafe))
    rule = partial(rules.constrained, tau=0.3)
    assert select([both], rule, ["reward", "p_unsafe"], "n").picks == {"a": (1,)}
    assert best_and_worst(both, 1, tau=0.3) == (1, 2), "what is unsafe is worse than a refusal"
    assert best_and_worst(Candidate("a", False, (declines, answers)), 1, tau=0.3) == (1, 0)
    assert select([Candidate("a", False, (declines,))], rule, ["reward", "p_unsafe"], "n").dropped == {"a": "n"}


def test_unscored_empty_and_repeated_samples_are_left_out_and_counted() -> None:
    samples = (
        Sample(4, "same", 9.0, 0.1),
        Sample(1, "same", 9.0, 0.1),
        Sample(0, "unscored", None, 0.1),
        Sample(2, " \n", 99.0, 0.1),
        Sample(3, "not a number", math.nan, 0.1),
        Sample(5, "no guard", 50.0, None),
    )
    found = select([Candidate("a", True, samples)], rules.top1, ["reward", "p_unsafe"], "none")
    assert found.picks == {"a": (1,)}
    assert found.counts == {"samples": 6, "unscored": 3, "empty": 1, "repeated": 1}
    nothing = select([Candidate("a", True, samples[2:3])], rules.top1, ["reward"], "none")
    assert nothing.dropped == {"a": "no sample has the scores that the rule needs"}


def test_ties_go_to_the_lowest_number() -> None:
    tied = Candidate("a", True, tuple(Sample(k, f"t{k}", 1.0, 0.0) for k in (3, 1, 2)))
    assert select([tied], rules.top1, ["reward"], "n").picks == {"a": (1,)}
    others = Candidate("A", True, (Sample(7, "x", 1.0, 0.0),))
    assert rules.topk([tied, others], count=1) == {"A": [7]}  # of several prompts, the first by id


scores = st.one_of(st.none(), st.floats(-3, 3), st.just(math.nan), st.sampled_from([0.0, 1.0]))
chances = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]))
texts = st.sampled_from(["", " ", "x", "y", "z", "w"])


def candidates_of(rows: list[list[tuple[str, float | None, float | None]]]) -> list[Candidate]:
    return [
        Candidate(f"p{n}", n % 2 == 0, tuple(Sample(k, *sample) for k, sample in enumerate(row)))
        for n, row in enumerate(rows)
    ]


samples = st.tuples(texts, scores, chances)
prompts = st.lists(st.lists(samples, max_size=6), min_size=1, max_size=5).map(candidates_of)
# Equal texts have equal scores in truth, so here no text comes twice.
different = st.lists(st.lists(samples, max_size=6, unique_by=lambda sample: sample[0]), min_size=1, max_size=5).map(
    candidates_of
)
RULES: dict[str, tuple[Callable[[Sequence[Candidate]], rules.Picks], list[str]]] = {
    "top1": (rules.top1, ["reward"]),
    "share": (partial(rules.topk, share=0.3), ["reward"]),
    "count": (partial(rules.topk, count=4), ["reward"]),
    "threshold": (partial(rules.threshold, at_least=0.4), ["reward"]),
    "constrained": (partial(rules.constrained, tau=0.5), ["reward", "p_unsafe"]),
}


@given(different)
def test_a_constrained_pick_is_always_safe_and_none_better_is(candidates: list[Candidate]) -> None:
    found = select(candidates, partial(rules.constrained, tau=0.5), ["reward", "p_unsafe"], "unsafe")
    by_id = {c.id: {sample.k: sample for sample in c.samples} for c in candidates}
    for name, (k,) in found.picks.items():
        chosen = by_id[name][k]
        assert chosen.p_unsafe is not None
        assert chosen.p_unsafe <= 0.5
        assert chosen.reward is not None
        for other in by_id[name].values():
            safe = other.text.strip() and other.p_unsafe is not None and other.p_unsafe <= 0.5
            if safe and other.reward is not None and math.isfinite(other.reward):
                assert other.reward <= chosen.reward
    assert set(found.picks) | set(found.dropped) == set(by_id)
    assert not set(found.picks) & set(found.dropped)


@given(prompts, st.sampled_from(sorted(RULES)), st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_samples_changes_nothing(
    candidates: list[Candidate], name: str, chance: random.Random
) -> None:
    rule, needs = RULES[name]
    shuffled = [
        Candidate(c.id, c.harmful, tuple(chance.sample(c.samples, len(c.samples))))
        for c in chance.sample(candidates, len(candidates))
    ]
    one, other = select(candidates, rule, needs, "n"), select(shuffled, rule, needs, "n")
    assert (one.picks, one.dropped, one.counts) == (other.picks, other.dropped, other.counts)


@given(prompts, st.sampled_from(sorted(RULES)))
def test_no_rule_picks_a_sample_without_score_or_text(candidates: list[Candidate], name: str) -> None:
    rule, needs = RULES[name]
    by_id = {c.id: {sample.k: sample for sample in c.samples} for c in candidates}
    for prompt, numbers in select(candidates, rule, needs, "n").picks.items():
        for k in numbers:
            sample = by_id[prompt][k]
            assert sample.text.strip()
            for need in needs:
                assert getattr(sample, need) is not None
                assert math.isfinite(getattr(sample, need))


def test_weights_add_up_and_a_missing_score_leaves_the_sample_unscored() -> None:
    assert weighted({"a": 2.0, "b": 0.5}, {"a": 1.0, "b": -2.0}) == 1.0
    assert weighted({"a": 2.0, "b": None}, {"a": 1.0, "b": -2.0}) is None


def test_the_switch_is_that_of_llama_2() -> None:
    assert switched(harmful=True, helpful=5.0, p_unsafe=0.2) == pytest.approx(math.log(4))  # logit(0.8)
    assert switched(harmful=False, helpful=5.0, p_unsafe=0.2) == 5.0
    assert switched(harmful=False, helpful=5.0, p_unsafe=0.9) == pytest.approx(math.log(1 / 9))  # 0.1 < 0.15
    assert switched(harmful=False, helpful=5.0, p_unsafe=0.85) == 5.0  # 0.15 is not below 0.15
    assert switched(harmful=True, helpful=None, p_unsafe=0.5) == 0.0
    assert switched(harmful=False, helpful=None, p_unsafe=0.2) is None
    assert switched(harmful=False, helpful=5.0, p_unsafe=None) is None
    assert math.isfinite(switched(harmful=True, helpful=0.0, p_unsafe=1.0) or 0)


def test_the_worst_sample_by_the_same_rule() -> None:
    one = candidate("a", (1.0, 0.9), (0.5, 0.1), (0.2, 0.0), (2.0, 0.8))
    assert best_and_worst(one, 3) == (3, 2)  # by reward alone
    assert best_and_worst(one, 1, tau=0.5) == (1, 0)  # above tau the most unsafe is the worst
    assert best_and_worst(candidate("b", (1.0, 0.1), (0.5, 0.2)), 0, tau=0.5) == (0, 1)  # none above: lowest reward
    assert best_and_worst(candidate("c", (1.0, 0.1), (1.0, 0.1)), 0) is None  # nothing is worse
    assert best_and_worst(candidate("d", (1.0, 0.1)), 0) is None
    assert best_and_worst(candidate("e", (None, None), (None, None)), 0) is None  # picked by people, no reward


def test_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rule_here.py").write_text(
        "def last(candidates): return {c.id: [c.samples[-1].k] for c in candidates if c.samples}\n"
        "def wrong(candidates): return {'a': [17]}\n"
        "def stray(candidates): return {'zz': [0]}\n"
        "thing = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert select(TWO, rules.own_rule("own_rule_here:last"), ["reward"], "n").picks == {"a": (2,), "b": (1,)}
    with pytest.raises(UserError, match='sample 17 of "a"'):
        select(TWO, rules.own_rule("own_rule_here:wrong"), ["reward"], "n")
    with pytest.raises(UserError, match='"zz", which is no prompt'):
        select(TWO, rules.own_rule("own_rule_here:stray"), ["reward"], "n")
    with pytest.raises(UserError, match="is not a function"):
        rules.own_rule("own_rule_here:thing")


def test_picks_of_people_by_number_or_text() -> None:
    rows = [(1, {"id": "a", "k": 2}), (2, {"id": "b", "text": " b 1 "}), (3, {"id": "b", "k": 0, "iteration": 2})]
    assert read_picks(rows, "picks.jsonl", TWO, 1) == {"a": (2,), "b": (1,)}
    assert read_picks(rows, "picks.jsonl", TWO, 2) == {"b": (0,)}
    found = select(TWO, partial(rules.by_people, picked={"a": (2,)}), [], "nobody picked one")
    assert (found.picks, found.dropped) == ({"a": (2,)}, {"b": "nobody picked one"})


def test_of_equal_texts_people_pick_the_first() -> None:
    same = Candidate("a", True, (Sample(0, "t", None), Sample(1, "t", None)))
    picked = read_picks([(1, {"id": "a", "k": 1})], "f", [same], 1)
    assert select([same], partial(rules.by_people, picked=picked), [], "n").picks == {"a": (0,)}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "z", "k": 0}, 'picks.jsonl line 5: no prompt "z" in iteration 1'),
        ({"id": "a"}, 'picks.jsonl line 5: neither "k"'),
        ({"id": "a", "k": 9}, 'line 5: "a" has no such sample'),
        ({"id": "a", "text": "made up"}, 'line 5: "a" has no such sample'),
        ({"id": "a", "k": 0, "text": "a 1"}, 'line 5: "a" has no such sample'),
    ],
)
def test_picks_that_do_not_fit_are_named_by_line(row: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as error:
        read_picks([(5, row)], "picks.jsonl", TWO, 1)
    assert says in str(error.value)
