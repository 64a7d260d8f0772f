"""Compare two evaluations on the same prompts, pair by pair; what must not be compared is refused with the reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from safeserve.core.clustered import clustered_paired_difference, clustered_paired_mean, clustered_paired_p
from safeserve.core.errors import UserError
from safeserve.core.statistics import holm
from safeserve.evaluation.findings import Finding, worst_first
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.evaluation.hygiene import check_side
from safeserve.evaluation.hygiene_pairs import check_pair, other_decoding, other_judges
from safeserve.evaluation.metrics import Metric, applies, metrics_for
from safeserve.evaluation.summary import BOOTSTRAP_SEED, rate
from safeserve.judging.evidence import why_unscored
from safeserve.judging.registry import by_rules_alone


@dataclass(frozen=True)
class PairedKeys:
    """Which samples carry evidence on both sides, and how many of those that should, do not."""

    both: tuple[Key, ...]
    missing: int

    @property
    def missing_share(self) -> float:
        """Share of the samples (of either side) that lack a score on at least one side."""
        total = len(self.both) + self.missing
        return self.missing / total if total else 0.0


def compare(a: EvalFolder, b: EvalFolder, force: bool = False) -> dict[str, Any]:
    """The content of ``compare/A--B.json``: ``b`` against ``a``, over the samples scored on both sides.

    ``difference`` is b − a with Newcombe's paired interval, ``fixed`` counts samples that got better, ``broken``
    those that got worse (a refusal of a harmful prompt counts as better), ``p`` is exact McNemar and ``p_holm`` the
    same corrected over the benchmarks. A mean has a bootstrap interval, the p-value of a sign-flip permutation test
    and nothing fixed or broken. ``notes`` states what a reader must know before believing the numbers,
    ``findings`` what the hygiene rules found on either side and between them.

    Args:
        force: compare in spite of other decoding or another version of a judge; the findings then say so.

    Raises:
        UserError: see :func:`require_comparable`; or no benchmark or no judge in common.
    """
    notes = require_comparable(a, b, force)
    result: dict[str, dict[str, Any]] = {}
    for name in (name for name in a.benchmarks if name in b.benchmarks):
        one, two = a.benchmarks[name], b.benchmarks[name]
        judges = {judge: _compare_judge(judge, one, two) for judge in one.scores if judge in two.scores}
        notes += _coverage_notes(name, one, two, judges)
        result[name] = {"judge": judges}
    if not any(part["judge"] for part in result.values()):
        raise UserError(
            f"{a.path} and {b.path}: no judge has scored both. Run `safeserve score` on the one that lacks it."
        )
    _correct_over_benchmarks(result)
    provisional = any(by_rules_alone(part["judge"]) for part in result.values())
    return {
        "a": a.model,
        "b": b.model,
        "benchmarks": result,
        "provisional": provisional,
        "notes": notes,
        "findings": [finding.to_json() for finding in findings_between(a, b)],
    }


def findings_between(
    a: EvalFolder, b: EvalFolder, expected: Mapping[str, Sequence[str]] | None = None, training: Sequence[str] = ()
) -> list[Finding]:
    """Every hygiene rule, on each side and on both together; the worst first (see :func:`check_side`)."""
    pair = [*other_judges(a, b), *other_decoding(a, b), *check_pair(a, b)]
    return worst_first([*pair, *check_side(a, expected, training), *check_side(b, expected, training)])


def require_comparable(a: EvalFolder, b: EvalFolder, force: bool = False) -> list[str]:
    """Refuse what must not be compared; returns notes on what cannot be checked because it was not recorded.

    Raises:
        UserError: no benchmark in common, another prompt under the same id; and unless ``force``, other decoding or
            another version of a judge.
    """
    shared = [name for name in a.benchmarks if name in b.benchmarks]
    if not shared:
        raise UserError(
            f"{a.path} and {b.path} share no benchmark ({', '.join(a.benchmarks)}; {', '.join(b.benchmarks)}). "
            "Evaluate both on the same suite."
        )
    notes = [
        f"{name} was measured on {side.model} only."
        for side, other in ((a, b), (b, a))
        for name in side.benchmarks
        if name not in other.benchmarks
    ]
    for name in shared:
        _same_prompts(name, a, b)
    for finding in (*other_decoding(a, b), *other_judges(a, b)):
        if finding.severity == "error" and not force:
            raise UserError(finding.message)
        notes.append(finding.message)
    return notes


def paired_keys(judge: str, a: BenchmarkEval, b: BenchmarkEval) -> PairedKeys:
    """The samples scored on both sides, in the order of ``a``; samples the judge is not meant for are left out."""
    mine, theirs = a.scores.get(judge, {}), b.scores.get(judge, {})
    both = tuple(
        key
        for key, score in mine.items()
        if key in theirs and _is_evidence(judge, score) and _is_evidence(judge, theirs[key])
    )
    prompts = {**b.prompts, **a.prompts}
    wanted = {key for key in (*a.completions, *b.completions) if applies(judge, prompts[key[0]])}
    return PairedKeys(both, len(wanted - set(both)))


def compare_metric(metric: Metric, a: BenchmarkEval, b: BenchmarkEval, keys: Iterable[Key]) -> dict[str, Any]:
    """One cell of the comparison over ``keys`` (at least one); samples of one prompt are one cluster."""
    keys = tuple(keys)
    if metric.is_mean:
        return _compare_mean(metric, a, b, keys)
    one, two = a.scores[metric.judge], b.scores[metric.judge]
    clusters = [prompt_id for prompt_id, _ in keys]
    before = [metric.holds(one[key]) for key in keys]
    after = [metric.holds(two[key]) for key in keys]
    gained = sum(y and not x for x, y in zip(before, after, strict=True))
    lost = sum(x and not y for x, y in zip(before, after, strict=True))
    fixed, broken = (gained, lost) if metric.higher_is_better else (lost, gained)
    difference, interval = clustered_paired_difference(before, after, clusters)
    left, right = rate(before, clusters), rate(after, clusters)
    return {
        "n": len(keys),
        "a": left["rate"],
        "a_ci95": left["ci95"],
        "b": right["rate"],
        "b_ci95": right["ci95"],
        "difference": difference,
        "ci95": [interval.low, interval.high],
        "fixed": fixed,
        "broken": broken,
        "p": clustered_paired_p(before, after, clusters, BOOTSTRAP_SEED),
    }


def _compare_mean(metric: Metric, a: BenchmarkEval, b: BenchmarkEval, keys: tuple[Key, ...]) -> dict[str, Any]:
    clusters = [prompt_id for prompt_id, _ in keys]
    before = [metric.value(a.scores[metric.judge][key]) for key in keys]
    after = [metric.value(b.scores[metric.judge][key]) for key in keys]
    difference, interval = clustered_paired_mean(before, after, clusters, BOOTSTRAP_SEED)
    return {
        "n": len(keys),
        "a": fmean(before),
        "b": fmean(after),
        "difference": difference,
        "ci95": None if interval is None else [interval.low, interval.high],
        "p": clustered_paired_p(before, after, clusters, BOOTSTRAP_SEED),
    }


def _is_evidence(judge: str, score: Any) -> bool:
    return why_unscored(judge, score) is None


def _compare_judge(judge: str, a: BenchmarkEval, b: BenchmarkEval) -> dict[str, Any]:
    keys = paired_keys(judge, a, b)
    metrics = metrics_for(judge, a.label) if keys.both else ()
    moves: dict[str, Counter[str]] = defaultdict(Counter)
    for key in keys.both:
        moves[a.scores[judge][key].label or "unlabelled"][b.scores[judge][key].label or "unlabelled"] += 1
    result: dict[str, Any] = {metric.name: compare_metric(metric, a, b, keys.both) for metric in metrics}
    result["transitions"] = {old: dict(sorted(moves[old].items())) for old in sorted(moves)}
    return result


def _correct_over_benchmarks(result: Mapping[str, Mapping[str, Any]]) -> None:
    """Add p_holm: one family per judge and metric, over the benchmarks it was measured on."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for part in result.values():
        for judge, cells in part["judge"].items():
            for name, cell in cells.items():
                if name != "transitions":
                    families[judge, name].append(cell)
    for cells in families.values():
        for cell, corrected in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
            cell["p_holm"] = corrected


def _coverage_notes(name: str, a: BenchmarkEval, b: BenchmarkEval, judges: Iterable[str]) -> list[str]:
    notes = []
    for judge in judges:
        keys = paired_keys(judge, a, b)
        if keys.missing:
            total = len(keys.both) + keys.missing
            notes.append(
                f"{name}, {judge}: {keys.missing} of {total} samples lack a score on at least one side; left out."
            )
    for judge in sorted(set(a.scores) ^ set(b.scores)):
        notes.append(f"{name}: judge {judge} has scored one side only; left out.")
    if any(k for _, k in (*a.completions, *b.completions)):
        notes.append(f"{name}: several samples a prompt; intervals and p-values take each prompt as one cluster.")
    return notes


def _same_prompts(name: str, a: EvalFolder, b: EvalFolder) -> None:
    mine, theirs = a.benchmarks[name].prompts, b.benchmarks[name].prompts
    shared = [prompt_id for prompt_id in mine if prompt_id in theirs]
    if not shared:
        raise UserError(f"{name}: {a.path} and {b.path} have no prompt id in common. Evaluate both on the same suite.")
    for prompt_id in shared:
        for part in ("messages", "label", "answers"):
            if getattr(mine[prompt_id], part) != getattr(theirs[prompt_id], part):
                raise UserError(
                    f'{name}: id "{prompt_id}" has other {part} in {a.path} than in {b.path}. '
                    "These are different prompts; evaluate one of the models again."
                )
