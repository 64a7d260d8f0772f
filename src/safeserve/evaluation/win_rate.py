"""Win rate of one model against another by a pairwise judge: both orders, ties, inconsistency, length control."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import stats

from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.statistics import Interval, score_interval
from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import find_benchmark
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.evaluation.length_control import length_controlled
from safeserve.evaluation.summary import rate
from safeserve.judging.llm import PairVerdict, PairwiseJudge
from safeserve.judging.registry import make_judge

_FOR_SECOND = {"first": 0.0, "tie": 0.5, "second": 1.0}
_FOR_FIRST = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Comparer(Protocol):
    """What :func:`judge_pairs` needs of a pairwise judge."""

    def winners(self, triples: Sequence[tuple[Prompt, str, str]], quiet: bool = False) -> list[PairVerdict]: ...


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    prompt: Prompt
    a: str
    b: str


@dataclass(frozen=True)
class PairResult:
    """What both orders said of a pair.

    Attributes:
        a_first, b_first: preference for b (1 b, 0.5 tie, 0 a) where a, and where b, was shown first; None: no verdict.
        reason: why there is no verdict; else None.
        called: False for identical texts, a tie without asking.
    """

    a_first: float | None
    b_first: float | None
    reason: str | None = None
    called: bool = True

    @property
    def preference(self) -> float | None:
        """For b, the mean of both orders: a judge that only looks at the position lands on 0.5. None: unscored."""
        if self.a_first is None or self.b_first is None:
            return None
        return (self.a_first + self.b_first) / 2

    @property
    def inconsistent(self) -> bool:
        """Whether the verdict changed with the order."""
        return self.a_first != self.b_first


def judge_pairs(judge: Comparer, pairs: Sequence[Pair], call_identical: bool = False) -> list[PairResult]:
    """Ask about every pair in both orders; identical texts are ties without asking unless ``call_identical``."""
    asked = [i for i, pair in enumerate(pairs) if call_identical or pair.a != pair.b]
    forward = [(pairs[i].prompt, pairs[i].a, pairs[i].b) for i in asked]
    verdicts = judge.winners([*forward, *((prompt, b, a) for prompt, a, b in forward)])
    results = [PairResult(0.5, 0.5, called=False)] * len(pairs)
    for i, one, two in zip(asked, verdicts[: len(asked)], verdicts[len(asked) :], strict=True):
        results[i] = PairResult(
            a_first=_FOR_SECOND[one.winner] if one.winner else None,
            b_first=_FOR_FIRST[two.winner] if two.winner else None,
            reason=one.reason or two.reason,
        )
    return results


def mean_interval(preferences: Sequence[float], clusters: Sequence[str]) -> Interval:
    """95 % interval of a mean of preferences in [0, 1]: the score interval at the effective sample size.

    The effective size is what a yes/no rate would need for the cluster-robust variance of this mean (K/(K−1), t
    quantile with K−1 degrees of freedom, as in ``clustered_rate``). Where nothing varies, each prompt counts once.

    Raises:
        ValueError: no preferences, or sequences of different length.
    """
    if not preferences or len(preferences) != len(clusters):
        raise ValueError(f"{len(preferences)} preferences, {len(clusters)} clusters")
    n, mean = len(preferences), math.fsum(preferences) / len(preferences)
    residuals: dict[str, float] = defaultdict(float)
    for value, cluster in zip(preferences, clusters, strict=True):
        residuals[cluster] += value - mean
    count = len(residuals)
    if count == 1:
        return Interval(0.0, 1.0)
    variance = count / (count - 1) * math.fsum(part * part for part in residuals.values()) / n**2
    if variance < 1e-15:
        return score_interval(mean, count)
    effective = mean * (1 - mean) / variance
    quantiles = float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, count - 1))
    return score_interval(mean, effective * quantiles**2)


def summarise_pairs(pairs: Sequence[Pair], results: Sequence[PairResult], name: str) -> dict[str, Any]:
    """The ``win_rate`` part of benchmark ``name``: counts, rates of b against a with intervals, what is unscored.

    Raises:
        EvidenceError: no pair has a verdict.
    """
    scored = [(pair, r, r.preference) for pair, r in zip(pairs, results, strict=True) if r.preference is not None]
    reasons = Counter(result.reason or "no reason given" for result in results if result.preference is None)
    if not scored:
        most = reasons.most_common(1)[0][0]
        raise EvidenceError(f"{name}: none of {len(pairs)} pairs has a verdict of the judge; most often: {most}.")
    preferences = [preference for _, _, preference in scored]
    clusters = [pair.prompt.id for pair, _, _ in scored]
    differences = [float(len(pair.b) - len(pair.a)) for pair, _, _ in scored]
    interval = mean_interval(preferences, clusters)
    controlled = length_controlled(preferences, differences, clusters)
    called = [(pair, result) for pair, result, _ in scored if result.called]
    return {
        "n": len(pairs),
        "n_scored": len(scored),
        "n_unscored": len(pairs) - len(scored),
        "unscored_reasons": dict(sorted(reasons.items())),
        "wins": sum(p > 0.5 for p in preferences),
        "ties": sum(p == 0.5 for p in preferences),
        "losses": sum(p < 0.5 for p in preferences),
        "identical": len(scored) - len(called),
        "win_rate": math.fsum(preferences) / len(preferences),
        "ci95": [interval.low, interval.high],
        "length_controlled": {
            "win_rate": controlled.rate,
            "ci95": _pair(controlled.interval),
            "length_effect": controlled.effect,
            "reason": controlled.reason,
        },
        "mean_length_difference": float(np.mean(differences)),
        "inconsistent": rate([r.inconsistent for _, r in called], [pair.prompt.id for pair, _ in called]),
    }


def add_win_rates(
    comparison: Mapping[str, Any], a: EvalFolder, b: EvalFolder, judge: str, null_test: bool = False
) -> dict[str, Any]:
    """The comparison of ``a`` and ``b`` with a ``win_rate`` part a benchmark, and one on the judge itself.

    Left out are harmful prompts, where the more obliging answer would win, and multiple choice, which is no text.

    Args:
        judge: spec of a pairwise judge, see ``registry.make_judge``.
        null_test: also show ``b``'s answers against themselves, see :func:`null_test_part`.

    Raises:
        UserError: the judge scores single answers, or no benign benchmark of free text is in common.
        EvidenceError: no pair of a benchmark has a verdict.
    """
    made = make_judge(judge)
    if not isinstance(made, PairwiseJudge):
        raise UserError(
            f"{judge}: judge {made.name} scores single answers; a win rate needs a file with kind: pairwise."
        )
    benchmarks = {name: dict(part) for name, part in comparison["benchmarks"].items()}
    chosen = [name for name in benchmarks if a.benchmarks[name].label == "benign" and _is_text(name)]
    pairs = {name: found for name in chosen if (found := _pairs(a.benchmarks[name], b.benchmarks[name]))}
    if not pairs:
        raise UserError(
            f"{a.path} and {b.path}: no benign benchmark of free text in common, so there is nothing a win rate is for."
        )
    for name, found in pairs.items():
        part = summarise_pairs(found, judge_pairs(made, found), name)
        answers = {*a.benchmarks[name].completions} | {*b.benchmarks[name].completions}
        part["n_without_answer"] = len(answers) - len(found)
        if null_test:
            part["null_test"] = null_test_part(made, [Pair(pair.prompt, pair.b, pair.b) for pair in found])
        benchmarks[name]["win_rate"] = part
    about = {
        "judge": made.name,
        "identity": made.identity,
        "model": made.options.model,
        "usage": made.client.usage.to_json(),
        "left_out": [name for name in benchmarks if name not in chosen],
    }
    return {**comparison, "benchmarks": benchmarks, "win_rate": about}


def null_test_part(judge: Comparer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """A model against its own answers: 50 % and, from a judge worth asking, all ties.

    ``ties`` are pairs called equal in both orders, ``named_first`` and ``named_second`` single verdicts for a position,
    which on equal answers is bias and nothing else. ``passed``: every scored pair lands on 50 % and none is unscored.
    """
    results = judge_pairs(judge, pairs, call_identical=True)
    scored = [result for result in results if result.preference is not None]
    orders = [(r.a_first, r.b_first) for r in scored]
    return {
        "n": len(results),
        "n_scored": len(scored),
        "win_rate": math.fsum(r.preference or 0.0 for r in scored) / len(scored) if scored else None,
        "ties": sum(pair == (0.5, 0.5) for pair in orders),
        "named_first": sum((one == 0.0) + (two == 1.0) for one, two in orders),
        "named_second": sum((one == 1.0) + (two == 0.0) for one, two in orders),
        "passed": bool(scored) and len(scored) == len(results) and all(r.preference == 0.5 for r in scored),
    }


def _is_text(benchmark: str) -> bool:
    """Whether answers are free text; those of a benchmark that is not ours are taken for it."""
    known = find_benchmark(benchmark)
    return known is None or known.general


def _pairs(a: BenchmarkEval, b: BenchmarkEval) -> list[Pair]:
    """Answers of both sides to one prompt and sample number; failed generations carry no evidence."""

    def text(part: BenchmarkEval, key: Key) -> str | None:
        completion = part.completions.get(key)
        return None if completion is None or completion.finish_reason == "error" else completion.text

    found = [(key, text(a, key), text(b, key)) for key in a.completions]
    return [Pair(a.prompts[key[0]], one, two) for key, one, two in found if one is not None and two is not None]


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
