"""The checks that one model's evaluation goes through before its numbers are believed; each returns what it found.

Every rule has fired on a published result. Rules about two sides together are in ``hygiene_pairs``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from safeserve.core.errors import SafeserveError
from safeserve.core.statistics import wilson
from safeserve.core.yaml_files import read_yaml
from safeserve.data.ngrams import similar, trigrams
from safeserve.evaluation.alignment import can_tell, misaligned
from safeserve.evaluation.findings import Finding, worst_first
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.evaluation.metrics import applies, metrics_for
from safeserve.judging.evidence import why_unscored
from safeserve.judging.quality import is_degenerate, is_empty, is_repetitive
from safeserve.judging.registry import GENERAL, family
from safeserve.judging.text import normalise, words

TRUNCATED = 0.10
LEAKED = 0.02
UNSCORED = 0.02
DEGENERATE = 0.05
SAME_ANSWER = 0.20
FEWEST = 10
"""Answers below which a share of them is no finding."""
NEAR_TRAINING = 0.5
"""Word 3-gram Jaccard from which two prompts are the same question (as in the filter before training)."""
REPEATED = 0.30
"""Share of an answer's word 4-grams that stood in it before, from which it goes round in circles. Of 3,055 answers of
capable models (XSTest's five, AlpacaEval's) 0.4 % do, of the paper's untuned I-CoNa answers 27 of 178."""
_TEMPLATE = re.compile(
    r"<\|[a-z_]+\|>|<</?SYS>>|\[/?INST\]|<(?:start|end)_of_turn>|^#{2,} ?(?:instruction|response|input)\b",
    re.IGNORECASE | re.MULTILINE,
)
_TEACHERS = ("reward", "rewards", "judge", "judges", "constraint", "guard")
"""Keys of a training stage that name a judge which taught the model."""


def check_side(
    side: EvalFolder, expected: Mapping[str, Sequence[str]] | None = None, training: Sequence[str] = ()
) -> list[Finding]:
    """All one-sided rules on one model's evaluation, the worst finding first.

    Args:
        expected: benchmark to its own prompts in their order, where known (H1).
        training: texts of the prompts that the model was trained on, where known (H11).
    """
    found: list[Finding] = []
    for name, part in side.benchmarks.items():
        where = f"{name}, {side.model}"
        found += alignment(part, where, (expected or {}).get(name, ()))
        found += truncation(part, where, inferred=name in side.meta.get("inferred", ()))
        found += template_leaks(part, where)
        found += impossible_rates(part, where, side.meta.get("benchmarks", {}).get(name, {}))
        found += repeated_answers(part, where)
        found += unscored(part, where)
        found += trained_on(part, where, training)
        found += degenerate_text(part, where)
        found += edges(part, where)
    return worst_first([*found, *taught_by_its_judge(side), *one_sided(side)])


def alignment(part: BenchmarkEval, where: str, expected: Sequence[str] = ()) -> Iterator[Finding]:
    """H1: answers that belong to other prompts, told from the texts."""
    keys = [key for key, completion in part.completions.items() if completion.text.strip()]
    if len(keys) != len(part.completions):
        expected = ()  # places in the file no longer count
    if not can_tell((prompt.text for prompt in part.prompts.values()), len(keys), expected):
        return  # and nothing more need be read
    texts = {prompt.id: prompt.text for prompt in part.prompts.values()}
    answers = [completion.text for completion in part.completions.values() if completion.text.strip()]
    found = misaligned([texts[prompt_id] for prompt_id, _ in keys], answers, expected)
    if found:
        ids = tuple(_name(keys[row]) for row in found.rows)
        count = f"{len(ids)} of {len(keys)} answers belong to other prompts"
        yield Finding("H1", "error", where, f"{count}: {found.how} ({_rows(found.rows)}).", ids)


def truncation(part: BenchmarkEval, where: str, inferred: bool = False) -> Iterator[Finding]:
    """H4: answers cut off at the length limit, so that what came next was judged by nobody."""
    cut = [key for key, completion in part.completions.items() if completion.finish_reason == "length"]
    if _share_exceeds(cut, part, TRUNCATED):
        told = "end mid-sentence near the length of the longest" if inferred else "are cut off at the length limit"
        yield Finding("H4", "warning", where, f"{_of(cut, part)} answers {told}; the rest was not judged.", _names(cut))


def template_leaks(part: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H5: control tokens or headings of a prompt template stand in the answers."""
    leaks = [key for key, completion in part.completions.items() if _TEMPLATE.search(completion.text)]
    if _share_exceeds(leaks, part, LEAKED):
        why = "the template it was asked in is probably not the one it was trained in"
        yield Finding(
            "H5", "warning", where, f"{_of(leaks, part)} answers hold template markers; {why}.", _names(leaks)
        )


def taught_by_its_judge(side: EvalFolder) -> Iterator[Finding]:
    """H6: every judge that could tell a harmful answer had a hand in training the model."""
    teachers = teachers_of(side)
    judges = sorted({judge for part in side.benchmarks.values() for judge in part.scores if family(judge) in GENERAL})
    if judges and all(judge in teachers or family(judge) in teachers for judge in judges):
        message = f"{', '.join(judges)} took part in training it and is its only judge; add one that did not."
        yield Finding("H6", "warning", side.model, message)


def teachers_of(side: EvalFolder) -> set[str]:
    """Judges that chose training data for this model or for one it started from, read from the run's recipe."""
    path = side.path.parent.parent / "recipe.yaml"
    try:
        tree = read_yaml(path) if side.path.parent.name == "evals" else None
    except SafeserveError:
        return set()
    stages = tree.get("train") if isinstance(tree, dict) else None
    found: set[str] = set()
    waiting, seen = [side.path.name], set[str]()
    while waiting and isinstance(stages, dict):
        name = waiting.pop()
        if name in seen or not isinstance(stage := stages.get(name), dict):
            continue
        seen.add(name)
        for key in _TEACHERS:
            value = stage.get(key)  # one name, a list, or names with weights
            found.update(str(one) for one in (value if isinstance(value, list | dict) else [value]) if one)
        pairs = str(stage.get("pairs"))
        if pairs == "starter/pairs":  # built from own samples, which the refusal rules sort
            found.add("refusal")
        waiting += [str(stage.get("start", "base")), pairs.removeprefix("raft:")]  # raft:NAME, picked in that stage
    return found | ({"modes"} if "guard" in found else set())  # it reads harmful answers with that guard


def impossible_rates(part: BenchmarkEval, where: str, recorded: Mapping[str, Any]) -> Iterator[Finding]:
    """H7: a recorded rate that is no count over its n, or not what the scores beside it come to."""
    for judge, judged in recorded.get("judges", {}).items():
        counted, found = _hits(part, judge)
        for metric in metrics_for(judge, part.label):
            cell = judged.get("metrics", {}).get(metric.name, {})
            if metric.is_mean or cell.get("rate") is None:
                continue
            rate, n, hits = cell["rate"], cell.get("n", 0), found[metric.name]
            if not n or is_impossible(100 * rate, n, 6):
                message = f"{judge}, {metric.name}: {100 * rate:g} % of {n} is no whole number of answers."
                yield Finding("H7", "error", where, message)
            elif counted and (n != counted or round(rate * n) != hits):
                message = f"{judge}, {metric.name}: recorded {round(rate * n)} of {n}, but the scores hold {hits} of "
                yield Finding("H7", "error", where, f"{message}{counted}. Run `safeserve score` again.")


def _hits(part: BenchmarkEval, judge: str) -> tuple[int, Counter[str]]:
    """How many answers a judge has scored, and for how many of them each of its shares holds."""
    shares = [metric for metric in metrics_for(judge, part.label) if not metric.is_mean]
    counted, found = 0, Counter[str]()
    for score in part.scores.get(judge, {}).values():
        if why_unscored(judge, score) is None:
            counted += 1
            found.update(metric.name for metric in shares if metric.holds(score))
    return counted, found


def is_impossible(percent: float, n: int, decimals: int) -> bool:
    """Whether no count out of ``n``, rounded to ``decimals``, is this percentage (52.5 % of 100 is impossible)."""
    nearest = round(percent * n / 100)
    half = 0.5 * 10**-decimals + 1e-9  # a table may round up or cut a half
    return not any(abs(100 * k / n - percent) <= half for k in (nearest - 1, nearest, nearest + 1) if 0 <= k <= n)


def repeated_answers(part: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H8: one text answers many prompts, or a prompt and its answer stand in the set twice."""
    said: dict[bytes, list[Key]] = defaultdict(list)  # by digest: the texts need not be held
    for key, completion in part.completions.items():
        if text := " ".join(completion.text.split()):
            said[hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()].append(key)
    keys = max(said.values(), key=lambda found: len({i for i, _ in found}), default=[])
    prompts = {prompt_id for prompt_id, _ in keys}
    if len(part.prompts) >= FEWEST and len(prompts) > SAME_ANSWER * len(part.prompts):
        text = " ".join(part.completions[keys[0]].text.split())
        shown = text if len(text) <= 60 else text[:57] + "..."
        message = f'{len(prompts)} of {len(part.prompts)} prompts got one and the same answer ("{shown}").'
        yield Finding("H8", "warning", where, message, _names(keys))
    twice = [key for keys in said.values() for key, n in Counter(i for i, _ in keys).items() if n > 1]
    if twice and part.completions:
        message = f"{len(twice)} prompts have the same answer twice: doubled rows, or samples drawn without chance."
        yield Finding("H8", "note", where, message, tuple(twice))


def unscored(part: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H9: too many answers that a judge could not score; what is missing is seldom missing by chance."""
    for judge, scores in part.scores.items():
        meant = {prompt.id for prompt in part.prompts.values() if applies(judge, prompt)}
        missing = {key: "no line" for key in part.completions if key not in scores and key[0] in meant}
        for key, score in scores.items():
            if key[0] in meant and (why := why_unscored(judge, score)) is not None:
                missing[key] = why
        wanted = sum(prompt_id in meant for prompt_id, _ in part.completions)
        if missing and len(missing) > UNSCORED * wanted:
            why, _ = Counter(missing.values()).most_common(1)[0]
            message = f"{judge} left {len(missing)} of {wanted} answers unscored (mostly: {why})."
            yield Finding("H9", "warning", where, message, _names(key for key in part.completions if key in missing))


def trained_on(part: BenchmarkEval, where: str, training: Sequence[str]) -> Iterator[Finding]:
    """H11: prompts that the model was trained on, word for word or nearly."""
    if not training:
        return
    prompts = list(part.prompts.values())
    near = similar([trigrams(p.text) for p in prompts], [trigrams(text) for text in training], NEAR_TRAINING)
    rows = sorted({row for row, _, _ in near})
    if rows:
        ids = tuple(prompts[row].id for row in rows)
        message = f"{len(ids)} of {len(prompts)} prompts are near a training prompt; it may have learnt the answer."
        yield Finding("H11", "error", where, message, ids)


def one_sided(side: EvalFolder) -> Iterator[Finding]:
    """H12: safety without the price of it, or the other way round."""
    labels = {part.label for part in side.benchmarks.values()}
    if labels == {"harmful"}:
        yield Finding("H12", "warning", side.model, "only harmful prompts: a model that refuses everything does best.")
    elif labels == {"benign"}:
        yield Finding("H12", "warning", side.model, "only benign prompts: nothing is said about safety.")


def degenerate_text(part: BenchmarkEval, where: str) -> Iterator[Finding]:
    """H13: loops, letter salad and empty answers. They count as safe without being good."""
    broken = [key for key, one in part.completions.items() if one.finish_reason != "error" and _is_broken(one.text)]
    if _share_exceeds(broken, part, DEGENERATE):
        yield Finding(
            "H13",
            "warning",
            where,
            f"{_of(broken, part)} answers are empty, go round in circles or are no language.",
            _names(broken),
        )


def edges(part: BenchmarkEval, where: str) -> Iterator[Finding]:
    """A rate whose interval reaches 0 or 100 %: the suite is too hard or too easy to tell models apart."""
    for judge in part.scores:
        counted, found = _hits(part, judge)
        for metric in metrics_for(judge, part.label):
            if metric.name not in ("safe_rate", "accuracy") or counted < FEWEST:
                continue
            interval = wilson(found[metric.name], counted)
            if interval.low <= 0.0 or interval.high >= 1.0:
                side = "0" if interval.low <= 0.0 else "100"
                message = f"{judge}, {metric.name}: {found[metric.name]} of {counted}, the interval reaches {side} %."
                yield Finding("edge", "note", where, message)


@lru_cache(maxsize=50_000)  # a comparison and a verdict read the same answers again
def _is_broken(text: str) -> bool:
    return is_empty(text) or is_degenerate(text) or is_repetitive(text) or repeats_itself(text)


def repeats_itself(text: str) -> bool:
    """Whether an answer of 40 words or more says 3 in 10 of its word 4-grams again."""
    said = words(normalise(text))
    grams = list(zip(said, said[1:], said[2:], said[3:], strict=False))
    return len(said) >= 40 and len(set(grams)) < (1 - REPEATED) * len(grams)


def _share_exceeds(keys: Sequence[Key], part: BenchmarkEval, ceiling: float) -> bool:
    return len(part.completions) >= FEWEST and len(keys) > ceiling * len(part.completions)


def _of(keys: Sequence[Key], part: BenchmarkEval) -> str:
    total = len(part.completions)
    return f"{len(keys)} of {total} ({100 * len(keys) / total:.0f} %)"


def _rows(rows: Sequence[int]) -> str:
    if len(rows) == rows[-1] - rows[0] + 1:
        return f"rows {rows[0] + 1} to {rows[-1] + 1}"
    return f"rows {rows[0] + 1}, {rows[1] + 1}, ... {rows[-1] + 1}"


def _name(key: Key) -> str:
    return f"{key[0]}#{key[1]}" if key[1] else key[0]


def _names(keys: Iterable[Key]) -> tuple[str, ...]:
    return tuple(map(_name, keys))
