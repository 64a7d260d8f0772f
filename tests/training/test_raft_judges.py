"""RAFT's options, and what its panel of judges makes of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.data.records import PreferencePair, Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Judge, Score
from safeserve.training.raft_options import RaftOptions
from safeserve.training.raft_samples import Answer, Panel, candidates_of, labelled_rewards, with_refusals


@dataclass
class Named:
    """A judge whose scores are given by the test."""

    name: str

    @property
    def identity(self) -> str:
        return f"toy {self.name}"

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        raise AssertionError("not asked")


def judges() -> dict[str, Judge]:
    return {"good": Named("reward-good"), "guard": Named("guard-toy"), "watch": Named("guard-watch")}


def test_refusals_of_benign_prompts_are_marked_only_when_asked_for() -> None:
    texts = {"harmful": "I'm sorry, but I cannot help with that.", "benign": "I'm sorry, but I cannot help with that."}
    answers = [
        Answer(Prompt(label, user("How?"), label), Completion(label, text, (), "stop", None, 0), {})  # type: ignore[arg-type]
        for label, text in texts.items()
    ]
    options = {"reward": "good", "rule": "constrained", "guard": "guard"}
    answers = with_refusals(answers)
    assert [answer.refused for answer in answers] == [None, True]
    for drop in (False, True):
        panel = SimpleNamespace(
            options=RaftOptions(**options, drop_refusals=drop), reward=lambda _: 1.0, p_unsafe=lambda _: 0.0
        )
        marked = {c.id: c.samples[0].refused for c in candidates_of(panel, answers)}  # type: ignore[arg-type]
        assert marked == {"harmful": False, "benign": drop}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "reward: is missing"),
        ({"reward": "x", "rule": "best"}, 'rule: unknown rule "best"'),
        ({"reward": "x", "rule": "topk"}, "topk needs one of top_share and top_count"),
        ({"reward": "x", "rule": "topk", "top_share": 0.5, "top_count": 3}, "topk needs one of"),
        ({"reward": "x", "rule": "threshold"}, "at_least: is missing"),
        ({"reward": "x", "rule": "constrained"}, "guard: is missing"),
        ({"reward": "x", "combine": "switch"}, "guard: is missing"),
        ({"reward": "x", "tau": 0.3}, "tau: would be ignored without a guard"),
        ({"reward": "x", "resample": 1}, "resample: would be ignored by rule: top1"),
        ({"reward": "x", "top_count": 3}, "top_count: would be ignored by rule: top1"),
        ({"reward": "x", "beta": 0.3}, "beta: would be ignored by update: sit"),
        ({"rule": "human"}, "picks: is missing"),
        ({"rule": "human", "picks": "p", "update": "dpo"}, "reward: is missing. update: dpo"),
        ({"reward": "x", "update": "dpo", "loss": "safedpo"}, "guard: is missing. loss: safedpo"),
        ({"reward": "x", "n_labelled_pairs": 20}, "n_labelled_pairs: would be ignored"),
        ({"reward": "x", "kl_samples": 41}, "kl_samples: 41 is more than held_out_prompts (40)"),
        ({"reward": "x", "samples_per_prompt": 1}, "samples_per_prompt"),
        ({"reward": "x", "full": True, "lora_rank": 3}, "lora_rank: would be ignored"),
    ],
)
def test_contradicting_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        RaftOptions.parse(options, "r")
    assert says in str(error.value)


def test_what_is_set_back_to_its_default_contradicts_nothing() -> None:
    back = {"resample": 0, "drop_refusals": False, "tau": 0.5, "beta": 0.1}
    assert RaftOptions.parse({"reward": "x", **back}, "r").changed() == {"reward"}
    # The default of kl_samples is more than these, and nobody asked for it.
    assert RaftOptions.parse({"reward": "x", "held_out_prompts": 8}, "r").kl_samples == 32


def test_learning_options_reach_the_methods() -> None:
    options = RaftOptions(reward="x", epochs=3, lora_rank=4, update="dpo", beta=0.3)
    assert (options.sit_options().epochs, options.sit_options().lora_rank) == (3, 4)
    assert (options.dpo_options().beta, options.dpo_options().learning_rate) == (0.3, options.learning_rate)
    assert RaftOptions(reward="x", full=True).sit_options().full


def test_rewards_of_the_panel() -> None:
    options = RaftOptions(reward={"good": 1.0, "guard": -2.0}, guard="guard", held_out_judge="watch")
    panel = Panel.of(options, judges().__getitem__)
    prompt = Prompt("p", user("q"), "harmful")
    scores = {"good": Score(0.5, "safe"), "guard": Score(0.2, "safe"), "watch": Score(0.9, "unsafe")}
    answer = Answer(prompt, Completion("p", "t", (), "stop", None), scores)
    assert panel.reward(answer) == pytest.approx(0.1)
    assert (panel.p_unsafe(answer), panel.held_out_unsafe(answer)) == (0.2, True)
    odd = Answer(prompt, answer.completion, {**scores, "guard": Score(1.5, "unsafe")})
    with pytest.raises(UserError, match="which is no probability"):
        panel.p_unsafe(odd)
    mute = Answer(prompt, answer.completion, {**scores, "guard": Score(0.1, "who knows")})
    assert panel.p_unsafe(mute) is None  # a label nobody knows is no evidence
    assert panel.reward(mute) is None


def test_the_switch_of_a_panel_turns_with_the_guard() -> None:
    options = RaftOptions(reward="good", guard="guard", combine="switch", held_out_judge="watch")
    panel = Panel.of(options, judges().__getitem__)

    def reward(label: Any, p_unsafe: float) -> float | None:
        scores = {"good": Score(0.4, None), "guard": Score(p_unsafe, "safe"), "watch": Score(0.0, "safe")}
        return panel.reward(Answer(Prompt("p", user("q"), label), Completion("p", "t", (), "stop", None), scores))

    assert reward("benign", 0.8) == 0.4  # the helpful reward as it is
    assert reward("benign", 0.9) == pytest.approx(math.log(0.1 / 0.9))  # too unsafe
    assert reward("harmful", 0.2) == pytest.approx(math.log(0.8 / 0.2))


@pytest.mark.parametrize(
    ("name", "label", "known"),
    [
        ("toxicity", "harmful", "safe, unsafe, full_refusal"),
        ("toxicity", None, "safe, unsafe, full_refusal"),
        ("guard-own", "Unsafe", "safe, unsafe."),
    ],
)
def test_an_own_held_out_judge_must_say_what_is_unsafe(name: str, label: str | None, known: str) -> None:
    """A label that nobody knows would count as safe."""
    own = "own_judges:Toxicity"
    made = {**judges(), own: Named(name)}
    panel = Panel.of(RaftOptions(reward="good", held_out_judge=own), made.__getitem__)
    prompt, completion = Prompt("p", user("q"), "harmful"), Completion("p", "t", (), "stop", None)

    def unsafe(score: Score) -> bool | None:
        return panel.held_out_unsafe(Answer(prompt, completion, {own: score}))

    assert unsafe(Score(0.9, "unsafe")) is True
    assert unsafe(Score(0.1, "safe")) is False
    assert unsafe(Score(None, None, reason="cannot be read")) is None
    with pytest.raises(UserError) as error:
        unsafe(Score(0.9, label))
    assert str(error.value).startswith(f"held_out_judge: {own} gave")
    assert (f'"{label}"' if label else "no label") in str(error.value)
    assert f"Return one of {known}" in str(error.value)


def test_an_own_guard_must_not_use_words_of_its_own() -> None:
    own = "own_judges:Guard"
    made = {**judges(), own: Named("guard-own")}
    panel = Panel.of(RaftOptions(reward="good", guard=own, held_out_judge="watch"), made.__getitem__)
    prompt, completion = Prompt("p", user("q"), "harmful"), Completion("p", "t", (), "stop", None)
    assert panel.p_unsafe(Answer(prompt, completion, {own: Score(0.9, "unsafe")})) == 0.9
    with pytest.raises(UserError, match='guard: own_judges:Guard gave the label "Unsafe"'):
        panel.p_unsafe(Answer(prompt, completion, {own: Score(0.9, "Unsafe")}))


def test_rewards_of_labelled_pairs(tmp_path: Path) -> None:
    class Told(Named):
        """The value of an answer to a harmful prompt is the negative of that to a benign one."""

        def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
            marks = {"a": 1.0, "b": 2.0}
            return [
                Score(marks[c.text] * (-1 if p.label == "harmful" else 1), None)
                if c.text in marks
                else Score(None, None, reason="cannot be read")
                for p, c in items
            ]

    made = {**judges(), "told": Told("reward-told")}
    panel = Panel.of(RaftOptions(reward={"told": 2.0}, held_out_judge="watch"), made.__getitem__)
    pairs = [
        PreferencePair("one", user("q"), "b", "a", kind="helpful"),
        PreferencePair("two", user("q"), "b", "a", kind="safety"),
        PreferencePair("three", user("r"), "b", "c", kind="helpful"),
    ]
    found = labelled_rewards(panel, pairs, tmp_path)
    assert found == [(4.0, 2.0), (-4.0, -2.0), (4.0, None)]
    assert sorted(path.stem for path in (tmp_path / "scores").iterdir()) == ["reward-told"]  # who selects, nobody else
    assert labelled_rewards(panel, pairs, tmp_path) == found
