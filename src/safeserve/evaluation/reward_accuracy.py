"""Accuracy of a reward model (or of another judge with a direction) on pairs, by subset, as RewardBench reports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.pair_accuracy import accuracy
from safeserve.data.ngrams import normalised
from safeserve.data.reading import file_format, read_rows
from safeserve.data.records import PreferencePair, Prompt
from safeserve.data.rows import Prefer
from safeserve.data.sources import guess_holds, load_pairs
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Judge
from safeserve.judging.registry import KINDS, LOWER_IS_BETTER, family, make_judge

RANKING = ("guard", "reward")
"""Families whose scores rank answers by quality."""
WITHOUT_SUBSET = "(none)"


def holds_pairs(target: str, mapping: Mapping[str, str]) -> bool:
    """Whether ``target`` is a file of preference pairs."""
    path = Path(target)
    return path.is_file() and bool(file_format(path)) and guess_holds(path, mapping) == "pairs"


def reward_accuracy(
    path: Path, judge_spec: str, mapping: Mapping[str, str] | None = None, prefer: Prefer = "auto"
) -> dict[str, Any]:
    """Score both answers of every pair and count how often the chosen one has the better score.

    An accuracy in the sense of RewardBench (Lambert et al. 2024, arXiv 2403.13787): a tie is wrong; each prompt of a
    subset counts once. Pairs with an answer that the judge cannot score are counted apart, never as right or wrong.

    Args:
        path: a file of pairs; its column ``subset`` (or ``category``) names their subsets.
        mapping: our field to the file's column.
        prefer: which published preference counts where there are two.

    Returns:
        ``judge``, ``identity``, ``file``, ``n``, ``n_scored``, ``unscored_reasons``, ``ties``, ``unusable_rows``,
        ``all`` (``n``, ``accuracy``, ``ci95``), ``subsets`` (the same by name) and ``mean_of_subsets``; JSON.

    Raises:
        UserError: no pairs, or a judge whose scores rank nothing.
        EvidenceError: no pair could be scored.
    """
    mapping = dict(mapping or {})
    columns = read_rows(path)[0].values
    if "subset" in columns and "category" not in mapping:
        mapping["category"] = "subset"
    loaded = load_pairs(path, map=mapping, prefer=prefer)
    judge = make_judge(judge_spec)
    scores = _scores(judge, loaded.rows)
    reasons = Counter(score for score in scores if isinstance(score, str))
    scored = [(pair, found) for pair, found in zip(loaded.rows, scores, strict=True) if not isinstance(found, str)]
    if not scored:
        raise EvidenceError(
            f"{path}: none of {len(scores)} pairs could be scored; most often: {reasons.most_common(1)[0][0]}."
        )
    sign = -1.0 if family(judge.name) in LOWER_IS_BETTER else 1.0
    rows = [
        (pair.category or WITHOUT_SUBSET, _group(pair), sign * chosen > sign * rejected)
        for pair, (chosen, rejected) in scored
    ]
    subsets = {name: _accuracy([row for row in rows if row[0] == name]) for name in sorted({row[0] for row in rows})}
    return {
        "judge": judge.name,
        "identity": judge.identity,
        "file": str(path),
        "data": loaded.identity,
        "n": len(scores),
        "n_scored": len(scored),
        "unscored_reasons": dict(sorted(reasons.items())),
        "unusable_rows": [str(problem) for problem in loaded.problems],
        "left_out": loaded.excluded,
        "ties": sum(chosen == rejected for _, (chosen, rejected) in scored),
        "all": _accuracy(rows),
        "subsets": subsets,
        "mean_of_subsets": sum(part["accuracy"] for part in subsets.values()) / len(subsets),
    }


def _scores(judge: Judge, pairs: Sequence[PreferencePair]) -> list[tuple[float, float] | str]:
    """Scores of (chosen, rejected) of each pair, or why one of them has none."""
    group = family(judge.name)
    if group in KINDS and group not in RANKING:
        raise UserError(
            f"judge {judge.name}: its scores do not rank answers by quality. "
            f"Use one of {', '.join(RANKING)}, or your own (module:object, higher is better)."
        )
    items = [
        (Prompt(pair.id, pair.messages, "benign", pair.category), Completion(pair.id, answer, (), "stop", None))
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    scores = judge.score(items)
    found: list[tuple[float, float] | str] = []
    for chosen, rejected in zip(scores[::2], scores[1::2], strict=True):
        if chosen.value is None or rejected.value is None:
            found.append(str(chosen.reason or rejected.reason))
        else:
            found.append((chosen.value, rejected.value))
    return found


def _accuracy(rows: Sequence[tuple[str, str, bool]]) -> dict[str, Any]:
    return accuracy([right for _, _, right in rows], [group for _, group, _ in rows])


def _group(pair: PreferencePair) -> str:
    return normalised(" ".join(message["content"] for message in pair.messages)) or pair.id
