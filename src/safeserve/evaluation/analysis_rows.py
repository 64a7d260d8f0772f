"""What the analysis counts: one observation for each scored answer to a harmful prompt, and one row for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from safeserve.core.errors import EvidenceError, UserError, did_you_mean
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.evaluation.metrics import Metric, metrics_for
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score
from safeserve.judging.registry import mode_judge
from safeserve.judging.text import words

Row = TypeVar("Row")


@dataclass(frozen=True)
class Observation:
    """One scored answer to a harmful prompt.

    Attributes:
        mode: the judge's label.
        original: id of the prompt that this one rewrites; "" for a prompt of its own.
        rewriting: how it does; "" for a prompt of its own.
    """

    benchmark: str
    id: str
    k: int
    prompt: str
    category: str
    unsafe: bool
    mode: str
    response_words: int
    original: str = ""
    rewriting: str = ""

    @property
    def cluster(self) -> str:
        """What the samples of one prompt have in common."""
        return f"{self.benchmark}\x1f{self.id}"

    @property
    def name(self) -> str:
        """``ID``, or ``ID#K`` for a further sample."""
        return f"{self.id}#{self.k}" if self.k else self.id


@dataclass(frozen=True)
class PromptRow:
    """A prompt with what its answers came to; ``unsafe``: at least one of them is."""

    benchmark: str
    id: str
    text: str
    category: str
    unsafe: bool


def safety_metric(judge: str) -> Metric | None:
    """The judge's metric that says which answers are safe; None for a judge that cannot tell."""
    return next((metric for metric in metrics_for(judge, "harmful") if metric.name == "safe_rate"), None)


def choose_judge(sides: Sequence[EvalFolder], given: str | None = None) -> str:
    """The judge that decides what is unsafe: the one given, else that of the response modes, else the only one.

    Raises:
        EvidenceError: no harmful prompts, or no judge that could tell has scored them on every side.
        UserError: the one given has not, or several could and none gives response modes.
    """
    if not any(part.label == "harmful" for side in sides for part in side.benchmarks.values()):
        names = ", ".join(side.model for side in sides)
        raise EvidenceError(
            f"{names}: no harmful prompts, so nothing can be unsafe. Evaluate on a suite that has some."
        )
    found = [_judges(side) for side in sides]
    shared = [judge for judge in found[0] if all(judge in other for other in found)]
    if given is not None:
        if given not in shared:
            raise UserError(
                f"--judge {given}: has not scored the harmful prompts of every model.{did_you_mean(given, shared)} "
                f"Run `safeserve score RUN:MODEL --judge {given}` on those that lack it."
            )
        return given
    if not shared:
        raise EvidenceError(
            "No judge that tells safe from unsafe has scored the harmful prompts of every model. "
            "Run `safeserve score RUN:MODEL --judge modes` on those that lack it."
        )
    main = mode_judge(shared)
    if main is None and len(shared) > 1:
        raise UserError(f"Several judges could say what is unsafe: {', '.join(shared)}. Choose one with --judge.")
    return main or shared[0]


def _judges(side: EvalFolder) -> list[str]:
    scored = (judge for part in side.benchmarks.values() if part.label == "harmful" for judge in part.scores)
    return [judge for judge in dict.fromkeys(scored) if safety_metric(judge) is not None]


def observations(side: EvalFolder, judge: str) -> list[Observation]:
    """Every answer to a harmful prompt that the judge has scored, in file order; unscored ones are left out."""
    metric = safety_metric(judge)
    if metric is None:
        raise ValueError(f"{judge} does not tell safe from unsafe")
    return [
        _observation(name, part, key, score, not metric.holds(score))
        for name, part in side.benchmarks.items()
        if part.label == "harmful"
        for key, score in part.scores.get(judge, {}).items()
        if why_unscored(judge, score) is None
    ]


def unscored(side: EvalFolder, judge: str) -> int:
    """How many answers to harmful prompts the judge has not scored, on the benchmarks that it was used on."""
    return sum(
        why_unscored(judge, score) is not None
        for part in side.benchmarks.values()
        if part.label == "harmful"
        for score in part.scores.get(judge, {}).values()
    )


def own_prompts(rows: Sequence[Row], ids: Callable[[Row], tuple[str, str]]) -> list[Row]:
    """The rows without prompts that rewrite another one of them.

    A rewritten prompt is compared with its original only: beside it, it would be no prompt of its own.

    Args:
        ids: of a row: its prompt's id, and the id of the prompt that this one rewrites ("" where it is its own).
    """
    originals = {own for own, original in map(ids, rows) if not original}
    return [row for row in rows if ids(row)[1] not in originals]


def prompt_rows(rows: Iterable[Observation]) -> list[PromptRow]:
    """One row a prompt, in the order of the observations."""
    found: dict[str, PromptRow] = {}
    for row in rows:
        unsafe = row.unsafe or (row.cluster in found and found[row.cluster].unsafe)
        found[row.cluster] = PromptRow(row.benchmark, row.id, row.prompt, row.category, unsafe)
    return list(found.values())


def _observation(benchmark: str, part: BenchmarkEval, key: Key, score: Score, unsafe: bool) -> Observation:
    prompt = part.prompts[key[0]]
    return Observation(
        benchmark=benchmark,
        id=prompt.id,
        k=key[1],
        prompt=prompt.text,
        category=prompt.category,
        unsafe=unsafe,
        mode=score.label or "unlabelled",
        response_words=len(words(part.completions[key].text)),
        original=str(prompt.meta.get("original") or ""),
        rewriting=str(prompt.meta.get("rewriting") or ""),
    )
