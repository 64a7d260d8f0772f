"""Judges by name: an own one must keep the contract, and every benchmark needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from safeserve.core.errors import UserError
from safeserve.core.runs import read_jsonl
from safeserve.data.records import Prompt, user
from safeserve.evaluation import evaluate
from safeserve.evaluation.benchmarks import suite
from safeserve.evaluation.evaluate import judge_benchmark, require_judges
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.judging.registry import make_judge

MODULE = """
class Own:
    name, identity = "own", "1"
    def score(self, items): return []
class Path(Own): name = "../own"
class Builtin(Own): name = "refusal"
class Half: name = "half"
thing = 3
"""
PROMPT = Prompt("p", user("Q"), "benign")
ANSWER = Completion("p", "A", (), "stop", None)


class Fixed:
    """Returns the given scores."""

    name, identity = "fixed", "1"

    def __init__(self, *scores: Score) -> None:
        self.scores = list(scores)

    def score(self, items: object) -> list[Score]:
        return self.scores


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_judges_here:Path", "cannot name a file of scores"),
        ("own_judges_here:Builtin", "cannot name a file of scores"),
        ("own_judges_here:Half", "lacks identity, score"),
        ("own_judges_here:thing", "is not a class"),
        ("own_judges_here:Nobody", 'has no "Nobody"'),
        ("own_judges_here:", "expected module:object"),
        (":Own", "expected module:object"),
    ],
)
def test_an_own_judge_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "own_judges_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_judge("own_judges_here:Own").name == "own"
    with pytest.raises(UserError, match=message):
        make_judge(name)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "0 scores for 1 answers"),
        ([Score(float("nan"), "x", None)], "not finite"),
    ],
)
def test_scores_that_are_no_evidence_are_refused(tmp_path: Path, scores: list[Score], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge_benchmark(Fixed(*scores), {PROMPT.id: PROMPT}, [ANSWER], tmp_path)
    judge_benchmark(Fixed(Score(None, None, "why")), {PROMPT.id: PROMPT}, [ANSWER], tmp_path)
    assert read_jsonl(tmp_path / "scores" / "fixed.jsonl")[0]["reason"] == "why"


def test_many_answers_are_judged_in_parts_and_a_part_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting:
        name, identity = "counting", "1"
        sizes: ClassVar[list[int]] = []

        def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
            self.sizes.append(len(items))
            return [Score(float(completion.text), None) for _, completion in items]

    monkeypatch.setattr(evaluate, "AT_ONCE", 3)
    answers = [Completion("p", str(k), (), "stop", None, k) for k in range(7)]
    judge_benchmark(Counting(), {"p": PROMPT}, iter(answers), tmp_path)
    assert Counting.sizes == [3, 3, 1]
    found = read_jsonl(tmp_path / "scores" / "counting.jsonl")
    assert [(row["k"], row["value"]) for row in found] == [(k, k) for k in range(7)]
    broken = [*answers[:5], Completion("p", "inf", (), "stop", None, 5)]
    with pytest.raises(UserError, match="not finite"):
        judge_benchmark(Counting(), {"p": PROMPT}, broken, tmp_path)
    assert read_jsonl(tmp_path / "scores" / "counting.jsonl") == found
    assert len(list((tmp_path / "scores").iterdir())) == 1


def test_a_benchmark_without_a_judge_is_told_before_anything_runs() -> None:
    assert set(require_judges(suite("starter"), ["refusal"])) == {"refusal"}
    with pytest.raises(UserError, match=r"none of short_answer is for starter-harmful\. Add modes"):
        require_judges(suite("starter"), ["short_answer"])


def test_a_judge_may_idle_where_its_benchmark_could_not_be_reached() -> None:
    with pytest.raises(UserError, match="exact_match scores nothing"):
        require_judges(suite("starter"), ["modes", "short_answer", "exact_match"])
    made = require_judges(suite("starter"), ["modes", "short_answer", "exact_match"], some_left_out=True)
    assert set(made) == {"modes", "short_answer", "exact_match"}
