"""Which rows a training stage gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.data.records import Prompt, user
from safeserve.data.sources import Loaded, load_demonstrations, load_prompts
from safeserve.pipeline.recipe import Recipe, parse_recipe
from safeserve.pipeline.rows import OWN_SHARES, Sources, draw, own_pair_rows, public_pairs, sit_rows
from safeserve.pipeline.train_stages import DpoStage, SitStage

Tree = Callable[..., dict[str, Any]]
NOUNS = [
    "apple",
    "bridge",
    "candle",
    "drum",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "lantern",
]


def sit(recipe: Recipe) -> SitStage:
    stage = recipe.train["sit"]
    assert isinstance(stage, SitStage)
    return stage


def made(tree: Tree, evaluation: list[Prompt] | None = None, **options: Any) -> tuple[list[Any], Sources]:
    recipe = parse_recipe(tree(**options), "r")
    sources = Sources(recipe, evaluation or [])
    return sit_rows(sit(recipe), sources), sources


def ids(rows: list[Any], kind: str) -> set[str]:
    return {row.id for row in rows if row.kind == kind}


def test_doses_are_nested_and_change_nothing_else(tree: Tree) -> None:
    mixtures = [made(tree, dose=dose)[0] for dose in (0, 3, 10, 24)]
    doses = [ids(mixture, "safety") for mixture in mixtures]
    assert [len(dose) for dose in doses] == [0, 3, 10, 24]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(doses))
    assert len({frozenset(ids(mixture, "helpful")) for mixture in mixtures}) == 1
    assert all(len(ids(mixture, "helpful")) == 4 for mixture in mixtures)


def test_fewer_helpful_rows_are_a_subset_of_more(tree: Tree) -> None:
    drawn = [ids(made(tree, n_helpful=count)[0], "helpful") for count in (0, 5, 24)]
    assert [len(rows) for rows in drawn] == [0, 5, 24]
    assert drawn[0] < drawn[1] < drawn[2]


def test_the_seed_decides_which_rows_in_which_order(tree: Tree) -> None:
    def order(seed: int) -> list[str]:
        recipe = parse_recipe({**tree(dose=10), "seed": seed}, "r")
        return [row.id for row in sit_rows(sit(recipe), Sources(recipe, []))]

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize(("option", "count"), [("dose", 25), ("n_helpful", 25)])
def test_more_than_there_are(tree: Tree, option: str, count: int) -> None:
    with pytest.raises(UserError, match=f"{option}: 25 .*24"):
        made(tree, **{option: count})


def test_rows_near_an_evaluation_prompt_are_left_out_and_counted(tree: Tree, data: dict[str, Path]) -> None:
    """A dose is then drawn from what is left; without any evaluation nothing is left out."""
    copied = [
        Prompt("e1", user("safety: polish the bridge of safety 1"), "harmful"),
        Prompt("e2", user("Who knows?"), "benign"),
    ]
    rows, sources = made(tree, copied, dose=None)
    assert "safety-001" not in ids(rows, "safety")
    assert len(ids(rows, "safety")) == 23
    account = sources.account[str(data["safety"])]
    assert account["rows"] == 23
    assert account["left_out"] == {"near an evaluation prompt": 1}
    assert sources.account[str(data["helpful"])]["left_out"] == {}
    assert len(ids(made(tree, dose=None)[0], "safety")) == 24


def test_nothing_left_to_train_on(tree: Tree) -> None:
    rows = load_demonstrations(tree()["train"]["sit"]["helpful"]).rows
    every = [Prompt(row.id, row.messages, "benign") for row in rows]
    with pytest.raises(UserError, match="every row is near an evaluation prompt"):
        made(tree, every)


def test_stages_read_a_source_once_and_account_for_it_each(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(name: str, **options: Any) -> Any:
        read.append(name)
        return load_demonstrations(name, **options)

    monkeypatch.setattr("safeserve.pipeline.rows.load_demonstrations", counted)
    rows, first = made(tree)
    second = first.for_stage()
    assert not second.account
    first.account[next(iter(first.account))]["left_out"]["prompt repeated"] = 1
    assert [row.id for row in sit_rows(sit(first.recipe), second)] == [row.id for row in rows]
    assert len(read) == len(set(read)) == len(second.account)
    assert all(not part["left_out"] for part in second.account.values())


def test_no_starter_row_is_near_a_starter_evaluation_prompt() -> None:
    """The starter data keeps them apart, so a run on it trains on everything."""
    names = ("eval_harmful", "eval_look_alike", "eval_helpful")
    evaluation = [prompt for name in names for prompt in load_prompts(f"starter/{name}").rows]
    stage = {"method": "sit", "helpful": "starter/helpful", "look_alike": "starter/look_alike"}
    recipe = parse_recipe({"train": {"sit": {**stage, "safety": "starter/safety"}}}, "r")
    sources = Sources(recipe, evaluation)
    sit_rows(sit(recipe), sources)
    assert {name: part["left_out"] for name, part in sources.account.items()} == {
        "starter/helpful": {},
        "starter/look_alike": {},
        "starter/safety": {},
    }


def dpo(tree: Tree, **options: Any) -> tuple[DpoStage, Sources]:
    recipe = parse_recipe(
        {**tree(), "train": {"dpo": {"method": "dpo", **options}}, "evaluate": None, "gate": None}, "r"
    )
    stage = recipe.train["dpo"]
    assert isinstance(stage, DpoStage)
    return stage, Sources(recipe, [])


def test_pairs_from_a_file(tree: Tree, data: dict[str, Path]) -> None:
    drawn = [{p.id for p in public_pairs(*dpo(tree, pairs=str(data["pairs"]), n_pairs=n))} for n in (3, 8, None)]
    assert [len(pairs) for pairs in drawn] == [3, 8, 12]
    assert drawn[0] < drawn[1] < drawn[2]
    quarter = {p.id for p in public_pairs(*dpo(tree, pairs=str(data["pairs"]), pairs_share=0.25))}
    assert quarter == drawn[0]  # 3 of 12


def test_a_published_source_is_read_from_its_public_address(tree: Tree, tmp_path: Path) -> None:
    recipe = parse_recipe({**tree(), "data": {"root": str(tmp_path), "published": ["one"]}}, "r")
    roots: dict[str, str | None] = {}

    def load(name: str, root: str | None) -> Loaded[Any]:
        roots[name] = root
        raise UserError("read no further")

    for name in ("one", "two"):
        with pytest.raises(UserError, match="no further"):
            Sources(recipe, ()).read(name, load)
    assert roots == {"one": None, "two": str(tmp_path)}


def test_own_pairs_come_in_three_kinds_over_all_categories(tree: Tree) -> None:
    kinds = own_pair_rows(*dpo(tree, pairs="starter/pairs", n_pairs=100))
    assert {source: len(rows) for source, rows in kinds.items()} == {
        source: round(100 * share) for source, share in OWN_SHARES.items()
    }
    assert sum(OWN_SHARES.values()) == pytest.approx(1.0)
    every = own_pair_rows(*dpo(tree, pairs="starter/pairs"))
    for source, rows in kinds.items():
        assert {row.category for row in rows} == {row.category for row in every[source]}


def test_drawing_all_keeps_the_order() -> None:
    from safeserve.data.records import Demonstration

    rows = [Demonstration(str(n), user("x"), "y", "helpful") for n in range(5)]
    assert draw(rows, None, 1, "n") == rows
    assert draw(rows, 5, 1, "n") != rows
    assert sorted(row.id for row in draw(rows, 5, 1, "n")) == [row.id for row in rows]
