"""The same training with other seeds: which stages are repeated, from which start, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.pipeline.recipe import Recipe, load_recipe, parse_recipe
from safeserve.pipeline.rows import Sources, stage_rows
from safeserve.pipeline.run import recipe_yaml
from safeserve.pipeline.train_stages import DpoStage

SIT = {"method": "sit", "safety": "starter/safety", "dose": 4}


def recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "seed": 5,
        "train": {
            "sit": SIT,
            "raft": {
                "method": "raft",
                "start": "sit",
                "harmful": "starter/safety",
                "benign": "starter/helpful",
                "reward": "short_answer",
            },
            "dpo": {"method": "dpo", "start": "sit", "pairs": "raft:raft"},
            "other": {**SIT, "dose": 2},
        },
        "evaluate": {"models": ["base", "dpo", "raft"]},
        "seeds": 3,
    }
    return parse_recipe({**tree, **changes}, "own.yaml")


def test_a_model_is_repeated_with_all_that_it_starts_from() -> None:
    made = recipe()
    copies = {name: stage for name, stage in made.train.items() if stage.repeats}
    assert list(copies) == [f"{name}-seed{seed}" for seed in (6, 7) for name in ("sit", "raft", "dpo")]
    assert {(stage.seed, name[-1]) for name, stage in copies.items()} == {(6, "6"), (7, "7")}
    assert [copies[f"{name}-seed7"].start for name in ("sit", "raft", "dpo")] == ["base", "sit-seed7", "sit-seed7"]
    dpo = copies["dpo-seed7"]
    assert isinstance(dpo, DpoStage)
    assert (dpo.from_raft, dpo.repeats, made.seed_of(dpo)) == ("raft-seed7", "dpo", 7)
    assert made.seed_of(made.train["dpo"]) == 5
    assert made.evaluate is not None
    assert made.evaluate.models == ("base", "dpo", "raft", "dpo-seed6", "dpo-seed7")  # raft is neither SIT nor DPO


def test_which_models_are_repeated_can_be_said() -> None:
    made = recipe(seeds_of=["raft"])
    assert [name for name in made.train if name.endswith("-seed6")] == ["sit-seed6", "raft-seed6"]
    assert recipe(seeds=1) == recipe(seeds=1, seeds_of=["raft"])


def test_a_reward_model_is_shared() -> None:
    """It is the instrument, as long as it is only asked for values."""
    made = load_recipe("paper", ["seeds=2", "seeds_of=[raft-harm]"])
    assert [name for name in made.train if name.endswith("-seed8")] == ["dose-0-seed8", "raft-harm-seed8"]
    assert made.train["raft-harm-seed8"].model_dump()["reward"] == "harm"


def test_the_resolved_recipe_repeats_nothing_twice(tmp_path: Path) -> None:
    made = recipe()
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(made))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == made


def test_the_seed_of_a_stage_draws_its_rows() -> None:
    made = recipe(evaluate={"models": ["base", "sit"]})

    def ids(stage: str) -> list[str]:
        return [row.id for row in stage_rows(made.train[stage], Sources(made, []))]

    assert ids("sit") == [row.id for row in stage_rows(recipe(seeds=1).train["sit"], Sources(recipe(seeds=1), []))]
    assert len({tuple(sorted(ids(name))) for name in ("sit", "sit-seed6", "sit-seed7")}) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 0}, "seeds: Input should be greater than or equal to 1"),
        ({"seeds_of": ["dp"]}, 'seeds_of: no trained model in evaluate.models "dp". Did you mean "dpo"?'),
        ({"seeds_of": ["other"]}, 'seeds_of: no trained model in evaluate.models "other"'),
        ({"evaluate": {"models": ["base", "raft"]}}, "seeds: no model that SIT or DPO trained is evaluated"),
        ({"evaluate": None}, "seeds: no model that SIT or DPO trained is evaluated"),
        ({"train": {"a": SIT, "b": {**SIT, "repeats": "c"}}}, 'train.b.repeats: no earlier stage "c"'),
        ({"train": {"a": SIT, "b": {**SIT, "repeats": "a"}, "c": {**SIT, "repeats": "b"}}}, "b is a repetition of a"),
        (
            {"train": {"a": SIT, "b": {"method": "dpo", "pairs": "starter/pairs", "repeats": "a"}}},
            "train.b.repeats: a is method sit",
        ),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        recipe(**changes)
    assert says in str(error.value)
