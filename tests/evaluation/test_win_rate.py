"""Win rates: both orders, ties, unscored pairs, intervals, the null test; judges here are small objects, no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from safeserve.core.errors import EvidenceError
from safeserve.core.statistics import wilson
from safeserve.data.records import Prompt, user
from safeserve.evaluation.win_rate import (
    Pair,
    PairResult,
    judge_pairs,
    mean_interval,
    null_test_part,
    summarise_pairs,
)
from safeserve.judging.llm import PairVerdict


class Rule:
    """A pairwise judge made of a function of the two texts; remembers what it was asked."""

    def __init__(self, choose: Callable[[str, str], str | None]) -> None:
        self.choose = choose
        self.asked: list[tuple[str, str]] = []

    def winners(self, triples: Sequence[tuple[Prompt, str, str]], quiet: bool = False) -> list[PairVerdict]:
        self.asked += [(first, second) for _, first, second in triples]
        found = [self.choose(first, second) for _, first, second in triples]
        return [PairVerdict(winner, None if winner else "unreadable") for winner in found]


LONGER = Rule(lambda x, y: "first" if len(x) > len(y) else "second")


def pair(a: str, b: str, prompt_id: str = "p") -> Pair:
    return Pair(Prompt(prompt_id, user("?"), "benign"), a, b)


def test_both_orders_are_asked_and_turned_to_the_same_side() -> None:
    judge = Rule(lambda x, y: "first" if "good" in x else "second")
    results = judge_pairs(judge, [pair("good", "poor"), pair("poor", "good")])
    assert judge.asked == [("good", "poor"), ("poor", "good"), ("poor", "good"), ("good", "poor")]
    assert [r.preference for r in results] == [0.0, 1.0]
    assert not any(r.inconsistent for r in results)


@pytest.mark.parametrize(
    ("a_first", "b_first", "preference", "inconsistent"),
    [
        (0.0, 0.0, 0.0, False),
        (1.0, 1.0, 1.0, False),
        (0.0, 1.0, 0.5, True),
        (0.5, 1.0, 0.75, True),
        (0.5, 0.5, 0.5, False),
    ],
)
def test_two_orders_make_one_preference(a_first: float, b_first: float, preference: float, inconsistent: bool) -> None:
    result = PairResult(a_first, b_first)
    assert (result.preference, result.inconsistent) == (preference, inconsistent)


def test_a_judge_that_looks_at_the_position_gives_half() -> None:
    results = judge_pairs(Rule(lambda x, y: "first"), [pair("a", f"b{i}", str(i)) for i in range(7)])
    part = summarise_pairs([pair("a", f"b{i}", str(i)) for i in range(7)], results, "x")
    assert part["win_rate"] == 0.5
    assert part["inconsistent"]["rate"] == 1.0
    assert (part["wins"], part["ties"], part["losses"]) == (0, 7, 0)


def test_identical_texts_are_ties_without_a_call() -> None:
    judge = Rule(lambda x, y: "first")
    results = judge_pairs(judge, [pair("same", "same"), pair("a", "b")])
    assert results[0].preference == 0.5
    assert not results[0].called
    assert len(judge.asked) == 2
    part = summarise_pairs([pair("same", "same", "1"), pair("a", "b", "2")], results, "x")
    assert part["identical"] == 1
    assert part["inconsistent"]["n"] == 1  # a pair that nobody was asked about cannot be inconsistent


def test_one_unreadable_order_leaves_the_pair_unscored_and_counted() -> None:
    pairs = [pair("a", "bb", "1"), pair("?", "bb", "2")]
    judge = Rule(lambda x, y: None if x == "?" else LONGER.choose(x, y))
    part = summarise_pairs(pairs, judge_pairs(judge, pairs), "x")
    assert (part["n"], part["n_scored"], part["n_unscored"]) == (2, 1, 1)
    assert part["unscored_reasons"] == {"unreadable": 1}
    assert part["win_rate"] == 1.0


def test_nothing_scored_is_no_evidence() -> None:
    with pytest.raises(EvidenceError, match="none of 1 pairs"):
        summarise_pairs([pair("a", "b")], judge_pairs(Rule(lambda x, y: None), [pair("a", "b")]), "x")


def test_null_test_calls_and_shows_the_position_bias() -> None:
    judge = Rule(lambda x, y: "first")
    part = null_test_part(judge, [pair("same", "same", str(i)) for i in range(3)])
    assert len(judge.asked) == 6
    assert part["win_rate"] == 0.5
    assert part["passed"]
    assert (part["ties"], part["named_first"], part["named_second"]) == (0, 6, 0)
    fair = null_test_part(Rule(lambda x, y: "tie"), [pair("same", "same")])
    assert (fair["ties"], fair["named_first"], fair["passed"]) == (1, 0, True)


def test_null_test_fails_where_a_judge_is_not_the_same_twice_or_unreadable() -> None:
    answers = iter(["first", "tie"])
    assert not null_test_part(Rule(lambda x, y: next(answers)), [pair("same", "same")])["passed"]
    assert not null_test_part(Rule(lambda x, y: None), [pair("same", "same")])["passed"]


def test_interval_without_ties_is_wilsons_up_to_the_t_quantile() -> None:
    values = [1.0] * 140 + [0.0] * 60
    interval, reference = mean_interval(values, [str(i) for i in range(200)]), wilson(140, 200)
    assert interval.low == pytest.approx(reference.low, abs=2e-3)
    assert interval.high == pytest.approx(reference.high, abs=2e-3)
    assert interval.low < reference.low  # K/(K−1) and t make it a little wider


def test_ties_narrow_the_interval_and_copies_of_a_prompt_do_not() -> None:
    names = [str(i) for i in range(40)]
    split = mean_interval([0.0, 1.0] * 20, names)
    tied = mean_interval([0.25, 0.75] * 20, names)
    assert tied.high - tied.low < 0.6 * (split.high - split.low)
    copied = mean_interval([v for v in [0.0, 1.0] * 20 for _ in range(5)], [n for n in names for _ in range(5)])
    assert copied.high - copied.low == pytest.approx(split.high - split.low, rel=1e-9)


def test_interval_where_nothing_varies_does_not_shrink_to_a_point() -> None:
    interval = mean_interval([1.0] * 10, [str(i) for i in range(10)])
    assert interval == wilson(10, 10)
    assert mean_interval([1.0, 1.0], ["p", "p"]).low == 0.0  # one prompt shows nothing of others


def test_interval_covers_at_its_nominal_rate() -> None:
    """Bradley-Terry draws with ties and two samples a prompt: 93 to 97 % of 2,000 intervals hold the truth."""
    rng = np.random.default_rng(5)
    prompts, samples, draws = 60, 2, 2000
    names = [str(i) for i in range(prompts) for _ in range(samples)]
    covered = 0
    for _ in range(draws):
        chance = rng.beta(3, 2, prompts).repeat(samples)  # truth 0.6, prompts differ
        drawn = rng.random(prompts * samples)
        tie = rng.random(prompts * samples) < 0.3
        values = np.where(tie, np.where(drawn < 2 * (chance - 0.5), 1.0, 0.5), (drawn < chance).astype(float))
        truth = 0.7 * 0.6 + 0.3 * _expected_of_the_tie_branch()
        interval = mean_interval(values.tolist(), names)
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / draws <= 0.97


def _expected_of_the_tie_branch() -> float:
    # E[0.5 + 0.5 · max(0, 2(c − 0.5))] for c ~ Beta(3, 2), density 12 c² (1 − c), by quadrature.
    c = np.linspace(0, 1, 20001)
    density = 12 * c**2 * (1 - c)
    return float(np.trapezoid((0.5 + np.maximum(0, c - 0.5)) * density, c))
