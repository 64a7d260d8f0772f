"""Accuracy of a reward model (or of another judge with a direction) on pairs, by subset, as RewardBench reports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from safeserve.core.errors import EvidenceError, UserError, did_you_mean
from safeserve.core.pair_accuracy import accuracy
from safeserve.data.ngrams import normalised
from safeserve.data.reading import file_format, read_rows
from safeserve.data.records import PreferencePair, Prompt
from safeserve.data.rows import Prefer
from safeserve.data.sources import guess_holds, load_pairs
from safeserve.generation.engine import Completion
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Judge
from safeserve.judging.registry import KINDS, LOWER_IS_BETTER, family, make_judge
from safeserve.judging.scoring import scores_of

RANKING = ("guard", "reward")
"""Families whose scores rank answers by quality."""
WITHOUT_SUBSET = "(none)"
PUBLISHED = ("better", "safer")
"""Preferences that a file can publish side by side, in the order in which auto takes them."""


def holds_pairs(target: str, mapping: Mapping[str, str]) -> bool:
    """Whether ``target`` is a file of preference pairs."""
    path = Path(target)
    return path.is_file() and bool(file_format(path)) and guess_holds(path, mapping) == "pairs"


def reward_accuracy(
    path: Path, judge_spec: str, mapping: Mapping[str, str] | None = None, prefer: str = "auto"
) -> dict[str, Any]:
    """Score both answers of every pair and count how often the chosen one has the better score.

    An accuracy in the sense of RewardBench (Lambert et al. 2024, arXiv 2403.13787): a tie is wrong. Every pair counts
    once; the intervals take the pairs of one prompt as one cluster. Pairs with an answer whose score is no evidence
    (none, not finite, an unknown label of a guard) are counted apart, never as right or wrong.

    Args:
        path: a file of pairs; its column ``subset`` (or ``category``) names their subsets.
        mapping: our field to the file's column.
        prefer: which published preference counts where there are two: better, safer, or auto (better where published,
            else safer).

    Returns:
        ``judge``, ``identity``, ``file``, ``preference`` (see :func:`_preference`), ``n``, ``n_scored``,
        ``unscored_reasons``, ``ties``, ``unusable_rows``, ``all`` (``n``, ``accuracy``, ``ci95``), ``subsets`` (the
        same by name) and ``mean_of_subsets``; JSON.

    Raises:
        UserError: no pairs, a judge whose scores rank nothing, or a preference that the file does not publish.
        EvidenceError: no pair could be scored.
    """
    mapping = dict(mapping or {})
    rows_read = read_rows(path)
    if "subset" in rows_read[0].values and "category" not in mapping:
        mapping["category"] = "subset"
    wanted = _wanted(path, prefer, {*mapping, *(column for row in rows_read for column in row.values)})
    loaded = load_pairs(path, map=mapping, prefer=wanted)
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
        "preference": _preference(loaded.rows, wanted),
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


def preference_note(result: Mapping[str, Any]) -> str | None:
    """Which preference an accuracy is about, in a sentence; None where the file publishes one only."""
    found = result["preference"]
    if len(found["published"]) < 2:
        return None
    (used, count), *others = found["used"].items()  # in the order in which auto takes them
    other = next(name for name in found["published"] if name != used)
    rest = "".join(f", {name} for the {n} without it" for name, n in others)
    return (
        f"Two preferences are published. Measured against: {used} ({count} pairs{rest}); --preference {other} "
        f"measures the other one, which orders {found['differ']} of {found['both']} pairs the other way round."
    )


def _wanted(path: Path, prefer: str, columns: Collection[str]) -> Prefer:
    """The preference asked for, if the file publishes it.

    Raises:
        UserError: an unknown word, or a preference that would be ignored or is not there.
    """
    match prefer:
        case "auto":
            return "auto"
        case "better" | "safer":
            published = [name for name in PUBLISHED if f"{name}_response_id" in columns]
            if prefer not in published:
                there = f"publishes {published[0]} only" if published else "has one order only, chosen above rejected"
                raise UserError(
                    f"{path}: --preference {prefer}: this file {there}. Leave it out, or name the column with "
                    f"--map {prefer}_response_id=COLUMN."
                )
            return "better" if prefer == "better" else "safer"
    raise UserError(f'--preference: unknown word "{prefer}".{did_you_mean(prefer, get_args(Prefer))}')


def _preference(pairs: Sequence[PreferencePair], asked: Prefer) -> dict[str, Any]:
    """``asked``; ``published`` by name; ``used``: name to pairs; ``both``: pairs that have two orders, and of these
    ``differ``: how many are ordered differently. Files of chosen and rejected answers publish none by name."""
    found = [{name: pair.meta.get(f"chosen_is_{name}") for name in PUBLISHED} for pair in pairs]
    used = Counter(
        asked if asked != "auto" else next(name for name in PUBLISHED if one[name] is not None)
        for one in found
        if any(value is not None for value in one.values())
    )
    both = [one for one in found if None not in one.values()]
    return {
        "asked": asked,
        "published": [name for name in PUBLISHED if any(one[name] is not None for one in found)],
        "used": {name: used[name] for name in PUBLISHED if used[name]},
        "both": len(both),
        "differ": sum(one["better"] != one["safer"] for one in both),
    }


def _scores(judge: Judge, pairs: Sequence[PreferencePair]) -> list[tuple[float, float] | str]:
    """Scores of (chosen, rejected) of each pair, or why one of them is no evidence."""
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
    scores = scores_of(judge, items)
    found: list[tuple[float, float] | str] = []
    for chosen, rejected in zip(scores[::2], scores[1::2], strict=True):
        reason = why_unscored(judge.name, chosen) or why_unscored(judge.name, rejected)
        if reason is not None or chosen.value is None or rejected.value is None:
            found.append(str(reason))
        else:
            found.append((chosen.value, rejected.value))
    return found


def _accuracy(rows: Sequence[tuple[str, str, bool]]) -> dict[str, Any]:
    return accuracy([right for _, _, right in rows], [group for _, group, _ in rows])


def _group(pair: PreferencePair) -> str:
    return normalised(" ".join(message["content"] for message in pair.messages)) or pair.id
