"""What a reward model would pick, against what a judge that it did not teach says of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from safeserve.core.agreement import auroc
from safeserve.core.clustered import clustered_rate
from safeserve.core.runs import read_jsonl
from safeserve.evaluation.analysis_rows import safety_metric
from safeserve.evaluation.analysis_transitions import two_by_two
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score
from safeserve.judging.registry import family

WORST = 10
"""Ids of the worst disagreements that are kept."""


@dataclass(frozen=True)
class Judged:
    """One answer with both opinions: ``reward`` (higher is better), and whether the held-out judge calls it safe."""

    key: Key
    reward: float
    safe: bool

    @property
    def name(self) -> str:
        """``ID``, or ``ID#K`` for a further sample."""
        return f"{self.key[0]}#{self.key[1]}" if self.key[1] else self.key[0]


def reward_checks(side: EvalFolder, judge: str) -> list[dict[str, Any]]:
    """Per harmful benchmark and reward judge what :func:`check_reward` says; empty where no such scores exist."""
    found = []
    for name, part in side.benchmarks.items():
        for reward in (one for one in part.scores if family(one) == "reward"):
            if part.label == "harmful" and (judged := judged_by_both(part, reward, judge)):
                found.append({"benchmark": name, "reward": reward, "judge": judge, **check_reward(judged)})
    return found


def judged_by_both(part: BenchmarkEval, reward: str, judge: str) -> list[Judged]:
    """The answers that have both scores, in file order."""
    metric = safety_metric(judge)
    if metric is None:
        raise ValueError(f"{judge} does not tell safe from unsafe")
    values = part.scores[reward]
    return [
        Judged(key, value, metric.holds(score))
        for key, score in part.scores.get(judge, {}).items()
        if why_unscored(judge, score) is None and (value := _value(reward, values, key)) is not None
    ]


def raft_checks(run: Path) -> list[dict[str, Any]]:
    """Per RAFT iteration of a run what :func:`check_reward` says of its samples of harmful prompts.

    Of the first round only: a prompt is sampled again because none of its samples was allowed, so further rounds would
    bend every share. ``selected`` counts what was picked wherever it comes from.

    Also ``stage``, ``iteration``, and ``selected``: how many of the samples that were learned from the held-out judge
    calls safe (``n``, ``safe``, ``rate``, ``ci95``; None where none was picked). Reads ``stages/*/iter-N``; samples
    without a reward or without the held-out judge's verdict are left out.
    """
    found = []
    for path in sorted(
        run.glob("stages/*/iter-*/samples.jsonl"), key=lambda path: (path.parents[1].name, _number(path))
    ):
        both = [(sample, one) for sample in read_jsonl(path) if (one := _sampled(sample)) is not None]
        # Older files do not tell the round.
        if first := [one for sample, one in both if not sample.get("round", 0)]:
            chosen = path.with_name("selected.jsonl")
            picked = {(row.get("id"), row.get("k")) for row in (read_jsonl(chosen) if chosen.exists() else ())}
            learned = [one for _, one in both if one.key in picked]
            place = {"stage": path.parents[1].name, "iteration": _number(path)}
            found.append({**place, **check_reward(first), "selected": _safe_share(learned)})
    return found


def _number(path: Path) -> int:
    digits = path.parent.name.partition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _sampled(sample: Mapping[str, Any]) -> Judged | None:
    reward, held_out = sample.get("reward"), sample.get("held_out")
    unsafe = held_out.get("unsafe") if isinstance(held_out, Mapping) else None
    known = isinstance(reward, int | float) and isfinite(reward) and isinstance(unsafe, bool)
    if sample.get("label") != "harmful" or not known:
        return None
    return Judged((str(sample["id"]), int(sample.get("k", 0))), float(sample["reward"]), not unsafe)


def _safe_share(judged: Sequence[Judged]) -> dict[str, Any] | None:
    if not judged:
        return None
    safe = [one.safe for one in judged]
    interval = clustered_rate(safe, [one.key[0] for one in judged])
    return {"n": len(safe), "safe": sum(safe), "rate": sum(safe) / len(safe), "ci95": [interval.low, interval.high]}


def _value(judge: str, scores: Mapping[Key, Score], key: Key) -> float | None:
    score = scores.get(key)
    return None if score is None or why_unscored(judge, score) is not None else score.value


def check_reward(judged: Sequence[Judged]) -> dict[str, Any]:
    """How far the reward and the held-out judge agree on answers to harmful prompts.

    Returns:
        ``n``; ``auroc``: chance that a safe answer has the higher reward of a safe and an unsafe one (None where all
        are alike); ``safe_low`` and ``unsafe_high``: ids of the worst disagreements, at most 10 each, on the wrong
        side of the median reward; and where prompts have several samples, ``picks`` (:func:`picks`), else None.
    """
    ordered = sorted(judged, key=lambda one: one.reward)
    middle = ordered[len(ordered) // 2].reward
    area = auroc([one.safe for one in judged], [one.reward for one in judged])
    return {
        "n": len(judged),
        "auroc": None if isnan(area) else area,
        "unsafe_high": [one.name for one in reversed(ordered) if not one.safe and one.reward > middle][:WORST],
        "safe_low": [one.name for one in ordered if one.safe and one.reward < middle][:WORST],
        "picks": picks(judged),
    }


def picks(judged: Sequence[Judged]) -> dict[str, Any] | None:
    """What taking the answer of highest reward does, over the prompts of two samples or more; None without any.

    Returns:
        ``prompts`` and ``samples``; ``all_unsafe``: prompts on which no choice can help; ``pick_safe``: safe rate of
        the picks (with interval) beside ``random_safe`` and ``best_safe``, those of a random and of the best choice;
        ``missed``: ids of prompts where an unsafe answer was picked although a safe one was there; ``table``: each
        prompt's first sample against its pick, as the paper shows it (:func:`two_by_two`).
    """
    by_prompt: dict[str, list[Judged]] = {}
    for one in judged:
        by_prompt.setdefault(one.key[0], []).append(one)
    several = {prompt: sorted(part, key=lambda one: one.key[1]) for prompt, part in by_prompt.items() if len(part) > 1}
    if not several:
        return None
    chosen = {prompt: max(part, key=lambda one: one.reward) for prompt, part in several.items()}
    any_safe = {prompt: any(one.safe for one in part) for prompt, part in several.items()}
    safe = [chosen[prompt].safe for prompt in several]
    interval = clustered_rate(safe, list(several))
    shares = [sum(one.safe for one in part) / len(part) for part in several.values()]
    first = [part[0].safe for part in several.values()]
    return {
        "prompts": len(several),
        "samples": sum(map(len, several.values())),
        "all_unsafe": sum(not there for there in any_safe.values()),
        "pick_safe": {"rate": sum(safe) / len(safe), "ci95": [interval.low, interval.high]},
        "random_safe": sum(shares) / len(shares),
        "best_safe": sum(any_safe.values()) / len(any_safe),
        "missed": [prompt for prompt in several if any_safe[prompt] and not chosen[prompt].safe],
        "table": two_by_two(first, safe, list(several)),
    }
