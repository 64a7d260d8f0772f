"""Recipes: what is wrong is named with file and key before anything runs, and what was resolved loads again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeserve.core.errors import UserError
from safeserve.pipeline.recipe import find_recipe, header, load_recipe, parse_recipe, shipped
from safeserve.pipeline.run import recipe_yaml

Tree = Callable[..., dict[str, Any]]
SIT: dict[str, Any] = {"method": "sit", "safety": "starter/safety"}
EVALUATE = {"models": ["base", "sit"]}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"sed": 3}, 'unknown key "sed". Did you mean "seed"?'),
        ({"train": {"sit": {**SIT, "epoch": 3}}}, 'train.sit: unknown key "epoch". Did you mean "epochs"?'),
        ({"train": {"sit": {**SIT, "beta": 0.1}}}, 'train.sit: unknown key "beta".'),  # an option of DPO
        ({"evaluate": {"suit": "starter"}}, 'evaluate: unknown key "suit". Did you mean "suite"?'),
        ({"evaluate": {"sampling": {"temprature": 1}}}, 'sampling.temprature". Did you mean "temperature"?'),
        ({"gate": {"against": "base"}, "evaluate": EVALUATE}, 'gate: key "candidate" is missing.'),
        ({"train": {"sit": {**SIT, "method": "siit"}}}, 'train.sit.method: unknown method "siit". Did you mean "sit"?'),
        ({"train": {"sit": {"safety": "starter/safety"}}}, 'train.sit.method: unknown method "None".'),
        ({"train": {"sit": 3}}, "train.sit"),
        ({"train": ["sit"]}, "train: expected"),
        ({"train": {"sit": {"method": "sit"}}}, "train.sit: no data. Give helpful, look_alike or safety."),
        (
            {"train": {"sit": {**SIT, "start": "bass"}}},
            'train.sit.start: no earlier model "bass". Did you mean "base"?',
        ),
        ({"train": {"a": {**SIT, "start": "b"}, "b": SIT}}, 'train.a.start: no earlier model "b".'),
        ({"train": {"base": SIT}}, 'train: "base" cannot be a stage name'),
        ({"train": {"../x": SIT}}, 'train: "../x" cannot be a stage name'),
        ({"train": {"sit": {**SIT, "learning_rate": 0}}}, "learning_rate: Input should be greater than 0"),
        ({"train": {"sit": {**SIT, "dose": -1}}}, "dose: Input should be greater than or equal to 0"),
        ({"train": {"sit": {**SIT, "full": True, "lora_rank": 4}}}, "lora_rank: would be ignored"),
        ({"train": {"d": {"method": "dpo", "pairs": "x", "keep": "best"}}}, "train.d: keep: Input should be"),
        ({"train": {"d": {"method": "dpo"}}}, 'train.d: key "pairs" is missing.'),
        ({"evaluate": {"suite": "startr"}}, 'suite: unknown name "startr". Did you mean "starter"?'),
        ({"evaluate": {"judges": ["short_answer"]}}, "judges: none of short_answer is for starter-harmful"),
        ({"evaluate": {"sampling": {"seed": 3}}}, "own.yaml: evaluate: sampling: seed would be ignored"),
        (
            {"evaluate": {"suite": "I-CoNa+XSTest-safe"}, "gate": {"candidate": "base", "policy": "paper"}},
            "gate: the policy paper asks for I-MaliciousInstructions, I-Controversial, I-Alpaca, which evaluate.suite:",
        ),
        ({"evaluate": {"judges": ["refusals"]}}, 'judge: unknown name "refusals". Did you mean "refusal"?'),
        ({"evaluate": {"models": ["base", "dpo"]}, "train": {"sit": SIT}}, 'evaluate.models: no model "dpo".'),
        ({"gate": {"candidate": "base"}}, "gate needs evaluate: a verdict rests on measurements."),
        ({"evaluate": {}, "gate": {"candidate": "sit"}, "train": {"sit": SIT}}, 'gate: no model "sit".'),
        (
            {"evaluate": {}, "gate": {"candidate": "base", "policy": "startr"}},
            'no policy "startr". Did you mean "starter"?',
        ),
        ({"template": "alpacca"}, "template: Input should be 'alpaca' or 'chatml'"),
        ({"dtype": "float16"}, "dtype"),
        ({"seed": "seven"}, "seed: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_named(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(tree, "own.yaml")
    assert says in str(error.value)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("train:\n  sit: {method: sit, safety: starter/safety, dosis: 3}\n")
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert str(error.value) == f'{path}: train.sit: unknown key "dosis". Did you mean "dose"?'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 7\ntrain:\n  sit: {method: sit\nseed: 3\n", "line 4: not valid YAML"),
        ("seed: 7\n\tmodel: x\n", "line 2: not valid YAML"),
        ("seed: \x00\n", "not valid YAML"),
        ("- seed\n", "a recipe holds keys and values, found list."),
        ("", "a recipe holds keys and values, found NoneType."),
        ("!!python/object/apply:os.system ['true']\n", "line 1: not valid YAML"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "own.yaml"))
    assert str(tmp_path / "own.yaml") in str(error.value)
    assert says in str(error.value)


def test_a_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_no_such_recipe() -> None:
    with pytest.raises(UserError, match=r'quickstrat: no such recipe file .* Did you mean "quickstart"'):
        find_recipe("quickstrat")


def test_overrides_reach_every_depth() -> None:
    changes = [
        "seed=11",
        "train.sit.epochs=2",
        "train.sit.learning_rate=1e-4",
        "evaluate.sampling.temperature=0.5",
        "gate.policy=strict",
        "evaluate.models=[base, sit, dpo]",
    ]
    recipe = load_recipe("quickstart", changes)
    assert (recipe.seed, recipe.train["sit"].epochs, recipe.train["sit"].learning_rate) == (11, 2, 1e-4)
    assert recipe.evaluate is not None
    assert recipe.evaluate.sampling.temperature == 0.5
    assert recipe.gate is not None
    assert recipe.gate.policy == "strict"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.sit.epochs", '"train.sit.epochs": an override reads key=value'),
        ("=3", '"=3": an override reads key=value'),
        ("train.sit.epoch=3", 'unknown key "epoch". Did you mean "epochs"?'),
        ("seed.x=3", '"seed.x=3": seed is a value, so nothing can be set inside it.'),
        ("seed=[3", '"seed=[3" line 1: not valid YAML'),
        ("seed=\x00", "not valid YAML"),
        ("train.dpoo.beta=0.1", 'train.dpoo.method: unknown method "None".'),
        ("sed=3", 'unknown key "sed". Did you mean "seed"?'),
    ],
)
def test_a_wrong_override(change: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("quickstart", [change])
    assert says in str(error.value)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_and_says_how_to_run_it(name: str) -> None:
    load_recipe(name)
    top = header(find_recipe(name))
    assert f"safeserve run {name}" in top
    assert len(top.splitlines()[0]) > 20
    assert "time:" in top


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_resolved_recipe_loads_again(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_an_option_switched_off_by_null_stays_off(tree: Tree, tmp_path: Path) -> None:
    """``checkpoint_steps`` has a default, so leaving null out of the resolved recipe would switch it on again."""
    recipe = parse_recipe(tree(checkpoint_steps=None, dose=None), "own.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    again = load_recipe(str(tmp_path / "recipe.yaml"))
    assert again == recipe
    assert again.train["sit"].checkpoint_steps is None


def test_the_resolved_recipe_keeps_the_order_of_stages(tree: Tree) -> None:
    made = tree()
    made["train"] = {"z": SIT, "a": {**SIT, "start": "z"}}
    made["evaluate"]["models"] = ["base", "z"]
    del made["gate"]
    assert list(yaml.safe_load(recipe_yaml(parse_recipe(made, "r")))["train"]) == ["z", "a"]


SCALED = """
train:
  sit: {method: sit, safety: starter/safety, dose: 5}
  more: {method: sit, safety: starter/safety, dose: 9}
scales:
  small: {train.more: null, note: only to try}
  large: {train.sit.dose: 50, seed: 3}
"""


def test_a_scale_changes_the_recipe_before_other_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(SCALED)
    small = load_recipe(str(path))
    assert (list(small.train), small.note, small.seed) == (["sit"], "only to try", 7)
    large = load_recipe(str(path), ["train.sit.dose=60", "scale=large"])
    assert list(large.train) == ["sit", "more"]
    assert (large.train["sit"].dose, large.seed, large.note) == (60, 3, "")
    with pytest.raises(UserError, match='scale: no scale "lrge"'):
        load_recipe(str(path), ["scale=lrge"])
    path.write_text("scales: {small: 3}")
    with pytest.raises(UserError, match="scales: expected names"):
        load_recipe(str(path))
    path.write_text("seed: 3\nscales: {small: {seed.deep: 1}}")
    with pytest.raises(UserError, match=r"scales\.small\.seed\.deep: seed is a value"):
        load_recipe(str(path))


def test_a_recipe_without_scales_has_no_scale() -> None:
    with pytest.raises(UserError, match='unknown key "scale"'):
        load_recipe("quickstart", ["scale=tiny"])


@pytest.mark.parametrize("scale", ["laptop", "tiny", "full"])
def test_every_scale_of_the_study_loads(scale: str) -> None:
    recipe = load_recipe("paper", [f"scale={scale}"])
    assert recipe.evaluate is not None
    trained = {name for name, stage in recipe.train.items() if stage.method not in ("reward", "cost")}
    assert set(recipe.evaluate.models) == {"base", *trained}
    assert bool(recipe.note) == (scale == "tiny")
    assert recipe.study == "paper"


def test_the_full_study_has_the_papers_sizes_and_shares() -> None:
    train = load_recipe("paper", ["scale=full"]).train
    assert {stage.n_helpful for name, stage in train.items() if name.startswith("dose-")} == {20_000}
    assert [train[name].pairs_share for name in ("dpo", "dpo-4", "dpo-16")] == [None, 1 / 4, 1 / 16]
    assert {(train[name].pairs, train[name].keep, train[name].n_pairs) for name in ("dpo", "dpo-4", "dpo-16")} == {
        ("pku-saferlhf", "paper", None)
    }
    sizes = [
        (s.prompts_per_iteration, s.iterations, s.samples_per_prompt) for s in train.values() if s.method == "raft"
    ]
    assert sizes == [(100, 4, 8), (100, 4, 8), (500, 1, 8)]


@pytest.mark.parametrize("also", [{"n_pairs": 3}, {"pairs": "starter/pairs"}, {"pairs": "raft:own"}])
def test_a_share_of_pairs_is_of_a_source_and_the_only_size(also: dict[str, Any]) -> None:
    stage = {"method": "dpo", "pairs": "pku-saferlhf", "pairs_share": 0.25, **also}
    with pytest.raises(UserError, match="pairs_share: stands in place of n_pairs"):
        parse_recipe({"train": {"d": stage}}, "own.yaml")
