"""The plan of steps, the validation split and the micro-batches keep every row exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.models.chat import Rendered
from safeserve.training.batches import (
    Row,
    flat_batches,
    learning_rate_factor,
    padded_batches,
    plan_steps,
    rows_digest,
    share_prompts,
    shared_tokens,
    split_validation,
    within_budget,
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


def test_prompts_are_shared_in_order_of_appearance() -> None:
    rows = [Row((1, 2, 9), 2), Row((3, 9), 1), Row((1, 2, 8, 7), 2), Row((1, 2, 9), 1), Row((3, 9), 1)]
    assert share_prompts(rows) == [((1, 2), [0, 2]), ((3,), [1, 4]), ((1,), [3])]
    assert share_prompts([]) == []


def test_shared_tokens_count_a_prompt_once_and_no_last_token() -> None:
    chosen, rejected = Row((1, 2, 3, 10, 11, 12), 3), Row((1, 2, 3, 20), 3)
    assert shared_tokens([chosen]) == 5
    assert shared_tokens([chosen, rejected]) == 3 + 2 + 0
    assert shared_tokens([chosen, Row((1, 2, 4, 20), 3)]) == 3 + 2 + 3 + 0  # another prompt
    assert shared_tokens([chosen, chosen]) == 3 + 2 + 2


def greedy(sizes: list[int], limit: int) -> list[int]:
    """Tokens of each group when items, largest first, are put into the last group while they fit."""
    groups: list[int] = []
    for size in sorted(sizes, reverse=True):
        if groups and groups[-1] + size <= limit:
            groups[-1] += size
        else:
            groups.append(size)
    return groups


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(1, 400))
def test_flat_batches_are_as_few_as_greedy_and_evenly_filled(lengths: list[int], budget: int) -> None:
    items = list(enumerate(row(n) for n in lengths))
    groups = flat_batches(items, lambda item: [item[1]], budget)
    assert sorted(number for group in groups for number, _ in group) == list(range(len(items)))
    used = [sum(shared_tokens([r]) for _, r in group) for group in groups]
    for group, tokens in zip(groups, used, strict=True):
        assert len(group) == 1 or tokens <= budget
    sizes = [n - 1 for n in lengths]
    fewest = greedy(sizes, budget)
    assert len(groups) == len(fewest)
    # the lowest level to which that many groups can be filled this way; limits are tried a 64th of the budget apart
    level = next(limit for limit in range(budget + 1) if len(greedy(sizes, limit)) == len(fewest))
    step = max(1, budget // 64)
    assert max(used) <= max(*sizes, min(budget, max(level, sum(sizes) // len(fewest)) + step))


def test_flat_batches_by_hand() -> None:
    lone = lambda r: [r]  # noqa: E731
    # nine rows of ten tokens, sixty at a time: five and four rather than six and three
    assert [len(group) for group in flat_batches([row(11)] * 9, lone, 60)] == [5, 4]
    groups = flat_batches([row(5), row(100), row(7), row(9)], lone, 25)
    assert [[r.length for r in group] for group in groups] == [[100], [9, 7, 5]]


def test_flat_batches_keep_a_pair_together_and_count_its_prompt_once() -> None:
    pairs = [(Row((1, 2, 3, n, n), 3), Row((1, 2, 3, n), 3)) for n in range(4)]
    assert shared_tokens(pairs[0]) == 4
    assert [len(group) for group in flat_batches(pairs, lambda pair: pair, 8)] == [2, 2]
    assert [len(group) for group in flat_batches(pairs, lambda pair: pair, 7)] == [1, 1, 1, 1]


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


@given(st.integers(1, 9), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 80), st.booleans())
def test_rows_of_one_prompt_are_cut_to_the_budget(prompt: int, answers: list[int], budget: int, flat: bool) -> None:
    rows = [Row((1,) * (prompt + length), prompt) for length in answers]
    parts = list(within_budget(rows, range(len(rows)), budget, flat))
    assert [n for part in parts for n in part] == list(range(len(rows)))
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        here = [rows[n] for n in part]
        cut = flat_batches if flat else padded_batches
        if len(part) > 1:
            whole = shared_tokens(here) if flat else len(here) * max(row.length for row in here)
            assert whole <= budget
        assert cut([here], lambda item: item, budget) == [[here]]
        if after:  # no part ends before it has to
            more = [*here, rows[after[0]]]
            assert (shared_tokens(more) if flat else len(more) * max(row.length for row in more)) > budget
