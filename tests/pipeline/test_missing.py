"""What cannot be reached is taken out with all that rests on it, named, and replaced by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.pipeline.missing import fitted
from safeserve.pipeline.plan import plan, plan_text
from safeserve.pipeline.recipe import Recipe, parse_recipe
from safeserve.pipeline.run import Run

SIT = {"method": "sit", "safety": "starter/safety"}


def recipe(skip: bool = True, **stages: dict[str, Any]) -> Recipe:
    tree = {
        "data": {"skip_missing": skip},
        "train": {"sit": SIT, **stages},
        "evaluate": {"models": ["base", "sit", *stages]},
        "gate": {"candidate": [*stages, "sit"][0]},
    }
    return parse_recipe(tree, "own.yaml")


def test_a_stage_without_data_goes_with_all_that_starts_from_it() -> None:
    gone = {**SIT, "safety": "nowhere/none.jsonl"}
    made = recipe(lost=gone, child={**SIT, "start": "lost"}, other=SIT)
    found, reasons = fitted(made)
    assert list(found.train) == ["sit", "other"]
    assert found.evaluate is not None
    assert found.evaluate.models == ("base", "sit", "other")
    assert found.gate is None, "no verdict on a model that is not there"
    assert "nowhere/none.jsonl" in reasons["lost"]
    assert "\n" not in reasons["lost"]
    assert reasons["child"] == "needs lost, which is not run"


def test_nothing_is_taken_out_unasked() -> None:
    made = recipe(skip=False, lost={**SIT, "safety": "nowhere/none.jsonl"})
    assert fitted(made) == (made, {})
    whole = recipe(other=SIT)
    assert fitted(whole) == (whole, {})


def test_nothing_left_to_measure() -> None:
    tree = {
        "data": {"skip_missing": True},
        "train": {"lost": {**SIT, "safety": "nowhere.jsonl"}},
        "evaluate": {"models": ["lost"]},
    }
    with pytest.raises(UserError, match="none of them can be trained"):
        fitted(parse_recipe(tree, "own.yaml"))


def test_a_data_root_that_lacks_a_set(tmp_path: Path) -> None:
    tree = {
        "data": {"skip_missing": True, "root": str(tmp_path)},
        "train": {"lost": {"method": "dpo", "pairs": "pku-saferlhf"}},
        "evaluate": {"models": ["base", "lost"]},
    }
    found, reasons = fitted(parse_recipe(tree, "own.yaml"))
    assert not found.train
    assert "pku" in reasons["lost"]


def test_the_plan_and_every_run_obey_it(tmp_path: Path) -> None:
    made = recipe(lost={**SIT, "safety": "nowhere/none.jsonl"})
    planned = plan(made, tmp_path)
    assert [stage["stage"] for stage in planned["stages"]] == ["eval-base", "train-sit", "eval-sit"]
    assert list(planned["not_run"]) == ["lost"]
    assert "not run: lost: " in plan_text(planned)
    assert list(Run(made, tmp_path).recipe.train) == ["sit"]
