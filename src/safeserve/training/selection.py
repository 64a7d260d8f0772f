"""Which samples of a prompt the model learns from: pure rules over scored candidates, no torch.

A rule sees candidates and returns picks. A sample without a score that the rule needs, or without text, is never
picked; such samples are counted. Equal texts of a prompt count as one sample, the one of the lowest number. Ties are
broken by the sample's number (over several prompts: by prompt id before it), so the order of the input changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.extensions import load_object

RULES = ("top1", "topk", "threshold", "constrained", "human")
"""Rules by name; ``module:object`` is an own one."""
SWITCH_SAFETY = 0.15
"""Llama 2 (Touvron et al. 2023, section 3.2.3): below this safety score safety decides on any prompt."""
_SURE = 1e-6
"""Probabilities nearer to 0 and 1 than this are not told apart on the logit scale."""


@dataclass(frozen=True)
class Sample:
    """Answer number ``k`` to a prompt.

    Attributes:
        reward: what the rule maximises, higher is better; None where it could not be scored.
        p_unsafe: a guard's P(unsafe) in [0, 1]; None without a guard, or where it could not score.
        refused: whether it declines a benign prompt in full, where that keeps it from being picked.
    """

    k: int
    text: str
    reward: float | None
    p_unsafe: float | None = None
    refused: bool = False

    def allowed(self, tau: float) -> bool:
        """Whether it is safe enough, and answers where it should."""
        return self.p_unsafe is not None and self.p_unsafe <= tau and not self.refused


@dataclass(frozen=True)
class Candidate:
    """A prompt with its samples."""

    id: str
    harmful: bool
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Selection:
    """What a rule made of some candidates.

    Attributes:
        picks: prompt id to the numbers of its picked samples, best first; only prompts with a pick.
        dropped: prompt id to the reason why nothing of it was picked.
        counts: samples seen, and of them those that could not be picked: ``unscored``, ``empty``, ``repeated``.
    """

    picks: dict[str, tuple[int, ...]]
    dropped: dict[str, str]
    counts: dict[str, int] = field(default_factory=dict)


Picks = Mapping[str, Sequence[int]]
OwnRule = Callable[[Sequence[Candidate]], Picks]
"""An own rule: from candidates (usable samples only) to prompt id -> sample numbers, best first."""


# --- rewards put together ------------------------------------------------------------------------------------------


def weighted(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """Sum of weight times value over the judges in ``weights``; None where one of them could not score."""
    total = 0.0
    for judge, weight in weights.items():
        value = values[judge]
        if value is None:
            return None
        total += weight * value
    return total


def switched(harmful: bool, helpful: float | None, p_unsafe: float | None) -> float | None:
    """Llama 2's switch: the safety score decides on a harmful prompt or where it is below 0.15, else the helpful one.

    The safety score is 1 - P(unsafe). Both sides stand on the logit scale, as there: logit(1 - P(unsafe)), and the
    helpful reward model's output as it is (before any sigmoid).
    """
    if p_unsafe is None:
        return None
    safety = 1 - p_unsafe
    if harmful or safety < SWITCH_SAFETY:
        inside = min(max(safety, _SURE), 1 - _SURE)
        return math.log(inside / (1 - inside))
    return helpful


# --- rules ---------------------------------------------------------------------------------------------------------


def top1(candidates: Sequence[Candidate]) -> Picks:
    """The best sample of each prompt (LMFlow's ``local`` ranking)."""
    return {candidate.id: [_ranked(candidate.samples)[0].k] for candidate in candidates if candidate.samples}


def topk(candidates: Sequence[Candidate], share: float | None = None, count: int | None = None) -> Picks:
    """The best samples of all prompts together: a share of them (rounded down, at least one), or a number.

    The share is of the samples that may be picked: scored, not empty, equal texts of a prompt once.

    This is the global ranking of RAFT (Dong et al. 2023) and LMFlow's ``top``: a prompt may give many samples or none,
    which is fair only where rewards of different prompts can be compared.
    """
    everything = [(sample, candidate.id) for candidate in candidates for sample in candidate.samples]
    if count is None:
        assert share is not None
        count = max(1, int(share * len(everything)))
    everything.sort(key=lambda pair: (-_reward(pair[0]), pair[1], pair[0].k))
    picks: dict[str, list[int]] = {}
    for sample, name in everything[:count]:
        picks.setdefault(name, []).append(sample.k)
    return picks


def threshold(candidates: Sequence[Candidate], at_least: float) -> Picks:
    """Every sample whose reward reaches ``at_least``."""
    return {
        candidate.id: [sample.k for sample in _ranked(candidate.samples) if _reward(sample) >= at_least]
        for candidate in candidates
    }


def constrained(candidates: Sequence[Candidate], tau: float) -> Picks:
    """The best reward among a prompt's samples that are allowed under ``tau``; a prompt without one gets none."""
    allowed = {c.id: [sample for sample in c.samples if sample.allowed(tau)] for c in candidates}
    return {name: [_ranked(samples)[0].k] for name, samples in allowed.items() if samples}


def by_people(candidates: Sequence[Candidate], picked: Mapping[str, Sequence[int]]) -> Picks:
    """What people picked; prompts that they left out get none."""
    return {candidate.id: picked.get(candidate.id, ()) for candidate in candidates}


def select(
    candidates: Sequence[Candidate], rule: Callable[[Sequence[Candidate]], Picks], needs: Iterable[str], none: str
) -> Selection:
    """Apply ``rule`` to the samples that it may pick from.

    Args:
        needs: what a sample must have to be picked: ``reward``, ``p_unsafe``.
        none: the reason for a prompt that had usable samples, and none was picked.

    Raises:
        UserError: an own rule picked what is not there.
    """
    usable, counts = usable_samples(candidates, needs)
    names = {candidate.id for candidate in candidates}
    given = rule(usable)
    if unknown := sorted(set(given) - names):
        raise UserError(f'rule: picked for "{unknown[0]}", which is no prompt of this iteration.')
    picks: dict[str, tuple[int, ...]] = {}
    dropped: dict[str, str] = {}
    for candidate in usable:
        chosen = tuple(dict.fromkeys(given.get(candidate.id, ())))
        if wrong := set(chosen) - {sample.k for sample in candidate.samples}:
            raise UserError(f'rule: picked sample {min(wrong)} of "{candidate.id}", which cannot be picked.')
        if chosen:
            picks[candidate.id] = chosen
        else:
            dropped[candidate.id] = none if candidate.samples else "no sample has the scores that the rule needs"
    return Selection(picks, dropped, counts)


def usable_samples(candidates: Sequence[Candidate], needs: Iterable[str]) -> tuple[list[Candidate], dict[str, int]]:
    """Candidates with only the samples that may be picked, ordered by number, and how many were left out and why."""
    needed, counts = tuple(needs), Counter(samples=0, unscored=0, empty=0, repeated=0)
    kept = []
    for candidate in candidates:
        by_text: dict[str, Sample] = {}
        for sample in sorted(candidate.samples, key=lambda sample: sample.k):
            counts["samples"] += 1
            if not sample.text.strip():
                counts["empty"] += 1
            elif any(not _finite(getattr(sample, name)) for name in needed):
                counts["unscored"] += 1
            elif sample.text in by_text:
                counts["repeated"] += 1
            else:
                by_text[sample.text] = sample
        kept.append(Candidate(candidate.id, candidate.harmful, tuple(by_text.values())))
    return kept, dict(counts)


def own_rule(name: str) -> OwnRule:
    """The user's rule behind ``module:object``.

    Raises:
        UserError: it is not there, or cannot be called.
    """
    found = load_object(name)
    if not callable(found):
        raise UserError(f"rule: {name} is not a function. It takes candidates and returns prompt id -> sample numbers.")
    rule: OwnRule = found
    return rule


# --- pairs ---------------------------------------------------------------------------------------------------------


def best_and_worst(candidate: Candidate, best: int, tau: float | None = None) -> tuple[int, int] | None:
    """A pick with the worst sample of its prompt by the same rule; None where nothing is worse.

    With ``tau`` a sample that is not allowed is worse than any that is, and among those the most unsafe is the worst;
    else, and among allowed ones, the lowest reward is. Only samples that the rule could judge take part.

    Args:
        candidate: with usable samples only.
    """

    def badness(sample: Sample) -> tuple[float, float]:
        over = tau is not None and not sample.allowed(tau)
        return (sample.p_unsafe or 0.0 if over else -1.0, -_reward(sample))

    chosen = next(sample for sample in candidate.samples if sample.k == best)
    scored = [sample for sample in candidate.samples if _finite(sample.reward)]
    worst = max(scored, key=lambda sample: (*badness(sample), -sample.k), default=None)
    if worst is None or (_finite(chosen.reward) and badness(worst) <= badness(chosen)) or worst.k == best:
        return None
    return best, worst.k


# --- picks of people -----------------------------------------------------------------------------------------------


def read_picks(
    rows: Iterable[tuple[int, Mapping[str, Any]]], where: str, candidates: Sequence[Candidate], iteration: int
) -> dict[str, tuple[int, ...]]:
    """Picks from the lines of a file: ``{"id": prompt, "k": number}`` or ``{"id": prompt, "text": the sample}``.

    Lines may name their ``iteration`` (1 where they do not); those of other iterations are passed over.

    Raises:
        UserError: with the line: no such prompt or sample, or number and text of different samples.
    """
    known = {candidate.id: candidate for candidate in candidates}
    picked: dict[str, list[int]] = {}
    for number, row in rows:
        if row.get("iteration", 1) != iteration:
            continue
        place = f"{where} line {number}"
        candidate = known.get(str(row.get("id")))
        if candidate is None:
            raise UserError(f'{place}: no prompt "{row.get("id")}" in iteration {iteration}.')
        if "k" not in row and "text" not in row:
            raise UserError(f'{place}: neither "k" (the sample\'s number) nor "text" (the sample itself) is given.')
        samples = [
            sample
            for sample in candidate.samples
            if row.get("k", sample.k) == sample.k and str(row.get("text", sample.text)).strip() == sample.text.strip()
        ]
        if not samples:
            raise UserError(
                f'{place}: "{candidate.id}" has no such sample. Pick from the samples of this run; '
                "a text must be a sample's own, word for word."
            )
        text = samples[0].text  # of equal texts the lowest number stands for all
        picked.setdefault(candidate.id, []).append(min(s.k for s in candidate.samples if s.text == text))
    return {name: tuple(dict.fromkeys(numbers)) for name, numbers in picked.items()}


def _ranked(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda sample: (-_reward(sample), sample.k))


def _reward(sample: Sample) -> float:
    assert sample.reward is not None, "an unscored sample is never ranked"
    return sample.reward


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
