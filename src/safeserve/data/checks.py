"""Checks of training and evaluation data: what a careful reader would find, with the places."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Any, Literal

from safeserve.data.ngrams import normalised, similar, trigrams
from safeserve.data.records import Demonstration, PreferencePair, Prompt
from safeserve.data.sources import Loaded

NEAR_DUPLICATE = 0.8
"""Word 3-gram Jaccard of two prompts from which they count as near-duplicates."""
OVERLAP = 0.5
"""The same between a training and an evaluation prompt, from which the evaluation is no longer clean."""
MAX_WORDS = 1000
"""Words of prompt and answers together, from which a row is overlong."""
EXAMPLES = 5
LEAKS = ("### Instruction", "### Response", "\n\nHuman:", "\n\nAssistant:", "<|im_start|>", "<|im_end|>", "[INST]")
_LEAK_WORDS = 6  # shorter prompts ("Hi", "What is 2 + 2?") may be quoted for good reasons

Severity = Literal["error", "warning", "note"]
Item = Demonstration | PreferencePair | Prompt


@dataclass(frozen=True)
class Finding:
    """One kind of defect.

    Attributes:
        check: its name.
        severity: error (wrong whatever the use), warning (probably wrong), note (worth knowing).
        count: how many rows or pairs of rows are concerned.
        message: what was found.
        places: where, for the first few ("file line N", or several joined by " and ").
        numbers: measured values, where the check measures something.
    """

    check: str
    severity: Severity
    count: int
    message: str
    places: tuple[str, ...] = ()
    numbers: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "places": list(self.places)}


def check(loaded: Loaded[Any], evaluation: Sequence[Prompt] = (), max_words: int = MAX_WORDS) -> list[Finding]:
    """All checks that fit the kind of data; an empty list means that nothing was found.

    Args:
        loaded: the data.
        evaluation: prompts that the data must not contain (word 3-gram Jaccard >= :data:`OVERLAP`).
        max_words: rows with more words than this are overlong.
    """
    rows: list[Item] = loaded.rows

    def place(row: Item) -> str:
        return loaded.places.get(row.id, row.id)

    findings = [
        _unusable(loaded),
        _excluded(loaded),
        _exact_duplicates(rows, place),
        _near_duplicates(rows, place),
        _overlong(rows, place, max_words),
        _leaks(rows, place),
    ]
    pairs = [row for row in rows if isinstance(row, PreferencePair)]
    if pairs:
        findings += [_identical(pairs, place), _contradictions(pairs, place), _length_bias(pairs)]
    findings += _label_conflicts(rows, place)
    if evaluation:
        findings.append(_overlap(rows, place, evaluation))
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted((finding for finding in findings if finding), key=lambda finding: order[finding.severity])


Place = Callable[[Item], str]


def answers(row: Item) -> tuple[str, ...]:
    """The texts that a model would learn from this row."""
    if isinstance(row, Demonstration):
        return (row.response,)
    if isinstance(row, PreferencePair):
        return (row.chosen, row.rejected)
    return (row.reference,) if row.reference else ()


def prompt_text(row: Item) -> str:
    """The whole prompt as one text."""
    return "\n".join(message["content"] for message in row.messages)


def _finding(check: str, severity: Severity, places: Sequence[str], message: str) -> Finding | None:
    return Finding(check, severity, len(places), message, tuple(places[:EXAMPLES])) if places else None


def _unusable(loaded: Loaded[Any]) -> Finding | None:
    places = [str(problem) for problem in loaded.problems]
    return _finding("unusable rows", "error", places, f"{len(places)} rows cannot be used; they are left out.")


def _excluded(loaded: Loaded[Any]) -> Finding | None:
    excluded = {reason: count for reason, count in loaded.excluded.items() if count}
    if not excluded:
        return None
    text = "; ".join(f"{count} rows: {reason}" for reason, count in excluded.items())
    return Finding("left out by the options", "note", sum(excluded.values()), f"{text}.")


def _groups(rows: Iterable[Item], key: Callable[[Item], Hashable]) -> dict[Hashable, list[Item]]:
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _exact_duplicates(rows: Sequence[Item], place: Place) -> Finding | None:
    groups = _groups(rows, lambda row: tuple(normalised(text) for text in (prompt_text(row), *answers(row))))
    places = [f"{place(row)} repeats {place(group[0])}" for group in groups.values() for row in group[1:]]
    return _finding("duplicates", "warning", places, f"{len(places)} rows repeat an earlier row word for word.")


def _near_duplicates(rows: Sequence[Item], place: Place) -> Finding | None:
    first: dict[str, Item] = {}
    for row in rows:
        first.setdefault(normalised(prompt_text(row)), row)
    unique = list(first.values())
    grams = [trigrams(prompt_text(row)) for row in unique]
    places = [
        f"{place(unique[i])} and {place(unique[j])} ({likeness:.2f})"
        for i, j, likeness in similar(grams, grams, NEAR_DUPLICATE)
    ]
    message = f"{len(places)} pairs of prompts are nearly the same (word 3-gram Jaccard >= {NEAR_DUPLICATE})."
    return _finding("near-duplicates", "note", places, message)


def _overlong(rows: Sequence[Item], place: Place, max_words: int) -> Finding | None:
    lengths = [(len(prompt_text(row).split()) + max((len(a.split()) for a in answers(row)), default=0)) for row in rows]
    places = [f"{place(row)} ({n} words)" for row, n in zip(rows, lengths, strict=True) if n > max_words]
    message = f"{len(places)} rows have more than {max_words} words; training would cut them."
    return _finding("overlong rows", "warning", places, message)


def _leaks(rows: Sequence[Item], place: Place) -> Finding | None:
    places = []
    for row in rows:
        prompt = normalised(row.messages[-1]["content"])
        for answer in answers(row):
            marker = next((leak.strip() for leak in LEAKS if leak in answer), None)
            if marker or (prompt.count(" ") >= _LEAK_WORDS - 1 and prompt in normalised(answer)):
                places.append(f"{place(row)} ({f'contains {marker}' if marker else 'repeats its prompt'})")
                break
    message = f"{len(places)} rows have an answer that repeats its prompt or contains a template's markers."
    return _finding("prompt-leaking answers", "warning", places, message)


def _identical(pairs: Sequence[PreferencePair], place: Place) -> Finding | None:
    places = [place(pair) for pair in pairs if normalised(pair.chosen) == normalised(pair.rejected)]
    return _finding("identical answers", "error", places, f"{len(places)} pairs prefer an answer to itself.")


def _contradictions(pairs: Sequence[PreferencePair], place: Place) -> Finding | None:
    seen: dict[tuple[str, str, str], PreferencePair] = {}
    places = []
    for pair in pairs:
        prompt, chosen, rejected = map(normalised, (prompt_text(pair), pair.chosen, pair.rejected))
        if chosen == rejected:
            continue
        if (prompt, rejected, chosen) in seen:
            places.append(f"{place(pair)} and {place(seen[prompt, rejected, chosen])}")
        seen.setdefault((prompt, chosen, rejected), pair)
    message = f"{len(places)} pairs prefer the answer that another pair rejects."
    return _finding("contradicting preferences", "error", places, message)


def _label_conflicts(rows: Sequence[Item], place: Place) -> list[Finding | None]:
    labels: dict[Hashable, dict[Any, Item]] = defaultdict(dict)
    conflicts: list[str] = []
    wrong_way: list[str] = []
    marked: list[str] = []
    for row in rows:
        entries: list[tuple[Hashable, Any]] = []
        if isinstance(row, PreferencePair):
            for answer, safe in ((row.chosen, row.chosen_safe), (row.rejected, row.rejected_safe)):
                if safe is not None:
                    entries.append(((normalised(prompt_text(row)), normalised(answer)), safe))
            if row.chosen_safe is False and row.rejected_safe is True:
                wrong_way.append(place(row))
            if row.meta.get("label_conflict"):
                marked.append(place(row))
        else:
            entries.append((normalised(prompt_text(row)), row.kind if isinstance(row, Demonstration) else row.label))
        for key, label in entries:
            other = next((found for said, found in labels[key].items() if said != label), None)
            if other is not None:
                conflicts.append(f"{place(row)} and {place(other)}")
            labels[key].setdefault(label, row)
    return [
        _finding("label conflicts", "error", conflicts, f"{len(conflicts)} rows label the same text differently."),
        _finding(
            "unsafe preferred", "warning", wrong_way, f"{len(wrong_way)} pairs prefer an unsafe to a safe answer."
        ),
        _finding("annotators disagree", "warning", marked, f"{len(marked)} pairs are marked label_conflict."),
    ]


def _length_bias(pairs: Sequence[PreferencePair]) -> Finding:
    share, d = length_bias([(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs])
    severity: Severity = "warning" if abs(d) >= 0.5 or abs(share - 0.5) >= 0.25 else "note"
    message = (
        f"The preferred answer is the longer one in {share:.0%} of {len(pairs)} pairs; Cohen's d on words is {d:+.2f}."
        + (" A model could learn length instead of the preference." if severity == "warning" else "")
    )
    numbers = {"share_longer": share, "cohens_d": d, "n": float(len(pairs))}
    return Finding("length bias", severity, len(pairs), message, numbers=numbers)


def length_bias(lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """How much longer the preferred answers are.

    Args:
        lengths: (words of chosen, words of rejected) per pair.

    Returns:
        Share of pairs whose chosen answer is longer (equal lengths count half), and Cohen's d: difference of the means
        over the root of the mean of the two sample variances (Cohen 1988, section 2.2); 0 when nothing varies.
    """
    share = fmean(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in lengths)
    if len(lengths) < 2:
        return share, 0.0
    chosen, rejected = zip(*lengths, strict=True)
    spread = math.sqrt((variance(chosen) + variance(rejected)) / 2)
    return share, (fmean(chosen) - fmean(rejected)) / spread if spread else 0.0


def overlaps(rows: Sequence[Item], evaluation: Sequence[Prompt]) -> list[tuple[int, int, float]]:
    """(index of row, index of evaluation prompt, likeness) wherever their prompts are nearer than :data:`OVERLAP`."""
    if not evaluation:
        return []
    grams = [trigrams(prompt_text(row)) for row in rows]
    against = [trigrams(prompt_text(prompt)) for prompt in evaluation]
    return sorted(similar(grams, against, OVERLAP), key=lambda hit: -hit[2])


def _overlap(rows: Sequence[Item], place: Place, evaluation: Sequence[Prompt]) -> Finding | None:
    hits = overlaps(rows, evaluation)
    places = [f"{place(rows[i])} and {evaluation[j].id} ({likeness:.2f})" for i, j, likeness in hits]
    per_set = Counter(evaluation[j].benchmark or "evaluation" for j in {j for _, j, _ in hits})
    which = ", ".join(f"{count} of {name}" for name, count in sorted(per_set.items()))
    message = f"Evaluation prompts that are near a row (word 3-gram Jaccard >= {OVERLAP}): {which}."
    return _finding("overlap with evaluation prompts", "error", places, message)
