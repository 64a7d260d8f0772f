"""Count scores into rates with Wilson intervals: the per-benchmark part of summary.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from safeserve.core.agreement import Known, rogan_gladen
from safeserve.core.clustered import clustered_mean, clustered_rate, effective_size
from safeserve.core.errors import EvidenceError, UserError
from safeserve.data.records import Prompt
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
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    scores_by_judge: Mapping[str, Mapping[Key, Score]],
    identities: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One benchmark's part of summary.json.

    Rates are over scored completions. ``n`` = ``n_scored`` + ``n_unscored`` + ``n_not_applicable``; the last are
    completions that the judge is not meant for (a prompt without accepted answers under ``short_answer``). Several
    samples of one prompt are one cluster: intervals widen by as much as its samples are alike.

    Args:
        prompts: all of one label.
        completions: every sample of every prompt.
        scores_by_judge: judge name to scores keyed by (id, k).
        identities: judge name to identity; rates of a judge with a calibration in use are also shown corrected.

    Raises:
        EvidenceError: no completions, or no scores.
        UserError: prompts of both labels, a completion of an unknown prompt, or one that a judge has no score for.
    """
    name = prompts[0].benchmark if prompts else "?"
    if not completions:
        raise EvidenceError(f"benchmark {name}: no completions. Run `safeserve eval` on it first.")
    if not any(scores_by_judge.values()):
        raise EvidenceError(f"benchmark {name}: no scores. Run `safeserve score` on it with at least one judge.")
    labels = {prompt.label for prompt in prompts}
    if len(labels) > 1:
        raise UserError(f"benchmark {name}: harmful and benign prompts mixed. Split it into two benchmarks.")
    by_id = {prompt.id: prompt for prompt in prompts}
    unknown = [completion.id for completion in completions if completion.id not in by_id]
    if unknown:
        raise UserError(f'benchmark {name}: completion "{unknown[0]}" belongs to none of its prompts.')
    label = labels.pop()
    return {
        "label": label,
        "n": len(completions),
        "judges": {
            judge: _summarise_judge(name, judge, label, by_id, completions, scores, (identities or {}).get(judge))
            for judge, scores in scores_by_judge.items()
        },
    }


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
    prompts: Mapping[str, Prompt],
    completions: Sequence[Completion],
    scores: Mapping[Key, Score],
    identity: str | None,
) -> dict[str, Any]:
    counted: list[tuple[str, Score]] = []
    by_category: dict[str, list[tuple[str, Score]]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    not_applicable = 0
    for completion in completions:
        score = scores.get((completion.id, completion.k))
        if score is None:
            raise UserError(
                f'benchmark {name}: judge "{judge}" has no line for id "{completion.id}", k {completion.k}. '
                "Run `safeserve score` again: it completes the file."
            )
        prompt = prompts[completion.id]
        unscored = why_unscored(judge, score)
        if unscored is None:
            counted.append((prompt.id, score))
            by_category[prompt.category].append((prompt.id, score))
        elif not applies(judge, prompt):
            not_applicable += 1
        else:
            reasons[unscored] += 1
    metrics = metrics_for(judge, label)
    return {
        "n": len(completions),
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
