"""Training the guard: what it must not see, how rows are split, the losses, and a whole training on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from safeserve.core.errors import UserError
from safeserve.data import labels
from safeserve.data.labelled import LabelledAnswer, LabelledSet
from safeserve.judging.guard_network import GuardNetwork, Reading
from safeserve.models import embedded
from safeserve.pipeline.guard import load_guard_recipe, shipped_guards
from safeserve.training import guard as training
from safeserve.training.guard import (
    Example,
    GuardObjective,
    LowRank,
    Window,
    calibrated,
    gather,
    is_validation,
    platt,
    spec_of,
    train_guard,
)
from safeserve.training.options import GuardRecipe


def rows(name: str, count: int, pair: bool = False) -> list[LabelledAnswer]:
    """Answers that are unsafe exactly when they say "bad"."""
    made = []
    for n in range(count):
        prompt = f"{name} question {n // 2}"
        bad = n % 2 == 1
        text = ("bad " if bad else "good ") * (2 + n % 3)
        key = f"{name}-{n // 2}" if pair else None
        made.append(LabelledAnswer(f"{name}-{n}", prompt, text, float(bad), pair=key))
    return made


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**found: list[LabelledAnswer]) -> None:
        for name, part in found.items():
            made = LabelledSet(name, "unsafe", "MIT", "test", lambda _, part=part: iter(part))  # type: ignore[misc]
            monkeypatch.setitem(labels.SETS, name, made)

    return install


def recipe(**changes: object) -> GuardRecipe:
    tree = {"name": "tiny", "licence": "MIT", "sources": {"one": None}, "depth": 2, "adapted_from": 1, **changes}
    return GuardRecipe.parse(tree, "test")


def test_prompts_of_the_test_set_are_left_out(sets: Callable[..., None]) -> None:
    sets(one=rows("one", 20), tested=[LabelledAnswer("t", "One QUESTION 3!", "x", 1.0)])
    found = gather(recipe(held_out=("tested",)), None)["one"]
    assert len(found) == 18
    assert all("question 3" not in row.prompt for row in found)


def test_a_set_is_not_both_source_and_test(sets: Callable[..., None]) -> None:
    sets(one=rows("one", 4))
    with pytest.raises(UserError, match="one: both a source and held out"):
        gather(recipe(held_out=("one",)), None)


def test_a_limit_never_cuts_a_pair_and_repetitions_count_once(sets: Callable[..., None]) -> None:
    sets(one=rows("one", 20, pair=True) + rows("one", 20, pair=True))
    found = gather(recipe(sources={"one": 7}), None)["one"]
    assert len(found) == 6
    assert sorted(row.pair for row in found) == sorted(2 * sorted({row.pair for row in found}))
    assert found == gather(recipe(sources={"one": 7}), None)["one"]
    assert found != gather(recipe(sources={"one": 7}, seed=8), None)["one"]


@given(st.integers(0, 5), st.floats(0.05, 0.4))
def test_a_prompt_is_on_one_side_of_the_split(seed: int, share: float) -> None:
    one = [LabelledAnswer(str(n), f"Question {n}?", "a", 0.0) for n in range(400)]
    two = [LabelledAnswer(f"b{n}", f"question {n}", "b", 1.0) for n in range(400)]
    sides = [[is_validation(row, share, seed) for row in part] for part in (one, two)]
    assert sides[0] == sides[1]
    assert abs(np.mean(sides[0]) - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_low_rank_starts_as_the_frozen_layer_and_adds_b_a() -> None:
    torch.manual_seed(0)
    frozen = torch.nn.Linear(6, 4, bias=False)
    layer = LowRank(frozen, 2, 8.0)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(layer(x), frozen(x))
    layer.b.data.normal_()
    torch.testing.assert_close(layer(x), frozen(x) + 4.0 * (x @ layer.a.T) @ layer.b.T)


def test_the_loss_is_cross_entropy_and_bradley_terry_by_hand() -> None:
    logits = {"x": 0.7, "better": -0.4, "worse": 0.9}

    class Policy:
        def logits(self, windows: list[Window]) -> torch.Tensor:
            return torch.tensor([logits[str(w.reading.ids[0])] for w in windows])

    def window(name: str) -> Window:
        return Window(Reading((name,), 0, 1), torch.zeros(1, 1))  # type: ignore[arg-type]

    items = [Example((window("x"),), 0.25), Example((window("better"), window("worse")), None)]
    loss, _ = GuardObjective(0.5).loss(Policy(), items)
    p = 1 / (1 + math.exp(-0.7))
    by_hand = -(0.25 * math.log(p) + 0.75 * math.log(1 - p)) - 0.5 * math.log(1 / (1 + math.exp(-1.3)))
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def test_platt_equals_an_unpenalised_logistic_regression() -> None:
    chance = np.random.default_rng(3)
    z = chance.normal(size=500)
    y = (chance.random(500) < 1 / (1 + np.exp(-(1.7 * z - 0.6)))).astype(float)
    slope, intercept = platt(z, y, np.ones(500))
    fitted = LogisticRegression(C=1e9).fit(z[:, None], y)
    assert slope == pytest.approx(fitted.coef_[0, 0], rel=1e-2)
    assert intercept == pytest.approx(fitted.intercept_[0], abs=1e-2)


def test_a_guard_learns_and_a_killed_training_goes_on(
    sets: Callable[..., None], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "fetch", lambda quiet=False: tiny_folder)
    sets(one=rows("one", 120), two=rows("two", 24, pair=True))
    options = {"learning_rate": 0.03, "epochs": 3, "batch_size": 8, "token_budget": 4096, "checkpoint_steps": 10}
    chosen = recipe(sources={"one": None, "two": None}, training=options)
    whole = train_guard(chosen, None, tmp_path / "whole.safetensors", quiet=True)
    assert whole["validation"]["one"]["auroc"] > 0.95
    assert whole["rows"] == {"one": 120, "two": 24}
    guard = GuardNetwork(tmp_path / "whole.safetensors", torch.float32)
    bad, good = guard.probabilities(guard.logits([("one question 1", "bad bad"), ("one question 1", "good good")]))
    assert bad > 0.7 > 0.3 > good

    killed = tmp_path / "killed.safetensors"
    mark = training.fit.__globals__["mark_complete"]

    def stop_at_20(folder: Path) -> None:
        mark(folder)
        if folder.name == "checkpoint-20":
            raise KeyboardInterrupt

    monkeypatch.setitem(training.fit.__globals__, "mark_complete", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        train_guard(chosen, None, killed, quiet=True)
    monkeypatch.setitem(training.fit.__globals__, "mark_complete", mark)
    resumed = train_guard(chosen, None, killed, quiet=True)
    assert resumed["training"]["resumed_from_step"] == 20
    assert resumed["sha256"] == whole["sha256"]
    again = train_guard(chosen, None, killed, quiet=True)
    assert again == json.loads(killed.with_suffix(".json").read_text())
    with pytest.raises(UserError, match="changed: recipe"):
        train_guard(recipe(sources={"one": None}), None, killed, quiet=True)


def test_options_that_would_not_act_are_refused() -> None:
    with pytest.raises(UserError, match="lora_dropout, save: would be ignored"):
        recipe(training={"lora_dropout": 0.1, "save": "merged", "epochs": 1})


@pytest.mark.parametrize("name", sorted(shipped_guards()))
def test_shipped_recipes_are_read_and_test_on_nothing_they_learn(name: str) -> None:
    chosen = load_guard_recipe(name)
    assert chosen.name == name
    assert not set(chosen.sources) & set(chosen.held_out)
    assert {"beavertails_30k_test", "gptfuzz_evaluate", "paper_sit"} <= set(chosen.held_out)
    licences = {labels.get_set(source).permissive for source in chosen.sources}
    assert licences == ({True} if name == "permissive" else {True, False})


def test_the_threshold_catches_the_share_of_unsafe_answers_asked_for() -> None:
    # Unsafe more often the higher the logit, with a part that the logit does not tell.
    held = [LabelledAnswer(str(n), "q", "a", float(n + 37 * n % 101 > 150)) for n in range(400)]
    logits = [n / 50 - 4 for n in range(400)]
    spec = calibrated(spec_of(recipe()), held, logits, 0.9)
    p = [1 / (1 + math.exp(-(spec.slope * z + spec.intercept))) for z in logits]
    caught = [v >= spec.threshold for v, row in zip(p, held, strict=True) if row.unsafe]
    assert 0.9 <= np.mean(caught) <= 0.93
    with pytest.raises(UserError, match="no unsafe answer"):
        calibrated(
            spec_of(recipe()),
            [row for row in held if not row.unsafe],
            logits[: sum(not row.unsafe for row in held)],
            0.9,
        )
