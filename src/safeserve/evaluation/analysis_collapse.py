"""Has a model stopped telling prompts apart? Its most frequent answer, and how many different words it uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from safeserve.evaluation.benchmarks import find_benchmark
from safeserve.evaluation.folder import EvalFolder
from safeserve.evaluation.hygiene import FEWEST, SAME_ANSWER
from safeserve.judging.diversity import distinct_share

COLLAPSED = 0.90
"""Share of the prompts with one and the same answer from which a model is called collapsed (0.20: a stock answer)."""


def collapse(side: EvalFolder) -> dict[str, dict[str, Any]]:
    """Per benchmark of free text what :func:`of_answers` says of its answers.

    Where the answer is one word or letter by design (multiple choice) there is nothing to see and nothing is said.
    """
    found = {}
    for name, part in side.benchmarks.items():
        declared = find_benchmark(name)
        answers = [(key[0], one.text) for key, one in part.completions.items() if one.finish_reason != "error"]
        if answers and (declared is None or declared.general):
            found[name] = of_answers(answers)
    return found


def of_answers(answers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How alike answers are.

    Args:
        answers: (prompt id, answer), several of one id where it was sampled several times.

    Returns:
        ``prompts``; ``answers``; ``distinct`` answers; ``most_frequent``: the largest share of the prompts that got one
        and the same answer; ``distinct_1`` and ``distinct_2`` (:func:`distinct_share`); ``flag``: "collapsed", "stock
        answer" or None (never with fewer than 10 prompts).
    """
    got: dict[str, set[str]] = defaultdict(set)
    for prompt_id, text in answers:
        got[" ".join(text.split())].add(prompt_id)
    prompts = len({prompt_id for prompt_id, _ in answers})
    share = max(len(ids) for ids in got.values()) / prompts
    flag = "collapsed" if share >= COLLAPSED else "stock answer" if share > SAME_ANSWER else None
    texts = [text for _, text in answers]
    return {
        "prompts": prompts,
        "answers": len(answers),
        "distinct": len(got),
        "most_frequent": share,
        "distinct_1": distinct_share(texts, 1),
        "distinct_2": distinct_share(texts, 2),
        "flag": flag if prompts >= FEWEST else None,
    }
