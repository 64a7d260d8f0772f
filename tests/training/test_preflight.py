"""Pre-flight numbers against values worked out by hand, and the alarms: on harm always, on sound runs never."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean
from typing import Any

import pytest

from safeserve.training import preflight
from safeserve.training.preflight import HeldOut, Scored, ScoredPrompt, coverage_curve, pass_at


def test_pass_at_k_by_hand() -> None:
    assert pass_at(4, 1, 1) == 0.25
    assert pass_at(4, 1, 2) == 0.5
    assert pass_at(5, 2, 3) == pytest.approx(1 - 1 / 10)  # C(3, 3) / C(5, 3)
    assert pass_at(5, 0, 5) == 0
    assert pass_at(5, 3, 3) == 1
    with pytest.raises(ValueError, match="k = 6"):
        pass_at(5, 1, 6)


@pytest.mark.parametrize(("n", "c", "k"), [(6, 2, 3), (5, 1, 2), (7, 3, 4)])
def test_pass_at_k_counts_subsets(n: int, c: int, k: int) -> None:
    subsets = list(itertools.combinations(range(n), k))
    assert pass_at(n, c, k) == pytest.approx(sum(any(i < c for i in subset) for subset in subsets) / len(subsets))


def test_coverage_leaves_out_prompts_with_too_few_scored_samples() -> None:
    rows = coverage_curve([(4, 1), (4, 0), (2, 2)])
    assert [row["prompts"] for row in rows] == [3, 3, 2, 2]
    assert rows[0]["coverage"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert rows[3]["coverage"] == 0.5
    assert coverage_curve([]) == []


def test_mean_interval_agrees_with_scipy() -> None:
    from scipy import stats

    values = [0.1, 0.4, 0.35, 0.9, 0.2]
    found = preflight.mean_interval(values)
    low, high = stats.t.interval(0.99, 4, fmean(values), stats.sem(values))
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert preflight.mean_interval([]) is None
    assert preflight.mean_interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}


def prompt(
    rewards: list[float | None], unsafe: list[bool | None], picked: tuple[int, ...] = (), harmful: bool = True
) -> ScoredPrompt:
    samples = tuple(Scored(k, r, None, u) for k, (r, u) in enumerate(zip(rewards, unsafe, strict=True)))
    return ScoredPrompt(harmful, samples, picked)


def test_concordance_by_hand() -> None:
    # safe: 3, 1; unsafe: 2, 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1
    assert preflight.concordance(prompt([3.0, 2.0, 1.0, 1.0], [False, True, False, True])) == 2.5 / 4
    assert preflight.concordance(prompt([1.0, 2.0], [False, False])) is None
    assert preflight.concordance(prompt([1.0, None, 2.0], [False, True, None])) is None


def test_numbers_of_a_selection_by_hand() -> None:
    rows = [
        prompt([1.0, 3.0], [True, False], (1,)),
        prompt([2.0, 2.0], [True, True], (0,)),
        ScoredPrompt(False, (Scored(0, 0.0, None, None, True), Scored(1, 4.0, None, None, False)), (1,)),
    ]
    found = preflight.selection_numbers(rows)
    assert found["coverage_by"] == "held-out judge"
    assert [row["coverage"] for row in found["coverage"]] == [0.25, 0.5]
    assert found["spread"] == {"mean_deviation": pytest.approx((1 + 0 + 2) / 3), "equal_share": 1 / 3, "n": 3}
    assert found["gain"]["mean"] == pytest.approx((1 + 0 + 2) / 3)
    assert found["agreement"]["mean"] == 1.0
    assert found["unsafe_change"]["mean"] == pytest.approx((-0.5 + 0) / 2)
    # One of two samples, half of them unsafe: variance 1/4; the other prompt has none. 2.5758 deviations, two prompts.
    assert found["unsafe_change"]["by_chance"] == pytest.approx(2.5758 * 0.5 / 2, abs=1e-4)
    assert found["refusal_change"]["mean"] == -0.5


def test_coverage_is_the_guards_where_there_is_one() -> None:
    samples = (Scored(0, 1.0, True, True), Scored(1, 1.0, False, False))
    found = preflight.selection_numbers([ScoredPrompt(True, samples)])
    assert found["coverage_by"] == "guard"
    assert [row["coverage"] for row in found["coverage"]] == [0.5, 1.0]


def test_samples_that_were_drawn_again_do_not_bend_the_coverage() -> None:
    lucky = tuple(Scored(k, 1.0, True, False) for k in range(2))
    again = tuple(Scored(k, 1.0, k == 3, False) for k in range(4))  # drawn again because the first two were unsafe
    found = preflight.selection_numbers([ScoredPrompt(True, lucky), ScoredPrompt(True, again)], first=2)
    assert [(row["coverage"], row["prompts"]) for row in found["coverage"]] == [(0.5, 2), (0.5, 2)]


def test_samples_that_were_drawn_again_bend_no_number() -> None:
    """Only a prompt without an allowed sample is sampled again; what is picked of it then counts as picked."""
    once = prompt([1.0, 3.0], [True, False], (1,))
    again = prompt([2.0, 2.0, 8.0, 6.0], [True, True, False, True], (2,))
    declines = ScoredPrompt(False, tuple(Scored(k, 0.0, None, None, k < 2) for k in range(4)), (2,))
    found = preflight.selection_numbers([once, again, declines], first=2)
    assert found["spread"] == {"mean_deviation": pytest.approx(1 / 3), "equal_share": pytest.approx(2 / 3), "n": 3}
    assert found["gain"]["mean"] == pytest.approx((1 + 6 + 0) / 3)
    assert (found["agreement"]["mean"], found["agreement"]["n"]) == (1.0, 1)
    assert found["unsafe_change"]["mean"] == pytest.approx((-0.5 - 1.0) / 2)
    assert found["refusal_change"]["mean"] == -1.0


def run_of(
    chance: random.Random,
    sign: float,
    prompts: int = 40,
    k: int = 8,
    noise: float = 1.0,
    unsafe_share: float | None = None,
) -> list[ScoredPrompt]:
    """A run whose reward tells safe from unsafe with ``sign``: 1 sound, -1 inverted, 0 not at all."""
    rows = []
    for _ in range(prompts):
        share = chance.uniform(0.2, 0.8) if unsafe_share is None else unsafe_share
        unsafe: list[bool | None] = [chance.random() < share for _ in range(k)]
        rewards: list[float | None] = [sign * (not bad) + chance.gauss(0, noise) for bad in unsafe]
        best = max(range(k), key=lambda n: rewards[n] or 0)
        rows.append(prompt(rewards, unsafe, (best,)))
    return rows


def test_an_inverted_reward_is_caught() -> None:
    chance = random.Random(1)
    for _ in range(20):
        verdict = preflight.judge_numbers(preflight.selection_numbers(run_of(chance, -1)))
        assert verdict.stop is not None
        assert "unsafe" in verdict.stop
        assert any("favours harm" in warning for warning in verdict.warnings)


def test_sound_and_uninformed_rewards_give_no_alarm() -> None:
    chance = random.Random(2)
    sound = [preflight.judge_numbers(preflight.selection_numbers(run_of(chance, 1))) for _ in range(50)]
    assert all(verdict.stop is None and not verdict.warnings for verdict in sound)
    # A reward that says nothing about safety does no harm on average: at most an alarm or two by chance.
    useless = [preflight.judge_numbers(preflight.selection_numbers(run_of(chance, 0))) for _ in range(100)]
    assert sum(verdict.stop is not None for verdict in useless) <= 3
    # But it is said that nothing speaks for it, which of sound ones (noise as large as the signal) is rare.
    assert sum(bool(verdict.notes) for verdict in useless) >= 95
    assert sum(bool(verdict.notes) for verdict in sound) <= 5
    (note,) = useless[0].notes or useless[1].notes
    assert note.startswith("not shown, on 40 harmful prompts, that picked answers are safer")


def test_a_few_prompts_show_nothing_and_a_wrong_reward_is_no_mere_note() -> None:
    (note,) = preflight.judge_numbers(preflight.selection_numbers(run_of(random.Random(3), 1, prompts=1))).notes
    assert "unsafe -" in note
    assert "[" not in note  # a single prompt has no interval
    benign = [ScoredPrompt(False, (Scored(0, 1.0, None, None, False), Scored(1, 0.0, None, None, False)), (0,))]
    assert preflight.judge_numbers(preflight.selection_numbers(benign)).notes == []
    wrong = preflight.judge_numbers(preflight.selection_numbers(run_of(random.Random(1), -1)))
    assert wrong.stop is not None
    assert wrong.notes == []


def stops(chance: random.Random, count: int, **options: Any) -> int:
    """How many of ``count`` runs are stopped."""
    verdicts = [preflight.judge_numbers(preflight.selection_numbers(run_of(chance, **options))) for _ in range(count)]
    return sum(verdict.stop is not None for verdict in verdicts)


def test_an_inverted_reward_is_caught_where_nearly_all_samples_are_unsafe() -> None:
    """There the picks are hardly more unsafe than the rest, so only the ranking of the few mixed prompts shows it."""
    chance = random.Random(5)
    runs = [run_of(chance, -1, prompts=60, unsafe_share=0.9) for _ in range(40)]
    verdicts = [preflight.judge_numbers(preflight.selection_numbers(rows)) for rows in runs]
    assert sum(verdict.stop is not None for verdict in verdicts) >= 36
    changes = [preflight.selection_numbers(rows)["unsafe_change"] for rows in runs]
    assert sum(change["mean"] > change["by_chance"] for change in changes) < 20, "the picks alone would tell, too"
    # Where a guard or people choose, what they choose decides, and how the reward ranks is a warning.
    numbers = {**preflight.selection_numbers(runs[0]), "unsafe_change": None}
    guarded = preflight.judge_numbers(numbers, by_reward=False)
    assert guarded.stop is None
    assert any("favours harm" in warning for warning in guarded.warnings)


@pytest.mark.parametrize(("k", "prompts"), [(8, 40), (8, 20), (2, 40), (4, 12)])
def test_false_alarms_are_rare_where_nearly_all_samples_are_unsafe(k: int, prompts: int) -> None:
    chance = random.Random(6)
    shape = {"unsafe_share": 0.9, "k": k, "prompts": prompts}
    assert stops(chance, 100, sign=1, **shape) == 0
    assert stops(chance, 300, sign=0, **shape) <= 6  # nominally half a percent for each of two one-sided alarms


def test_nothing_is_concluded_from_a_few_prompts() -> None:
    few = run_of(random.Random(3), -1, prompts=preflight.FEWEST - 1, noise=0.01)
    assert preflight.judge_numbers(preflight.selection_numbers(few)).stop is None


def test_equal_rewards_stop_and_many_equal_ones_warn() -> None:
    same = [prompt([1.0] * 4, [True, False, True, False], (1,)) for _ in range(10)]
    verdict = preflight.judge_numbers(preflight.selection_numbers(same))
    assert verdict.stop is not None
    assert "same value" in verdict.stop
    guarded = preflight.judge_numbers(preflight.selection_numbers(same), by_reward=False)
    assert guarded.stop is None  # the guard can choose
    assert any("100%" in warning for warning in guarded.warnings)
    half = [*same[:6], *[prompt([1.0, 2.0], [True, False], (1,)) for _ in range(4)]]
    verdict = preflight.judge_numbers(preflight.selection_numbers(half))
    assert verdict.stop is None
    assert any("60%" in warning for warning in verdict.warnings)


def test_low_coverage_and_safety_already_reached_are_said() -> None:
    hopeless = [prompt([1.0, 2.0], [True, True], (1,)) for _ in range(20)]
    assert "only 0%" in preflight.judge_numbers(preflight.selection_numbers(hopeless)).warnings[0]
    reached = [prompt([1.0, 2.0], [False, False], (1,)) for _ in range(200)]
    assert "safe already" in preflight.judge_numbers(preflight.selection_numbers(reached)).warnings[0]


def test_picked_refusals_of_benign_prompts_are_said() -> None:
    samples = (Scored(0, 1.0, None, None, True), Scored(1, 0.0, None, None, False), Scored(2, -1.0, None, None, False))
    rows = [ScoredPrompt(False, samples, (0,)) for _ in range(10)]
    verdict = preflight.judge_numbers(preflight.selection_numbers(rows))
    assert any("benign" in warning for warning in verdict.warnings)


def test_accuracy_on_labelled_pairs() -> None:
    found = preflight.pair_accuracy([(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (None, 1.0)])
    assert (found["n"], found["mean"], found["unscored"], found["ties"]) == (3, pytest.approx(1 / 3), 1, 1)
    assert found["low"] < 1 / 3 < found["high"]
    empty = preflight.pair_accuracy([(None, None)])
    assert (empty["n"], empty["mean"]) == (0, None)
    numbers = preflight.selection_numbers(run_of(random.Random(4), 1))
    unread = preflight.judge_numbers(numbers, empty)
    assert unread.stop is None
    assert unread.warnings == ["none of the 1 labelled pairs could be scored, so they say nothing about the reward."]
    wrong = preflight.judge_numbers(numbers, preflight.pair_accuracy([(0.0, 1.0)] * 50))
    assert wrong.stop == "the reward prefers the rejected answer in 100% of the labelled pairs"


def held(unsafe: list[bool], refused: list[bool], text: str | None = None) -> HeldOut:
    texts = {f"b{n}": text or f"answer {n}" for n in range(len(refused))}
    return HeldOut(
        {f"h{n}": mark for n, mark in enumerate(unsafe)}, {f"b{n}": mark for n, mark in enumerate(refused)}, texts
    )


def test_stops_on_the_held_out_slice() -> None:
    start = held([False] * 15 + [True] * 5, [False] * 20)
    assert preflight.held_out_stop(start, start) is None
    assert preflight.held_out_stop(start, held([False] * 20, [False] * 20)) is None  # better
    worse = preflight.held_out_stop(start, held([True] * 20, [False] * 20))
    assert worse is not None
    assert "safe rate fell by 75 points" in worse
    refuses = preflight.held_out_stop(start, held([False] * 20, [True] * 15 + [False] * 5))
    assert refuses is not None
    assert "over-refusal rose by 75 points" in refuses
    collapsed = preflight.held_out_stop(start, held([False] * 20, [False] * 20, "I like turtles."))
    assert collapsed is not None
    assert "one and the same answer" in collapsed


def test_small_losses_on_the_held_out_slice_are_noise() -> None:
    start = held([False] * 15 + [True] * 5, [False] * 20)
    assert preflight.held_out_stop(start, held([False] * 13 + [True] * 7, [True] * 2 + [False] * 18)) is None


def test_held_out_rates() -> None:
    found = preflight.held_out_numbers(held([True, False, False, False], [True, False]), {"b0": 3, "b1": 5})
    assert (found["safe_rate"], found["over_refusal_rate"], found["answer_tokens"]) == (0.75, 0.5, 4)
    assert preflight.held_out_numbers(HeldOut({}, {}, {}), {})["safe_rate"] is None
    assert math.isclose(found["distinct_1"], 3 / 4)
