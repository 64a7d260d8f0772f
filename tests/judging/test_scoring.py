"""Scores into a file: equal answers once, in parts that survive a kill, and nothing made twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from safeserve.core.errors import UserError
from safeserve.core.runs import read_jsonl
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging import scoring
from safeserve.judging.judge import Score
from safeserve.judging.scoring import key_of, score_to


class Lengths:
    """Scores an answer's length; dies at a given call."""

    name, identity = "lengths", "1"

    def __init__(self, dies_at: int = -1) -> None:
        self.seen: list[tuple[str, str]] = []
        self.calls, self.dies_at = 0, dies_at

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.seen += [(prompt.id, completion.text) for prompt, completion in items]
        return [
            Score(float(len(c.text)), "long", flags=("f",), detail={"k": 1}) if c.text else Score(None, None, "empty")
            for _, c in items
        ]


def items() -> list[tuple[Prompt, Completion]]:
    texts = ["one", "two", "one", "", "four", "two"]
    made = []
    for name in ("p", "q"):
        prompt = Prompt(name, user(name), "harmful")
        made += [(prompt, Completion(name, text, (), "stop", None, k)) for k, text in enumerate(texts)]
    return made


def test_equal_answers_of_a_prompt_are_scored_once(tmp_path: Path) -> None:
    judge = Lengths()
    scores = score_to(judge, items(), tmp_path)
    assert [score.value for score in scores] == [3, 3, 3, None, 4, 3] * 2
    assert sorted(judge.seen) == sorted({(p.id, c.text) for p, c in items()})
    rows = read_jsonl(tmp_path / "scores" / "lengths.jsonl")
    assert [(row["id"], row["k"]) for row in rows] == [(c.id, c.k) for _, c in items()]
    assert list((tmp_path / "scores").iterdir()) == [tmp_path / "scores" / "lengths.jsonl"]


def test_known_scores_are_taken_and_the_end_of_an_answer_counts(tmp_path: Path) -> None:
    rows = items()
    cut = (rows[0][0], Completion("p", "one", (), "length", None, 6))
    judge = Lengths()
    known = {key_of(*rows[1]): Score(99.0, "known")}
    scores = score_to(judge, [*rows[:6], cut], tmp_path, known)
    assert [score.value for score in scores] == [3, 99, 3, None, 4, 99, 3]
    assert sorted(judge.seen) == [("p", ""), ("p", "four"), ("p", "one"), ("p", "one")]  # cut off it is another answer
    assert [row["value"] for row in read_jsonl(tmp_path / "scores" / "lengths.jsonl")] == [3, 99, 3, None, 4, 99, 3]


def test_what_is_there_is_not_scored_again(tmp_path: Path) -> None:
    first, judge = score_to(Lengths(), items(), tmp_path), Lengths()
    again = score_to(judge, items(), tmp_path)
    assert again == first
    assert [score.detail for score in again] == [score.detail for score in first]
    assert judge.calls == 0


def test_a_killed_scoring_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PART", 3)
    with pytest.raises(KeyboardInterrupt):
        score_to(Lengths(dies_at=3), items(), tmp_path / "killed")
    judge = Lengths()
    assert score_to(judge, items(), tmp_path / "killed") == score_to(Lengths(), items(), tmp_path / "whole")
    assert judge.calls == 1  # two of three parts were there
    one, other = (tmp_path / run / "scores" / "lengths.jsonl" for run in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_wrong_scores_are_refused(tmp_path: Path) -> None:
    class Short(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
            return super().score(items)[1:]

    class Infinite(Lengths):
        def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
            return [Score(float("inf"), None)] * len(items)

    with pytest.raises(UserError, match="7 scores for 8 answers"):
        score_to(Short(), items(), tmp_path)
    with pytest.raises(UserError, match='value inf for id "p"'):
        score_to(Infinite(), items(), tmp_path)
