"""The verdict: pass, fail or no verdict, decided on interval bounds. What could not be measured is never called safe.

Order of precedence: a rule that fails settles the matter (fail, exit 1) even where another rule lacks evidence,
because more evidence for the other could not save the model; else missing evidence means no verdict (exit 4); only
when every rule holds is the outcome a pass (exit 0). Within one rule a score that is not finite fails it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from safeserve.core.clustered import clustered_paired_difference, clustered_paired_mean
from safeserve.core.errors import EXIT_EVIDENCE, EXIT_GATE_FAILED, EXIT_OK, UserError, did_you_mean
from safeserve.evaluation.compare import findings_between, paired_keys, require_comparable
from safeserve.evaluation.findings import Finding
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder
from safeserve.evaluation.hygiene import check_side
from safeserve.evaluation.metrics import PROVISIONAL, Metric, applies, find_metric
from safeserve.evaluation.policy import ALL, Policy, Rule, load_policy, parse_policy
from safeserve.evaluation.summary import BOOTSTRAP_SEED, corrected, measure
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score
from safeserve.judging.registry import family

__all__ = ["Policy", "Rule", "RuleResult", "Verdict", "decide", "load_policy", "parse_policy"]

Outcome = Literal["pass", "fail", "no_verdict"]
EXIT_CODES: Mapping[Outcome, int] = {"pass": EXIT_OK, "fail": EXIT_GATE_FAILED, "no_verdict": EXIT_EVIDENCE}


class Observation(NamedTuple):
    """One score that is evidence; samples of one prompt share a cluster."""

    cluster: str
    score: Score


@dataclass(frozen=True)
class RuleResult:
    """One rule's outcome. ``value`` is the rate or difference, ``bound`` the interval bound that decides."""

    rule: str
    outcome: Outcome
    value: float | None
    bound: float | None
    limit: float
    n: int
    why: str
    skipped: bool = False
    """Not applied, because no second model was given."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a policy over all its rules; ``reasons`` says it in words, the deciding ones first."""

    outcome: Outcome
    policy: Policy
    candidate: str
    against: str | None
    provisional: bool
    rules: tuple[RuleResult, ...]
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 4 no verdict."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The content of verdict.json."""
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "policy": self.policy.model_dump(mode="json", exclude_none=True),
            "candidate": self.candidate,
            "against": self.against,
            "provisional": self.provisional,
            "rules": [asdict(rule) for rule in self.rules],
            "reasons": list(self.reasons),
            "findings": [finding.to_json() for finding in self.findings],
        }


def decide(candidate: EvalFolder, against: EvalFolder | None, policy: Policy) -> Verdict:
    """Judge ``candidate`` by ``policy``; ``against`` is what paired rules compare it with.

    Where hygiene finds an error (answers that belong to other prompts, say), a pass becomes no verdict.

    Raises:
        UserError: the two sides must not be compared, or a metric is asked of the wrong kind of prompts.
    """
    paired = any(rule.paired for rule in policy.rules)
    notes = require_comparable(against, candidate) if paired and against else []
    if any(k for part in candidate.benchmarks.values() for _, k in part.completions):
        notes.append("Several samples a prompt: intervals take each prompt as one cluster.")
    findings = findings_between(against, candidate) if paired and against else check_side(candidate)
    results = tuple(_decide_rule(rule, candidate, against, policy) for rule in policy.rules)
    outcomes = {result.outcome for result in results}
    outcome: Outcome = "fail" if "fail" in outcomes else "no_verdict" if "no_verdict" in outcomes else "pass"
    errors = [finding.text for finding in findings if finding.severity == "error"]
    if outcome == "pass" and errors:
        outcome = "no_verdict"
    deciding = [f"{result.rule}: {result.why}" for result in results if result.outcome == outcome]
    others = [f"{result.rule}: {result.why}" for result in results if result.outcome not in (outcome, "pass")]
    warnings = [one.text for one in findings if one.severity == "warning"]
    provisional = any(rule.metric == "safe_rate" and family(rule.judge) == "refusal" for rule in policy.rules)
    return Verdict(
        outcome=outcome,
        policy=policy,
        candidate=candidate.model,
        against=against.model if against else None,
        provisional=provisional,
        rules=results,
        reasons=(*deciding, *others, *errors, *notes, *warnings, *((PROVISIONAL,) if provisional else ())),
        findings=tuple(findings),
    )


def _decide_rule(rule: Rule, candidate: EvalFolder, against: EvalFolder | None, policy: Policy) -> RuleResult:
    metric = find_metric(rule.judge, rule.metric, f"policy {policy.name}")

    def result(
        outcome: Outcome, why: str, n: int = 0, value: float | None = None, bound: float | None = None
    ) -> RuleResult:
        return RuleResult(rule.text, outcome, value, bound, rule.limit, n, why)

    if rule.paired and against is None:
        why = "needs a model to compare with; none was given."
        return RuleResult(rule.text, "no_verdict", None, None, rule.limit, 0, why, skipped=True)
    sides = [candidate, against] if rule.paired and against else [candidate]
    names = _benchmarks(rule, metric, sides)
    if not names:
        return result("no_verdict", "no benchmark of this kind was evaluated.")
    absent = [
        f"{name} on {side.model}"
        for side in sides
        for name in names
        if name not in side.benchmarks or rule.judge not in side.benchmarks[name].scores
    ]
    if absent:
        known = {name for side in sides for name in side.benchmarks}
        if unknown := [name for name in names if name not in known]:
            return result("no_verdict", f'"{unknown[0]}" was not evaluated.{did_you_mean(unknown[0], known)}')
        return result("no_verdict", f"judge {rule.judge} has not scored {', '.join(absent)}.")
    broken = [
        f"{name} on {side.model}" for side in sides for name in names if _has_non_finite(rule, side.benchmarks[name])
    ]
    if broken or not math.isfinite(rule.limit):
        what = f"a score of {broken[0]} is" if broken else "the limit is"
        return result("fail", f"{what} not a finite number; that fails on principle.")

    before: list[Observation] = []
    if rule.paired and against:
        pairs = {name: (against.benchmarks[name], candidate.benchmarks[name]) for name in names}
        before, after, missing = _paired(metric, pairs)
    else:
        after, missing = _single(metric, {name: candidate.benchmarks[name] for name in names})
    n, total, prompts = len(after), len(after) + missing, len({cluster for cluster, _ in after})
    if n == 0:
        return result("no_verdict", "nothing was scored.")
    value, bound, shown = _measure(rule, metric, before, after, candidate.judge_identities.get(rule.judge))
    if missing / total > policy.max_unscored:
        share = f"{missing} of {total} samples are unscored ({100 * missing / total:.1f} %)"
        why = f"{share}; the policy allows {100 * policy.max_unscored:g} %."
        return result("no_verdict", why, n, value, bound)
    if prompts < policy.min_prompts:
        return result(
            "no_verdict", f"{prompts} scored prompts; the policy needs {policy.min_prompts}.", n, value, bound
        )
    if value is None or bound is None:
        return result("no_verdict", shown, n, value, bound)
    holds = {
        "at_least": bound >= rule.limit,
        "at_most": bound <= rule.limit,
        "max_loss": bound >= -rule.limit,
        "max_gain": bound <= rule.limit,
    }[rule.kind]
    return result("pass" if holds else "fail", shown, n, value, bound)


def _benchmarks(rule: Rule, metric: Metric, sides: Sequence[EvalFolder]) -> list[str]:
    """The benchmarks a rule is about; "all" takes those of either side, so that leaving one out is noticed."""
    if rule.benchmark == ALL:
        # dict.fromkeys: unique, in order
        return list(dict.fromkeys(n for side in sides for n, part in side.benchmarks.items() if _fits(metric, part)))
    for side in sides:
        part = side.benchmarks.get(rule.benchmark)
        if part is not None and part.label not in metric.labels:
            raise UserError(
                f"rule '{rule.text}': {metric.name} is measured on {' and '.join(metric.labels)} prompts, but "
                f"{rule.benchmark} holds {part.label} ones. Name another benchmark or metric in the policy."
            )
    return [rule.benchmark]


def _fits(metric: Metric, part: BenchmarkEval) -> bool:
    return part.label in metric.labels and any(applies(metric.judge, prompt) for prompt in part.prompts.values())


def _has_non_finite(rule: Rule, part: BenchmarkEval) -> bool:
    return any(s.value is not None and not math.isfinite(s.value) for s in part.scores[rule.judge].values())


def _single(metric: Metric, parts: Mapping[str, BenchmarkEval]) -> tuple[list[Observation], int]:
    """(observations, samples that should have one but do not), over the benchmarks."""
    observed: list[Observation] = []
    missing = 0
    for name, part in parts.items():
        scores = part.scores[metric.judge]
        for key in part.completions:
            score = scores.get(key)
            if score is not None and why_unscored(metric.judge, score) is None:
                observed.append(Observation(f"{name} {key[0]}", score))
            elif applies(metric.judge, part.prompts[key[0]]):
                missing += 1
    return observed, missing


def _paired(
    metric: Metric, parts: Mapping[str, tuple[BenchmarkEval, BenchmarkEval]]
) -> tuple[list[Observation], list[Observation], int]:
    """(before, after, samples without a pair), over the benchmarks."""
    before: list[Observation] = []
    after: list[Observation] = []
    missing = 0
    for name, (old, new) in parts.items():
        keys = paired_keys(metric.judge, old, new)
        before += [Observation(f"{name} {key[0]}", old.scores[metric.judge][key]) for key in keys.both]
        after += [Observation(f"{name} {key[0]}", new.scores[metric.judge][key]) for key in keys.both]
        missing += keys.missing
    return before, after, missing


def _measure(
    rule: Rule, metric: Metric, before: Sequence[Observation], after: Sequence[Observation], identity: str | None
) -> tuple[float | None, float | None, str]:
    """(value, deciding bound, both in words); a bound of None means that there is none, and the words say why."""
    if rule.paired:
        return _measure_difference(rule, metric, before, after)
    cell = measure(metric, after)
    name = "mean" if metric.is_mean else "rate"
    shown = "" if metric.is_mean else f"{cell['successes']} of {cell['n']}, "
    if rule.corrected:
        found = corrected(metric, after, identity).get("corrected")
        if found is None:
            remedy = f"`safeserve calibrate {rule.judge} --labels NAME --use`"
            return None, None, f"judge {rule.judge} has no calibration to correct its rate with. Run {remedy}."
        if found["rate"] is None:
            return None, None, f"the rate cannot be corrected: {found['reason']}."
        shown = f"{_number(metric, cell['rate'])} counted, "
        cell = found
    if cell["ci95"] is None:
        return cell[name], None, "too few prompts for an interval."
    low, high = cell["ci95"]
    bound, which = (low, "lower") if rule.kind == "at_least" else (high, "upper")
    shown += f"{_number(metric, cell[name])}{' corrected' if rule.corrected else ''}"
    limits = f"95 % interval {_number(metric, low, bare=True)} to {_number(metric, high, bare=True)}"
    demand = f"{rule.kind.replace('_', ' ')} {rule.limit if metric.is_mean else 100 * rule.limit:g}"
    return cell[name], bound, f"{shown}, {limits}; its {which} bound must be {demand}."


def _measure_difference(
    rule: Rule, metric: Metric, before: Sequence[Observation], after: Sequence[Observation]
) -> tuple[float | None, float | None, str]:
    clusters = [cluster for cluster, _ in after]
    old, new = ([metric.value(score) for _, score in side] for side in (before, after))
    if metric.is_mean:
        value, interval = clustered_paired_mean(old, new, clusters, BOOTSTRAP_SEED)
    else:
        value, interval = clustered_paired_difference([x > 0 for x in old], [x > 0 for x in new], clusters)
    if interval is None:
        return value, None, "too few prompts for an interval."
    n, scale, digits = len(after), 1 if metric.is_mean else 100, 3 if metric.is_mean else 1
    unit = "" if metric.is_mean else " points"
    bound, which = (interval.low, "lower") if rule.kind == "max_loss" else (interval.high, "upper")
    now = f"{_number(metric, sum(old) / n)} before, {_number(metric, sum(new) / n)} now (n = {n})"
    limits = f"95 % interval {scale * interval.low:+.{digits}f} to {scale * interval.high:+.{digits}f}"
    demand = f"at least {-scale * rule.limit:+g}" if rule.kind == "max_loss" else f"at most {scale * rule.limit:+g}"
    shown = f"{now}: difference {scale * value:+.{digits}f}{unit}, {limits}; its {which} bound must be {demand}."
    return value, bound, shown


def _number(metric: Metric, value: float, bare: bool = False) -> str:
    """A mean to three digits, a share in percent."""
    if metric.is_mean:
        return f"{value:.3g}"
    return f"{100 * value:.1f}{'' if bare else ' %'}"
