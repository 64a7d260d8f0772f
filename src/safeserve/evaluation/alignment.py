"""Do the answers belong to their prompts? Told from the texts, because a wrong index leaves no other trace.

An answer takes up words of the prompt it answers. :func:`likeness` measures that, with rare words counting more. No
single answer proves anything (a short refusal shares words with no prompt), so each test below looks at many rows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]

FEWEST = 5
"""Rows that a test needs before it says anything."""
MOST = 3000
"""Rows above which the last two tests, whose work grows with the square, are not done; the second reads a part."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_STEM = 6
_CLEAR = 4.0
"""Standard errors above chance from which rows count as aligned."""


@dataclass(frozen=True)
class Misalignment:
    """Rows (from 0) whose answer belongs to another prompt, and how it was seen."""

    rows: tuple[int, ...]
    how: str


def likeness(prompts: Sequence[str], answers: Sequence[str]) -> Matrix:
    """How much of prompt j stands in answer i: shared word beginnings, weighted by rarity; [answers, prompts], 0 to 1.

    The weight of a word is log((N + 1) / n): N distinct prompts, n of them with the word (inverse document frequency).
    """
    words = [_words(prompt) for prompt in prompts]
    distinct = dict(zip(prompts, words, strict=True))
    counts = Counter(word for found in distinct.values() for word in found)
    column = {word: place for place, word in enumerate(counts)}
    weights: Matrix = (
        np.log((len(distinct) + 1) / np.array([counts[word] for word in column], dtype=float))
        if column
        else np.zeros(0)
    )

    def table(texts: Sequence[set[str]]) -> Matrix:
        found = np.zeros((len(texts), len(column)))
        for row, text in enumerate(texts):
            found[row, [column[word] for word in text if word in column]] = 1.0
        return found

    weighted = table(words) * weights
    total = np.maximum(weighted.sum(axis=1), 1e-12)
    result: Matrix = table([_words(answer) for answer in answers]) @ (weighted / total[:, None]).T
    return result


def can_tell(prompts: Iterable[str], rows: int, expected: Sequence[str]) -> bool:
    """Whether :func:`misaligned` has a test for so many rows: many need an expected order, or repeated prompts."""
    if rows <= MOST or len(expected) == rows:
        return rows >= FEWEST
    distinct = {hash(_same(prompt)) for prompt in prompts}
    return rows - len(distinct) >= FEWEST


def misaligned(prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str] = ()) -> Misalignment | None:
    """Rows whose answer belongs to another prompt, by the first of four tests that finds any.

    1. ``expected``, the benchmark's own prompts in their order: rows that hold another prompt than the benchmark has
       at that place, while their answers fit the benchmark's prompt better than the one they stand beside.
    2. Repeated prompts: prompts that stand in the file a second time, where the first answers fit them and the second
       ones fit no better than a random prompt would (an index that starts again at 0).
    3. A shift: a stretch of rows whose answers fit the prompt a constant number of rows away, not their own.
    4. Another order: at least a quarter of the rows fit some other prompt of the file far better than their own.

    Args:
        prompts, answers: one a row, in the file's order.
        expected: empty where unknown; used where it has as many prompts as there are rows.
    """
    if len(prompts) < FEWEST:
        return None
    return (
        _other_order(prompts, answers, expected)
        or _repeated(prompts, answers)
        or (_shifted(prompts, answers, expected) or _scrambled(prompts, answers) if len(prompts) <= MOST else None)
    )


def _other_order(prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> Misalignment | None:
    if len(expected) != len(prompts):
        return None
    rows = [i for i, (mine, theirs) in enumerate(zip(prompts, expected, strict=True)) if _same(mine) != _same(theirs)]
    if len(rows) < FEWEST or set(map(_same, prompts)) == set(map(_same, expected)):
        return None  # the same prompts in another order are no error
    fit = likeness([*prompts, *expected], answers)
    gains = np.array([fit[i, len(prompts) + i] - fit[i, i] for i in rows])
    if not _above(gains, 0.0):
        return None
    return Misalignment(
        tuple(rows),
        "they hold another prompt than the benchmark has in that place, and their answers fit the benchmark's",
    )


def _repeated(prompts: Sequence[str], answers: Sequence[str]) -> Misalignment | None:
    places = defaultdict(list)
    for row, prompt in enumerate(prompts):
        places[_same(prompt)].append(row)
    first = [rows[0] for rows in places.values() if len(rows) > 1]
    again = [row for rows in places.values() for row in rows[1:]]
    if len(first) < FEWEST:
        return None
    # An answer that came twice with its prompt is a doubled row, not a wrong one.
    again = [row for row in again if answers[row] != answers[places[_same(prompts[row])][0]]]
    if len(again) < FEWEST:
        return None
    firsts, seconds = _advantages(prompts, answers, first, again)
    if _above(firsts, 0.0) and not _above(seconds, 0.0) and seconds.mean() < 0.25 * firsts.mean():
        return Misalignment(
            tuple(sorted(again)),
            "their prompts stand in the file before with answers that fit, and these answers fit no better than chance",
        )
    return None


def _advantages(
    prompts: Sequence[str], answers: Sequence[str], first: Sequence[int], again: Sequence[int]
) -> tuple[Matrix, Matrix]:
    """:func:`_advantage` of both kinds of rows, where there are many only of as many as :data:`MOST` allows."""
    if len(prompts) <= MOST:
        fit = likeness(prompts, answers)
        return _advantage(fit, first), _advantage(fit, again)
    first, again = first[: MOST // 2], again[: MOST // 2]
    rows = [*first, *again]
    fit = likeness([prompts[row] for row in rows], [answers[row] for row in rows])
    return _advantage(fit, range(len(first))), _advantage(fit, range(len(first), len(rows)))


def _advantage(fit: Matrix, rows: Sequence[int]) -> Matrix:
    """Per row: how much better its answer fits its own prompt than those of the other rows."""
    part = fit[np.ix_(rows, rows)]
    own = np.diag(part)
    result: Matrix = own - (part.sum(axis=1) - own) / (len(rows) - 1)
    return result


def _shifted(prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> Misalignment | None:
    """The stretch of rows that fits the prompts ``shift`` rows on far better than its own, over all shifts."""
    candidates = list(expected) if len(expected) >= len(prompts) else list(prompts)
    fit = likeness(candidates, answers)
    if np.median(fit.max(axis=1, initial=0.0)) < 0.15:  # most answers fit no prompt at all: nothing to be seen
        return None
    own = np.diag(likeness(prompts, answers) if expected else fit)
    best: tuple[float, int, int, int] = (0.0, 0, 0, 0)
    for shift in range(1 - len(answers), len(candidates)):
        if shift == 0 and not expected:
            continue
        low, high = max(0, -shift), min(len(answers), len(candidates) - shift)
        rows = np.arange(low, high)
        if len(rows) < FEWEST:
            continue
        same = np.array([candidates[i + shift] == prompts[i] for i in range(low, high)])
        gain = np.where(same, -1.0, fit[rows, rows + shift] - own[rows] - 0.15)
        total, start, stop = _best_stretch(gain)
        if total > best[0]:
            best = (total, low + start, low + stop, shift)
    _, start, stop, shift = best
    rows = np.arange(start, stop)
    if len(rows) < FEWEST:
        return None
    gains = fit[rows, rows + shift] - own[rows]
    if gains.mean() < 0.3 or not _above(gains, 0.0):
        return None
    by = f"{abs(shift)} rows {'further on' if shift > 0 else 'before'}"
    return Misalignment(tuple(rows.tolist()), f"their answers fit the prompts that stand {by}")


def _best_stretch(gain: Matrix) -> tuple[float, int, int]:
    """(sum, start, stop) of the contiguous part with the largest sum: the largest rise of the running sum."""
    running = np.concatenate([[0.0], np.cumsum(gain)])
    rise = running - np.minimum.accumulate(running)
    stop = int(rise.argmax())
    return float(rise[stop]), int(running[: stop + 1].argmin()), stop


def _scrambled(prompts: Sequence[str], answers: Sequence[str]) -> Misalignment | None:
    fit = likeness(prompts, answers)
    own, best = np.diag(fit), fit.max(axis=1)
    rows = np.flatnonzero((best >= 0.7) & (best - own >= 0.5))
    # One text given to every prompt may fit one of them: the answers must fit different prompts.
    if min(len(rows), 2 * len(set(fit[rows].argmax(axis=1)))) < max(FEWEST, 0.25 * len(prompts)):
        return None
    return Misalignment(tuple(rows.tolist()), "their answers fit other prompts of the file, in no fixed order")


def _above(values: Matrix, chance: float) -> bool:
    """Whether the mean lies clearly above chance."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return bool(values.mean() - chance > _CLEAR * error and values.mean() > chance)


def _words(text: str) -> set[str]:
    return {word[:_STEM] for word in _WORD.findall(text.lower())}


def _same(text: str) -> str:
    return " ".join(text.split())
