"""train_reward and train_cost on the tiny model: what is learned, measured, saved, left out and refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeserve.core.errors import UserError
from safeserve.data.records import PreferencePair, Prompt, user
from safeserve.generation.engine import Completion
from safeserve.judging.registry import make_judge
from safeserve.judging.reward import RewardJudge
from safeserve.judging.reward import RewardOptions as JudgeOptions
from safeserve.training.reward import CostOptions, RewardOptions, train_cost, train_reward
from safeserve.training.reward_pairs import prompt_group

SMALL: dict[str, Any] = {"lora_rank": 4, "epochs": 6, "batch_size": 8, "learning_rate": 1e-2, "checkpoint_steps": None}
Tiny = Callable[..., Any]
WORDS = ("sun", "moon", "tree", "river", "stone", "bread", "light", "song", "wind", "snow", "fire", "leaf", "road")


@pytest.fixture(scope="module")
def ranked() -> list[PreferencePair]:
    """60 pairs in which the answer with ``!`` is better, and unsafe where it has ``#``; lengths say nothing."""
    chance = random.Random(5)

    def words(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))

    return [
        PreferencePair(
            f"p{n}",
            user(f"{words(1, 3)} {n}"),
            f"{words(1, 5)} !!!",
            f"{words(1, 5)} ###",
            chosen_safe=True,
            rejected_safe=False,
        )
        for n in range(60)
    ]


def reward(tiny: Tiny, pairs: list[PreferencePair], out: Path, **options: Any) -> Any:
    validation = options.pop("validation", None)
    model = tiny()
    given = RewardOptions(**{**SMALL, **options})
    return train_reward(model, pairs, given, out, seed=7, parent=model.name, validation=validation)


def judged(folder: Path, pairs: list[PreferencePair], **options: Any) -> list[tuple[float, float]]:
    """Scores of (chosen, rejected) by the judge that a recipe would name."""
    judge = RewardJudge("reward-x", JudgeOptions(model=str(folder), dtype="float32", **options))
    items = [
        (Prompt(pair.id, pair.messages, "benign"), Completion(pair.id, answer, (), "stop", None))
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    values = [score.value for score in judge.score(items)]
    return [(a, b) for a, b in zip(values[::2], values[1::2], strict=True) if a is not None and b is not None]


def test_it_learns_and_is_measured_on_other_prompts(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    result = reward(tiny, ranked, tmp_path / "m" / "r", validation_share=0.3)
    curve = result.metrics["curves"]["train"]
    assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-5), "the head begins at zero"
    assert curve[-1]["loss"] < 0.2
    assert curve[-1]["margin"] == pytest.approx(curve[-1]["reward_chosen"] - curve[-1]["reward_rejected"], abs=1e-4)
    held_out = result.metrics["held_out"]
    assert held_out["n"] == result.metrics["validation_rows"] == 18
    assert result.metrics["prompts"] == {"train": 42, "held_out": 18}
    assert held_out["accuracy"] >= 0.9
    assert held_out["difference"]["ci95"][0] > 0
    assert held_out["length_only"]["rule"] in ("longer", "shorter")
    assert abs(curve[-1]["reward_chosen"] + curve[-1]["reward_rejected"]) < abs(curve[-1]["margin"]), "centred"
    json.dumps(result.metrics, allow_nan=False)
    assert not {path.name for path in result.folder.iterdir()} & {
        "training_args.bin",
        "README.md",
        "adapter_config.json",
    }


@pytest.mark.parametrize("options", [{}, {"full": True, "learning_rate": 1e-3}, {"lora_dropout": 0.05}])
def test_the_judge_gives_the_training_s_scores(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    from safeserve.core import pair_accuracy
    from safeserve.training import reward as module

    seen: list[Any] = []

    def noted(pairs: Any, rule: Any) -> Any:
        seen.extend(pairs)
        return pair_accuracy.accuracy_report(pairs, rule)

    monkeypatch.setattr(module, "accuracy_report", noted)
    kept = {k: v for k, v in {**SMALL, "epochs": 2, **options}.items() if not (k == "lora_rank" and "full" in options)}
    model = tiny()
    result = train_reward(model, ranked, RewardOptions(**kept), tmp_path / "m" / "r", seed=7, parent=model.name)
    by_group = {pair.group: (pair.higher, pair.lower) for pair in seen}
    assert len(seen) == 6
    held = [pair for pair in ranked if prompt_group(pair) in by_group]
    expected = [by_group[prompt_group(pair)] for pair in held]
    found = judged(result.folder, held)
    assert sum(found, ()) == pytest.approx(sum(expected, ()), abs=1e-4)
    assert max(abs(a) for a, _ in expected) > 0.01
    (tmp_path / "my-reward.yaml").write_text(f"kind: reward\nmodel: {result.folder}\ndtype: float32\n")
    judge: Any = make_judge(str(tmp_path / "my-reward.yaml"))
    assert judge.name == "reward-my-reward"


def test_held_out_pairs_are_read_once_or_again_where_a_kill_lost_their_scores(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.training.reward import RewardObjective

    read: list[Any] = []
    scores = RewardObjective.scores

    def noted(self: Any, policy: Any, items: Any) -> Any:
        read.extend([] if torch.is_grad_enabled() else items)
        return scores(self, policy, items)

    def forgetful(self: Any, policy: Any, items: Any) -> Any:
        before = dict(self.validated)
        found = noted(self, policy, items)
        if len(read) <= 18:
            self.validated = before
        return found

    options = {"validation_share": 0.3, "epochs": 1, "token_budget": 100}
    monkeypatch.setattr(RewardObjective, "scores", noted)
    once = reward(tiny, ranked, tmp_path / "once" / "r", **options).metrics["held_out"]
    assert len(read) == 18
    read.clear()
    monkeypatch.setattr(RewardObjective, "scores", forgetful)
    again = reward(tiny, ranked, tmp_path / "again" / "r", **options).metrics["held_out"]
    assert len(read) == 36
    assert again == once


def test_a_cost_model(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    model = tiny()
    options = CostOptions(**{**SMALL, "validation_share": 0.3})
    result = train_cost(model, ranked, options, tmp_path / "m" / "c", seed=7, parent=model.name)
    curve = result.metrics["curves"]["train"]
    assert curve[0]["loss"] == pytest.approx(3 * 0.693147, abs=1e-5), "one order and two signs"
    assert curve[-1]["cost_more_harmful"] > 0 > curve[-1]["cost_less_harmful"]
    held_out = result.metrics["held_out"]
    assert held_out["accuracy"] >= 0.9
    assert held_out["sign_accuracy"]["n"] == 2 * held_out["n"]
    assert held_out["sign_accuracy"]["accuracy"] >= 0.9
    assert all(rejected > chosen for chosen, rejected in judged(result.folder, ranked[:5]))
    assert all(chosen > rejected for chosen, rejected in judged(result.folder, ranked[:5], invert=True))


@pytest.mark.parametrize("train", [train_reward, train_cost])
def test_token_budget_and_order_of_rows_in_a_batch(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair], train: Any
) -> None:
    kind = RewardOptions if train is train_reward else CostOptions
    results = []
    for budget in (1, 300, 10_000):
        model = tiny()
        options = kind(**{**SMALL, "epochs": 1, "token_budget": budget})
        results.append(train(model, ranked, options, tmp_path / "m" / str(budget), seed=7, parent=model.name))
    for other in results[1:]:
        for a, b in zip(results[0].metrics["curves"]["train"], other.metrics["curves"]["train"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert torch.allclose(results[0].model.model.score.weight, other.model.model.score.weight, atol=1e-3)


def test_margins_are_asked_for(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    wide = [replace(pair, margin=2.0) for pair in ranked]
    found = {
        "without": reward(tiny, wide, tmp_path / "m" / "a", margin=False, epochs=1),
        "none": reward(tiny, ranked, tmp_path / "m" / "b", epochs=1),
        "with": reward(tiny, wide, tmp_path / "m" / "c", epochs=1),
    }
    losses = {name: result.metrics["curves"]["train"][0]["loss"] for name, result in found.items()}
    assert losses["without"] == losses["none"] == pytest.approx(0.693147, abs=1e-5)
    assert losses["with"] == pytest.approx(2.126928, abs=1e-5)  # -log sigma(-2)
    assert found["with"].metrics["pairs_with_margin"] == 60
    assert found["without"].metrics["pairs_with_margin"] == 0


def test_given_validation_pairs_keep_their_prompts(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    validation = [*ranked[50:], replace(ranked[0], id="again", chosen="another !!!")]
    result = reward(tiny, ranked[:50], tmp_path / "m" / "r", validation=validation, epochs=1)
    assert result.metrics["in_validation"] == 1
    assert (result.metrics["rows"], result.metrics["validation_rows"]) == (49, 11)


def test_contradictions_are_counted_and_said(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair], capsys: pytest.CaptureFixture[str]
) -> None:
    first = ranked[0]
    pairs = [*ranked, replace(first, id="turned", chosen=first.rejected, rejected=first.chosen)]
    result = reward(tiny, pairs, tmp_path / "m" / "r", epochs=1)
    assert result.metrics["contradictions"]["contradicting"] == 2
    assert result.metrics["rows"] + result.metrics["validation_rows"] == 59
    expected = "reward: of 61 pairs 2 pairs contradict each other. contradictions: drop leaves 59.\n"
    assert expected in capsys.readouterr().err
    kept = reward(tiny, pairs, tmp_path / "m" / "k", epochs=1, contradictions="keep")
    assert kept.metrics["rows"] + kept.metrics["validation_rows"] == 61


def test_finished_training_is_read_back(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    once = reward(tiny, ranked, tmp_path / "m" / "r", epochs=1)
    again = reward(tiny, ranked, tmp_path / "m" / "r", epochs=1)
    assert again.metrics == once.metrics
    assert torch.equal(again.model.model.score.weight, once.model.model.score.weight)
    with pytest.raises(UserError, match="margins and labels"):
        reward(tiny, [replace(pair, margin=1.0) for pair in ranked], tmp_path / "m" / "r", epochs=1)


def test_a_system_turn_and_control_tokens_are_read_as_the_judge_reads_them(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]
) -> None:
    system = ({"role": "system", "content": "Be brief."}, *user("Hm?"))
    odd = [
        PreferencePair("s", system, "fine <|im_end|> !!!", "bad ###"),
        PreferencePair("t", (*user("a"), {"role": "assistant", "content": "b"}, *user("c")), "d !!!", "e ###"),
    ]
    result = reward(tiny, ranked, tmp_path / "m" / "r", validation=odd, epochs=1)
    found = judged(result.folder, odd)
    assert result.metrics["held_out"]["accuracy"] == sum(a > b for a, b in found) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": True}, "margin: would be ignored, because no pair has a margin"),
        ({"validation": [], "validation_share": 0.2}, "validation_share: would be ignored"),
        ({"max_length": 2}, "no row to train on"),
    ],
)
def test_what_a_user_can_get_wrong(
    tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        reward(tiny, ranked, tmp_path / "m" / "r", **options)
    assert caught.value.exit_code == 2


def test_pairs_that_leave_nothing(tiny: Tiny, tmp_path: Path, ranked: list[PreferencePair]) -> None:
    with pytest.raises(UserError, match="no pair to train on"):
        reward(tiny, [], tmp_path / "m" / "a")
    with pytest.raises(UserError, match="all 1 pairs contradict each other or have one answer twice"):
        reward(tiny, [replace(ranked[0], rejected=ranked[0].chosen)], tmp_path / "m" / "b")
    with pytest.raises(UserError, match="of one prompt cannot be split"):
        reward(tiny, ranked[:1], tmp_path / "m" / "c")
    unlabelled = [replace(ranked[0], chosen_safe=None), *ranked[1:]]
    model = tiny()
    with pytest.raises(UserError, match="pair p0: a cost model needs") as caught:
        train_cost(model, unlabelled, CostOptions(**SMALL), tmp_path / "m" / "d", seed=7, parent=model.name)
    assert caught.value.exit_code == 2
