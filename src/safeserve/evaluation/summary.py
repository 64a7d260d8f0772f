"""Count scores into rates with Wilson intervals: the per-benchmark part of summary.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from safeserve.core.agreement import Known, rogan_gladen
from safeserve.core.clustered import clustered_mean, clustered_rate, effective_size
from safeserve.core.errors import EvidenceError, UserError
from safeserve.data.records import Label, Prompt
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key, find_eval, find_run, read_eval
from safeserve.evaluation.metrics import Metric, applies, metrics_for
from safeserve.generation.engine import Completion
from safeserve.judging.calibration_store import in_use
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score

__all__ = ["BenchmarkEval", "EvalFolder", "Key", "find_eval", "find_run", "read_eval", "summarise"]

BOOTSTRAP_SEED = 0
"""Fixed: scoring twice gives the same bytes."""


def summarise(
    prompts: Collection[Prompt],
    completions: Collection[Completion],
    scores_by_judge: Mapping[str, Mapping[Key, Score]],
    identities: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One benchmark's part of summary.json.

    Rates are over scored completions. ``n`` = ``n_scored`` + ``n_unscored`` + ``n_not_applicable``; the last are
    completions that the judge is not meant for (a prompt without accepted answers under ``short_answer``). Several
    samples of one prompt are one cluster: intervals widen by as much as its samples are alike. Of each prompt,
    completion and score only what is counted is held, so all three may come from files one by one.

    Args:
        prompts: all of one label.
        completions: every sample of every prompt.
        scores_by_judge: judge name to scores keyed by (id, k).
        identities: judge name to identity; rates of a judge with a calibration in use are also shown corrected.

    Raises:
        EvidenceError: no completions, or no scores.
        UserError: prompts of both labels, a completion of an unknown prompt, or one that a judge has no score for.
    """
    name = next((prompt.benchmark for prompt in prompts), "?")
    if not completions:
        raise EvidenceError(f"benchmark {name}: no completions. Run `safeserve eval` on it first.")
    if not any(scores_by_judge.values()):
        raise EvidenceError(f"benchmark {name}: no scores. Run `safeserve score` on it with at least one judge.")
    labels: set[Label] = set()
    about: dict[str, _About] = {}
    for prompt in prompts:
        labels.add(prompt.label)
        about[prompt.id] = _about(prompt.category, frozenset(j for j in scores_by_judge if not applies(j, prompt)))
    if len(labels) > 1:
        raise UserError(f"benchmark {name}: harmful and benign prompts mixed. Split it into two benchmarks.")
    keys = [(completion.id, completion.k) for completion in completions]
    unknown = [prompt_id for prompt_id, _ in keys if prompt_id not in about]
    if unknown:
        raise UserError(f'benchmark {name}: completion "{unknown[0]}" belongs to none of its prompts.')
    label = labels.pop()
    return {
        "label": label,
        "n": len(keys),
        "judges": {
            judge: _summarise_judge(name, judge, label, about, keys, scores, (identities or {}).get(judge))
            for judge, scores in scores_by_judge.items()
        },
    }


@dataclass(frozen=True)
class _About:
    """What is counted of a prompt: its category, and the judges that are not meant for it."""

    category: str
    not_for: frozenset[str]


_about = cache(_About)  # many prompts, few of these


def rate(hits: Iterable[bool], clusters: Sequence[str]) -> dict[str, Any]:
    """``{"rate", "ci95", "n", "successes"}`` of yes/no observations; rate and ci95 are None without any."""
    observed = list(hits)
    n, successes = len(observed), sum(observed)
    if not n:
        return {"rate": None, "ci95": None, "n": 0, "successes": 0}
    interval = clustered_rate(observed, clusters)
    return {"rate": successes / n, "ci95": [interval.low, interval.high], "n": n, "successes": successes}


def mean(values: Iterable[float], clusters: Sequence[str]) -> dict[str, Any]:
    """``{"mean", "ci95", "n", "sd"}``; what too few values cannot tell is None."""
    observed = list(values)
    n = len(observed)
    if not n:
        return {"mean": None, "ci95": None, "n": 0, "sd": None}
    interval = clustered_mean(observed, clusters, BOOTSTRAP_SEED)
    return {
        "mean": fmean(observed),
        "ci95": None if interval is None else [interval.low, interval.high],
        "n": n,
        "sd": stdev(observed) if n > 1 else None,
    }


def measure(metric: Metric, scored: Sequence[tuple[str, Score]]) -> dict[str, Any]:
    """One metric's cell over (prompt id, score) pairs that are evidence."""
    clusters = [prompt_id for prompt_id, _ in scored]
    if metric.is_mean:
        return mean((metric.value(score) for _, score in scored), clusters)
    return rate((metric.holds(score) for _, score in scored), clusters)


def corrected(metric: Metric, scored: Sequence[tuple[str, Score]], identity: str | None) -> dict[str, Any]:
    """``{"corrected": ...}``: a share corrected for the errors that the judge's calibration in use has shown.

    Holds rate and ci95 (both None with a ``reason`` where the judge is no better than chance on its labels),
    sensitivity, specificity and the labels' name. Empty without such a calibration.
    """
    known = in_use(identity, metric.corrects) if identity and metric.corrects and scored else None
    if known is None or known["sensitivity"] is None or known["specificity"] is None:
        return {}
    hits = [metric.holds(score) for _, score in scored]
    size = effective_size(hits, [prompt_id for prompt_id, _ in scored])
    share = sum(hits) / len(hits)
    positive = share if metric.counts == "positive" else 1 - share
    shown = {side: known[side]["value"] for side in ("sensitivity", "specificity")}
    sensitivity, specificity = (Known(known[side]["value"], known[side]["n_effective"]) for side in shown)
    result: dict[str, Any] = {"rate": None, "ci95": None, **shown, "labels": known["labels"]}
    try:
        rate_of_positive, interval = rogan_gladen(positive, size, sensitivity, specificity)
    except ValueError as error:
        return {"corrected": {**result, "reason": str(error)}}
    bounds = [interval.low, interval.high]
    if metric.counts == "negative":
        rate_of_positive, bounds = 1 - rate_of_positive, [1 - interval.high, 1 - interval.low]
    return {"corrected": {**result, "rate": rate_of_positive, "ci95": bounds}}


def _summarise_judge(
    name: str,
    judge: str,
    label: str,
    about: Mapping[str, _About],
    keys: Sequence[Key],
    scores: Mapping[Key, Score],
    identity: str | None,
) -> dict[str, Any]:
    counted: list[tuple[str, Score]] = []
    by_category: dict[str, list[tuple[str, Score]]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    not_applicable = 0
    alike: dict[tuple[object, ...], Score] = {}
    for prompt_id, k in keys:
        score = scores.get((prompt_id, k))
        if score is None:
            raise UserError(
                f'benchmark {name}: judge "{judge}" has no line for id "{prompt_id}", k {k}. '
                "Run `safeserve score` again: it completes the file."
            )
        unscored = why_unscored(judge, score)
        if unscored is None:
            # Metrics read these three only, and verdicts are few.
            row = (prompt_id, alike.setdefault((score.value, score.label, score.flags), score))
            counted.append(row)
            by_category[about[prompt_id].category].append(row)
        elif judge in about[prompt_id].not_for:
            not_applicable += 1
        else:
            reasons[unscored] += 1
    metrics = metrics_for(judge, label)
    return {
        "n": len(keys),
        "n_scored": len(counted),
        "n_unscored": sum(reasons.values()),
        "n_not_applicable": not_applicable,
        "metrics": {
            metric.name: {**measure(metric, counted), **corrected(metric, counted, identity)} for metric in metrics
        },
        "by_category": {
            category: {metric.name: measure(metric, by_category[category]) for metric in metrics}
            for category in sorted(by_category)
        },
        "modes": _counts(score.label or "unlabelled" for _, score in counted),
        "flags": _counts(flag for _, score in counted for flag in score.flags),
        "unscored_reasons": dict(sorted(reasons.items())),
    }


def _counts(words: Iterable[str]) -> dict[str, int]:
    """Counts, most frequent first, ties by name: the same input gives the same bytes."""
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))
