"""The plan of steps, the validation split and the micro-batches keep every row exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.models.chat import Rendered
from safeserve.training.batches import (
    Row,
    learning_rate_factor,
    padded_batches,
    plan_steps,
    rows_digest,
    split_validation,
)


def row(length: int) -> Row:
    return Row(tuple(range(length)), 1)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 3), st.integers(0, 99))
def test_every_epoch_is_a_permutation_cut_into_exact_steps(count: int, size: int, epochs: int, seed: int) -> None:
    plan = plan_steps(count, size, epochs, seed)
    per_epoch = -(-count // size)
    assert len(plan) == epochs * per_epoch
    for epoch in range(epochs):
        steps = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(n for step in steps for n in step) == list(range(count))
        assert all(len(step) == size for step in steps[:-1])


def test_order_depends_on_seed_and_epoch_only() -> None:
    plan = plan_steps(50, 50, 2, 7)
    assert plan == plan_steps(50, 50, 2, 7)
    assert plan[0] != plan[1]
    assert plan[0] != plan_steps(50, 50, 1, 8)[0]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_padded_batches_keep_all_rows_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = padded_batches([row(n) for n in lengths], lambda r: [r], budget)
    assert Counter(r.length for group in groups for r in group) == Counter(lengths)
    for group in groups:
        assert len(group) == 1 or len(group) * max(r.length for r in group) <= budget


def test_padded_batches_sort_by_length_and_count_both_rows_of_a_pair() -> None:
    pairs = [(row(10), row(4)), (row(3), row(30)), (row(9), row(8))]
    groups = padded_batches(pairs, lambda pair: pair, 80)
    assert [[max(r.length for r in pair) for pair in group] for group in groups] == [[30], [10, 9]]


@given(st.integers(2, 50), st.floats(0.01, 0.99), st.integers(0, 9))
def test_validation_split_is_a_partition(count: int, share: float, seed: int) -> None:
    train, held_out = split_validation(count, share, seed)
    assert sorted(train + held_out) == list(range(count))
    assert train
    assert held_out
    assert abs(len(held_out) - count * share) <= 1


def test_learning_rate_by_hand() -> None:
    def course(schedule: str, ratio: float) -> list[float]:
        return [round(learning_rate_factor(step, 10, ratio, schedule), 4) for step in range(10)]  # type: ignore[arg-type]

    assert course("constant", 0.0) == [1.0] * 10
    assert course("linear", 0.2) == [0.3333, 0.6667, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert course("cosine", 0.0)[:6] == [1.0, 0.9755, 0.9045, 0.7939, 0.6545, 0.5]


@given(st.integers(1, 500), st.floats(0, 0.99), st.sampled_from(["cosine", "linear", "constant"]))
def test_learning_rate_is_never_zero_nor_above_its_peak(steps: int, ratio: float, schedule: str) -> None:
    factors = [learning_rate_factor(step, steps, ratio, schedule) for step in range(steps)]  # type: ignore[arg-type]
    assert 0 < min(factors) <= max(factors) <= 1


def test_no_share_holds_nothing_out() -> None:
    assert split_validation(5, 0.0, 1) == ([0, 1, 2, 3, 4], [])


def test_row_of_rendered_and_digest() -> None:
    made = Row.of(Rendered((1, 2, 3), (4, 5)))
    assert (made.length, made.response_length, made.ids[made.start :]) == (5, 2, (4, 5))
    assert rows_digest([made]) != rows_digest([Row(made.ids, 2)])
    assert rows_digest([row(3), row(4)]) != rows_digest([row(4), row(3)])
    with pytest.raises(AttributeError):
        made.start = 2  # type: ignore[misc]
