"""What became of the same prompts from one model to another: safe to unsafe and back, and mode to mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeserve.core.clustered import clustered_paired_difference, clustered_paired_p
from safeserve.core.statistics import holm
from safeserve.evaluation.analysis_rows import own_prompts, safety_metric
from safeserve.evaluation.compare import paired_keys
from safeserve.evaluation.folder import EvalFolder
from safeserve.evaluation.summary import BOOTSTRAP_SEED, rate

ALL = "all"
"""Name of the table over every harmful benchmark together, without prompts that rewrite another one of them."""


@dataclass(frozen=True)
class _Pair:
    """A sample on both sides: safe before and after, its prompt's id, what that one rewrites, and its cluster."""

    before: bool
    after: bool
    id: str
    original: str
    cluster: str
    benchmark: str


def transitions(a: EvalFolder, b: EvalFolder, judge: str) -> dict[str, Any]:
    """Tables over the samples that the judge has scored on both sides.

    Returns:
        ``a`` and ``b`` (model names); ``safety``: benchmark to :func:`two_by_two` with ``p_holm`` (corrected over the
        benchmarks) and the ids that became and that stayed unsafe, and under "all" the table of all of them where
        there are several; ``modes``: benchmark (of either label) to label in a to label in b to count.
    """
    metric = safety_metric(judge)
    if metric is None:
        raise ValueError(f"{judge} does not tell safe from unsafe")
    safety: dict[str, dict[str, Any]] = {}
    modes: dict[str, dict[str, dict[str, int]]] = {}
    every: list[_Pair] = []
    for name in (name for name in a.benchmarks if name in b.benchmarks):
        one, two = a.benchmarks[name], b.benchmarks[name]
        keys = paired_keys(judge, one, two).both
        if not keys:
            continue
        mine, theirs = one.scores[judge], two.scores[judge]
        modes[name] = mode_matrix([(mine[k].label or "", theirs[k].label or "") for k in keys])
        if one.label != "harmful":
            continue
        pairs = [(metric.holds(mine[k]), metric.holds(theirs[k])) for k in keys]
        names = [f"{prompt_id}#{k}" if k else prompt_id for prompt_id, k in keys]
        safety[name] = {
            **two_by_two(*_sides(pairs), [prompt_id for prompt_id, _ in keys]),
            "became_unsafe": [i for i, pair in zip(names, pairs, strict=True) if pair == (True, False)],
            "stayed_unsafe": [i for i, pair in zip(names, pairs, strict=True) if pair == (False, False)],
        }
        every += [
            _Pair(*pair, key[0], str(one.prompts[key[0]].meta.get("original") or ""), f"{name}\x1f{key[0]}", name)
            for pair, key in zip(pairs, keys, strict=True)
        ]
    for cell, p in zip(safety.values(), holm([cell["p"] for cell in safety.values()]), strict=True):
        cell["p_holm"] = p
    pooled = own_prompts(every, lambda pair: (pair.id, pair.original))
    if len({pair.benchmark for pair in pooled}) > 1:
        safety[ALL] = two_by_two(
            [pair.before for pair in pooled], [pair.after for pair in pooled], [pair.cluster for pair in pooled]
        )
    return {"a": a.model, "b": b.model, "safety": safety, "modes": modes}


def two_by_two(before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str]) -> dict[str, Any]:
    """The paper's table of (safe to safe, safe to unsafe, unsafe to safe, unsafe to unsafe), with what it shows.

    Args:
        before, after: whether each answer is safe, the same prompts in the same order.
        clusters: one name an answer, the prompt's id.

    Returns:
        The four counts; ``n``; the safe rates ``a`` and ``b`` with intervals; ``difference`` (b - a) with its paired
        interval; ``p``: exact McNemar (with several samples a prompt: sign flips of whole prompts).
    """
    counts = Counter(zip(before, after, strict=True))
    difference, interval = clustered_paired_difference(before, after, clusters)
    left, right = rate(before, clusters), rate(after, clusters)
    return {
        "n": len(before),
        "safe_safe": counts[True, True],
        "safe_unsafe": counts[True, False],
        "unsafe_safe": counts[False, True],
        "unsafe_unsafe": counts[False, False],
        "a": left["rate"],
        "a_ci95": left["ci95"],
        "b": right["rate"],
        "b_ci95": right["ci95"],
        "difference": difference,
        "ci95": [interval.low, interval.high],
        "p": clustered_paired_p(before, after, clusters, BOOTSTRAP_SEED),
    }


def mode_matrix(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Label before to label after to count; both in alphabetical order, only what occurs."""
    counts = Counter(pairs)
    olds = sorted({old for old, _ in counts})
    return {old: {new: n for (one, new), n in sorted(counts.items()) if one == old} for old in olds}


def _sides(pairs: Sequence[tuple[bool, bool]]) -> tuple[list[bool], list[bool]]:
    return [before for before, _ in pairs], [after for _, after in pairs]
