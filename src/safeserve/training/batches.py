"""Rows of token ids, the plan of optimiser steps, and micro-batches cut by a token budget. Pure Python, no torch."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from safeserve.core.options import seed_for
from safeserve.models.chat import Rendered

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of prompt + response; the loss is on ``ids[start:]``, the response with its end token."""

    ids: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, rendered: Rendered, complete: bool = True) -> Row:
        """The row of a rendered conversation; of a response that was cut off the end token is not learned."""
        whole = complete or len(rendered.response) == 1
        return cls(rendered.ids if whole else rendered.ids[:-1], len(rendered.prompt))

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.ids)

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids before the response."""
        return self.ids[: self.start]

    @property
    def response(self) -> tuple[int, ...]:
        """Token ids of the response with its end token."""
        return self.ids[self.start :]

    @property
    def response_length(self) -> int:
        """Tokens of the response with its end token."""
        return len(self.ids) - self.start


def plan_steps(count: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of every optimiser step: each epoch a new permutation of all rows, cut into steps.

    Returns:
        Lists of exactly ``batch_size`` numbers; only the last of an epoch may be shorter.
    """
    steps = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(seed_for("steps", seed, epoch)).shuffle(order)
        steps += [order[at : at + batch_size] for at in range(0, count, batch_size)]
    return steps


def learning_rate_factor(
    step: int, steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Share of the peak learning rate in ``step`` (from 0) of ``steps``: a linear rise, then the schedule."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule == "linear" else 1.0


def split_validation(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, validation) row numbers in their old order; at least one row on each side when ``share`` > 0."""
    if share == 0 or count < 2:
        return list(range(count)), []
    held_out = min(count - 1, max(1, round(count * share)))
    validation = set(random.Random(seed_for("validation", seed)).sample(range(count), held_out))
    return [n for n in range(count) if n not in validation], sorted(validation)


def share_prompts(rows: Sequence[Row]) -> list[tuple[tuple[int, ...], list[int]]]:
    """(prompt, numbers of the rows that begin with it), in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.prompt, []).append(number)
    return list(groups.items())


def within_budget(rows: Sequence[Row], group: Sequence[int], token_budget: int, flat: bool) -> Iterator[list[int]]:
    """Numbers of rows with one prompt, in order, cut into parts that are micro-batches within the budget.

    Args:
        group: numbers of the rows.
        token_budget: a row that alone exceeds it is a part of its own.
        flat: the prompt of a part is computed once, and nothing is padded.
    """
    part: list[int] = []
    for number in group:
        longer = [rows[n] for n in (*part, number)]
        tokens = shared_tokens(longer) if flat else len(longer) * max(row.length for row in longer)
        if part and tokens > token_budget:
            yield part
            part = []
        part.append(number)
    yield part


def shared_tokens(rows: Sequence[Row]) -> int:
    """Tokens that go through the model when a common prompt is computed once and the last tokens are not needed."""
    return sum(row.response_length - 1 for row in rows) + sum(len(prompt) for prompt, _ in share_prompts(rows))


def padded_batches(items: Sequence[Item], rows: Callable[[Item], Sequence[Row]], token_budget: int) -> list[list[Item]]:
    """Cut one step's items into micro-batches of similar length, longest first (so memory runs out at once or never).

    Args:
        rows: the rows of an item (one in SIT, two in DPO); an item is never split.
        token_budget: most padded tokens in a micro-batch; an item that alone exceeds it gets its own.
    """
    groups: list[list[Item]] = []
    used = width = 0
    for item in sorted(items, key=lambda item: -max(row.length for row in rows(item))):
        count = len(rows(item))
        if groups and (used + count) * width <= token_budget:
            groups[-1].append(item)
            used += count
        else:
            groups.append([item])
            used, width = count, max(row.length for row in rows(item))
    return groups


def flat_batches(items: Sequence[Item], rows: Callable[[Item], Sequence[Row]], token_budget: int) -> list[list[Item]]:
    """The same for rows that are not padded and share their prompts: as few micro-batches as the budget allows, evenly
    filled, because a product of many small matrices is slower than one of a few large ones."""
    sized = sorted(((shared_tokens(rows(item)), item) for item in items), key=lambda pair: -pair[0])
    fewest = _fill(sized, token_budget)
    least = sum(size for size, _ in sized) // len(fewest)
    for limit in range(least, token_budget, max(1, token_budget // 64)):
        if len(groups := _fill(sized, limit)) == len(fewest):
            return groups
    return fewest


def _fill(sized: Sequence[tuple[int, Item]], limit: int) -> list[list[Item]]:
    groups: list[list[Item]] = []
    used = 0
    for size, item in sized:
        if groups and used + size <= limit:
            groups[-1].append(item)
            used += size
        else:
            groups.append([item])
            used = size
    return groups


def rows_digest(rows: Iterable[Row]) -> str:
    """Hash of all token ids and borders, for cache keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", (row.length, row.start, *row.ids)).tobytes())
    return digest.hexdigest()[:16]
