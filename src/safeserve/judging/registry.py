"""Judges by name: a built-in one, ``module:object`` for your own, or a YAML file with ``kind`` and its options.

A judge's name is FAMILY or FAMILY-SUFFIX (``guard``, ``guard-llama``); the family decides which metrics its scores
support, so that two guards are counted alike and a file of scores says by its name what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.extensions import load_object
from safeserve.core.yaml_files import read_yaml
from safeserve.judging.judge import Judge

KINDS: dict[str, str] = {
    "refusal": "safeserve.judging.modes:RefusalJudge",
    "modes": "safeserve.judging.combined:ModesJudge",
    "guard": "safeserve.judging.guard:Guard",
    "short_answer": "safeserve.judging.reference_metrics:ShortAnswerJudge",
    "exact_match": "safeserve.judging.exact_match:ExactMatchJudge",
    "ifeval": "safeserve.judging.ifeval:IfevalJudge",
    "llama_guard": "safeserve.judging.hub_guards:LlamaGuard",
    "wildguard": "safeserve.judging.hub_guards:WildGuard",
    "shieldgemma": "safeserve.judging.hub_guards:ShieldGemma",
    "llm_guard": "safeserve.judging.llm:LlmGuard",
    "reward": "safeserve.judging.reward:RewardJudge",
    "perplexity": "safeserve.judging.perplexity:Perplexity",
    "bleu": "safeserve.judging.overlap:Bleu",
    "rouge_l": "safeserve.judging.overlap:RougeL",
    "bertscore": "safeserve.judging.overlap:BertScore",
    "claim_recall": "safeserve.judging.claims:ClaimRecall",
    "pairwise": "safeserve.judging.llm:PairwiseJudge",
}
"""Kind to ``module:class``; loaded when asked for, because some bring a model along."""

DEFAULT_JUDGES = ("modes", "short_answer")
"""Who judges unless a recipe or a command says otherwise; the first one's labels are response modes."""

GENERAL = frozenset({"refusal", "modes", "guard", "reward", "perplexity"})
"""Families that can judge any answer; the others only where a benchmark declares them."""

LOWER_IS_BETTER = {
    "guard": "P(unsafe)",
    "modes": "P(unsafe)",
    "refusal": "1 for unsafe compliance, else 0",
    "perplexity": "how unexpected an answer is",
}
"""Families whose better answers have the lower value, and what that value is; of all others higher is better, and of a
judge of one's own whose name is of none of these families."""

_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_.-]+)?")


def family(name: str) -> str:
    """The family of a judge's name: what stands before the first hyphen."""
    return name.partition("-")[0]


def mode_judge(names: Iterable[str]) -> str | None:
    """The judge whose labels are response modes, one with a guard before one by rules alone; None without any."""
    by_family = {family(name): name for name in reversed(list(names))}
    return by_family.get("modes") or by_family.get("refusal")


def by_rules_alone(names: Iterable[str]) -> bool:
    """Whether the response modes of these judges rest on rules that no guard has checked."""
    found = mode_judge(names)
    return found is not None and family(found) == "refusal"


def is_own(spec: str) -> bool:
    """Whether the judge is the user's own object."""
    return ":" in spec


def make_judge(spec: str) -> Judge:
    """A judge by name, ``module:object``, or a YAML file.

    Raises:
        UserError: no such judge, wrong options, or an object that does not keep the contract of one.
    """
    if spec.endswith((".yaml", ".yml")):
        return _from_file(Path(spec))
    if is_own(spec):
        return _own(spec)
    if spec not in KINDS:
        raise UserError(f'judge: unknown name "{spec}".{did_you_mean(spec, KINDS)}')
    return _make(spec, spec, {}, f"judge {spec}")


def _make(kind: str, name: str, options: dict[str, Any], where: str) -> Judge:
    cls = load_object(KINDS[kind])
    judge: Judge = cls(name, cls.Options.parse(options, where))
    return judge


def _from_file(path: Path) -> Judge:
    file = path.resolve()
    if file in _being_made:
        raise UserError(f"{path}: asks for itself, directly or by another judge's file. Name another judge in it.")
    _being_made.append(file)
    try:
        return _read_file(path)
    finally:
        _being_made.remove(file)


_being_made: list[Path] = []
"""Files of judges on the way: one may name another as its guard."""


def _read_file(path: Path) -> Judge:
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("kind"), str):
        raise UserError(f"{path}: a judge's file holds keys and values, among them kind ({', '.join(KINDS)}).")
    options = {str(key): value for key, value in tree.items()}
    kind = options.pop("kind")
    if kind not in KINDS:
        raise UserError(f'{path}: unknown kind "{kind}".{did_you_mean(kind, KINDS)}')
    group = load_object(KINDS[kind]).family
    name = str(options.pop("name", f"{group}-{path.stem}"))
    if not _NAME.fullmatch(name) or family(name) != group:
        raise UserError(f'{path}: name "{name}" must be {group} or {group}-SUFFIX of letters, digits, ., - and _.')
    return _make(kind, name, options, str(path))


def _own(spec: str) -> Judge:
    own = load_object(spec)
    if not callable(own):
        raise UserError(f"{spec}: is not a class. Name the judge's class; it is made without arguments.")
    judge: Judge = own()
    missing = [part for part in ("name", "identity", "score") if not hasattr(judge, part)]
    if missing:
        raise UserError(f"{spec}: a judge has name, identity and score; this one lacks {', '.join(missing)}.")
    if judge.name in KINDS or not re.fullmatch(r"[A-Za-z0-9_-]+", judge.name):
        raise UserError(
            f'{spec}: its name "{judge.name}" cannot name a file of scores. '
            f"Use letters, digits, - and _ (not {', '.join(KINDS)})."
        )
    return judge
