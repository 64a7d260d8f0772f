"""The checks on two evaluations together: are they about the same thing, and could they show a difference?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from safeserve.core.statistics import mcnemar_exact, min_detectable_difference
from safeserve.evaluation.findings import Finding, worst_first
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder
from safeserve.evaluation.metrics import metrics_for
from safeserve.judging.evidence import why_unscored

DRAW_ONLY = ("seed", "iteration")
"""Decide which random draw is seen, not how it is drawn: two seeds of one decoding may be compared."""
SAME_OUTPUTS = 0.9
WORTH_SEEING = 0.10
"""A difference that a comparison should be able to see."""
FEWEST = 10
_HEADLINE = ("safe_rate", "over_refusal_rate", "flagged_rate", "accuracy")


def check_pair(a: EvalFolder, b: EvalFolder) -> list[Finding]:
    """Rules about both sides that leave the comparison possible: H5, H8 and H10; the worst finding first."""
    found: list[Finding] = []
    for name in (name for name in a.benchmarks if name in b.benchmarks):
        where = f"{name}, {a.model} and {b.model}"
        one, two = a.benchmarks[name], b.benchmarks[name]
        found += [*prompt_lengths(one, two, where), *same_outputs(one, two, where), *low_power(one, two, where)]
    return worst_first(found)


def other_judges(a: EvalFolder, b: EvalFolder) -> Iterator[Finding]:
    """H2: a judge of another version on the one side (error), or of a version nobody recorded (note)."""
    shared = [name for name in a.benchmarks if name in b.benchmarks]
    used = sorted({j for name in shared for j in a.benchmarks[name].scores if j in b.benchmarks[name].scores})
    for judge in used:
        mine, theirs = a.judge_identities.get(judge), b.judge_identities.get(judge)
        if mine is None or theirs is None:
            message = f"The version of judge {judge} is not recorded on both sides, so it could not be checked."
            yield Finding("H2", "note", judge, message)
        elif mine != theirs:
            message = (
                f'judge "{judge}" was another version in {a.path} ({mine}) than in {b.path} ({theirs}). '
                "Run `safeserve score` on both with the same version."
            )
            yield Finding("H2", "error", judge, message)


def other_decoding(a: EvalFolder, b: EvalFolder) -> Iterator[Finding]:
    """H3: decoded differently (error), or not known how (note)."""
    sides = f"{a.model} and {b.model}"
    if a.sampling is None or b.sampling is None:
        unknown = " and ".join(side.model for side in (a, b) if side.sampling is None)
        message = f"How {unknown} was decoded is not recorded, so equal decoding could not be checked."
        yield Finding("H3", "note", sides, message)
    else:
        mine, theirs = dict(a.sampling), dict(b.sampling)
        changed = [
            f"{key} {mine.get(key)} and {theirs.get(key)}"
            for key in sorted({*mine, *theirs} - set(DRAW_ONLY))
            if mine.get(key) != theirs.get(key)
        ]
        if changed:
            message = (
                f"{a.path} and {b.path} were decoded differently ({'; '.join(changed)}). "
                "The difference would be of decoding, not of the model; evaluate one again with the other's settings."
            )
            yield Finding("H3", "error", sides, message)
    for name in (name for name in a.benchmarks if name in b.benchmarks):
        yield from _other_cap(name, a, b)


def _other_cap(name: str, a: EvalFolder, b: EvalFolder) -> Iterator[Finding]:
    """A benchmark may cap the answer's length itself, and the cap may change from one version to the next."""
    mine, theirs = (side.meta.get("benchmarks", {}).get(name, {}).get("max_new_tokens") for side in (a, b))
    if mine is not None and theirs is not None and mine != theirs:
        message = (
            f"{name}: answers of at most {mine} tokens in {a.path} and {theirs} in {b.path}. "
            "The difference would be of decoding, not of the model; evaluate one again."
        )
        yield Finding("H3", "error", name, message)


def prompt_lengths(a: BenchmarkEval, b: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H5: the same prompt became another number of tokens, by the same amount nearly everywhere.

    Another tokenizer makes prompts longer and shorter by turns; another template, or a doubled begin token, adds the
    same number to all of them.
    """
    gaps = [
        b.completions[key].prompt_tokens - completion.prompt_tokens
        for key, completion in a.completions.items()
        if key in b.completions and completion.prompt_tokens and b.completions[key].prompt_tokens
    ]
    if len(gaps) < FEWEST:
        return
    gap, times = Counter(gaps).most_common(1)[0]
    if gap and times >= 0.9 * len(gaps):
        cause = "a doubled or missing begin token" if abs(gap) == 1 else "another template or system prompt"
        message = f"{times} of {len(gaps)} prompts differ by exactly {abs(gap)} tokens: {cause}?"
        yield Finding("H5", "warning", where, message)


def same_outputs(a: BenchmarkEval, b: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H8: nearly all answers are the same on both sides, or all scores are although the answers are not."""
    keys = [key for key in a.completions if key in b.completions]
    equal = [key for key in keys if a.completions[key].text == b.completions[key].text]
    if len(keys) >= FEWEST and len(equal) >= SAME_OUTPUTS * len(keys):
        message = f"{len(equal)} of {len(keys)} answers are the same on both sides; is it the same model twice?"
        yield Finding("H8", "warning", where, message)
        return
    for judge in (judge for judge in a.scores if judge in b.scores):
        pairs = [(a.scores[judge][k].value, b.scores[judge][k].value) for k in keys if k not in equal]
        pairs = [pair for pair in pairs if None not in pair]
        # Two values only (a verdict) may well agree everywhere; real numbers do not.
        if len(pairs) >= FEWEST and len({x for x, _ in pairs}) > 2 and all(x == y for x, y in pairs):
            message = f"{judge} gives the same {len(pairs)} scores to different answers: were they copied?"
            yield Finding("H8", "error", where, message)


def low_power(a: BenchmarkEval, b: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H10: no difference was found, and one of ten points would probably not have been (80 % power, 5 % level).

    The share of prompts on which the two sides disagree is taken as observed, and as ten points at least.
    """
    for judge in (judge for judge in a.scores if judge in b.scores):
        for metric in (metric for metric in metrics_for(judge, a.label) if metric.name in _HEADLINE):
            one, two = a.scores[judge], b.scores[judge]
            keys = [k for k in one if k in two and not (why_unscored(judge, one[k]) or why_unscored(judge, two[k]))]
            if not keys:
                continue
            before, after = ([metric.holds(side[key]) for key in keys] for side in (one, two))
            gained = sum(y and not x for x, y in zip(before, after, strict=True))
            lost = sum(x and not y for x, y in zip(before, after, strict=True))
            if mcnemar_exact(gained, lost) < 0.05:
                continue
            n = len({prompt_id for prompt_id, _ in keys})
            seen = min_detectable_difference(n, max((gained + lost) / len(keys), WORTH_SEEING))
            if math.isnan(seen) or seen > WORTH_SEEING:
                least = "none" if math.isnan(seen) else f"{100 * seen:.0f} points"
                message = (
                    f"{judge}, {metric.name}: with {n} prompts the least difference found 4 times in 5 is {least}."
                )
                yield Finding("H10", "note", where, message)
