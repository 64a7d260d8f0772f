"""A dry run against the run itself: the same tokens, the same parts, and what it says when it cannot know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.core.runs import DONE, read_json
from safeserve.models import embedded
from safeserve.pipeline import counts, outlook
from safeserve.pipeline.forecast import KEPT_BYTES, START_SECONDS
from safeserve.pipeline.plan import models_in_order, plan, plan_text
from safeserve.pipeline.probe import Rates
from safeserve.pipeline.recipe import parse_recipe
from safeserve.pipeline.run import Run

Tree = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 100 GFLOP/s, without measuring."""
    monkeypatch.setattr(outlook, "rates_of", lambda device, dtype: Rates(1e11, 1e10))


def dpo(data: dict[str, Path], **options: Any) -> dict[str, Any]:
    return {"method": "dpo", "start": "sit", "pairs": str(data["pairs"]), "lora_rank": 2, **options}


def test_tokens_are_those_that_the_run_counts(tree: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    made = tree()
    made["train"]["dpo"] = dpo(data)
    made["evaluate"]["models"] = ["base", "sit", "dpo"]
    recipe = parse_recipe(made, "r")
    planned = plan(recipe, tmp_path / "run")
    Run(recipe, tmp_path / "run", quiet=True).execute()
    predicted = {stage["stage"]: stage for stage in planned["stages"]}
    measured = {name: read_json(tmp_path / "run" / "stages" / name / "metrics.json") for name in predicted}
    assert predicted["train-sit"]["tokens"] == {"trained on": measured["train-sit"]["tokens"]}
    for name, stage in predicted.items():
        assert set(stage["parts"]) == set(measured[name]["parts"]) - {"judge"}, name
        assert stage["seconds"] == pytest.approx(sum(stage["parts"].values()), abs=0.1)
        assert stage["peak_memory_bytes"] > 1e8
        if name.startswith("eval"):
            generated = measured[name]["parts"]["generate"]
            assert stage["tokens"]["read"] == generated["prompt_tokens"]
            assert 0 < stage["tokens"]["written"] <= stage["max_new_tokens"] == 24
            assert generated["tokens"] <= 24
    assert planned["seconds"] == pytest.approx(sum(s["seconds"] for s in planned["stages"]) + START_SECONDS, abs=1)
    assert planned["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in planned["stages"])
    for kind in ("read", "written", "trained on"):
        assert planned["tokens"][kind] == sum(stage["tokens"].get(kind, 0) for stage in planned["stages"]) > 0
    (whole,) = [line for line in plan_text(planned).splitlines() if line.startswith("  all ")]
    assert f"{planned['tokens']['trained on']:,} trained on" in whole

    again = plan(recipe, tmp_path / "run")  # everything is done
    assert (again["seconds"], again["peak_memory_bytes"], again["tokens"]) == (0, 0, {})
    assert plan_text(again).count("(done before)") == 5
    assert "tokens:" not in plan_text(again)

    (tmp_path / "run" / "stages" / "eval-dpo" / "DONE").unlink()  # now the first that is left, in a fresh process
    last = plan(recipe, tmp_path / "run")["peak_memory_bytes"]
    assert last == pytest.approx(predicted["eval-dpo"]["peak_memory_bytes"] - KEPT_BYTES, abs=1)

    made["train"]["dpo"]["beta"] = 0.3  # what the run itself would refuse
    stale = plan(parse_recipe(made, "r"), tmp_path / "run")
    changed = {stage["stage"]: stage["changed"] for stage in stale["stages"] if "changed" in stage}
    assert changed == {"train-dpo": ["train.dpo.beta"], "eval-dpo": ["model dpo"]}
    assert [stage["stage"] for stage in stale["stages"] if not stage["done"]] == ["train-dpo", "eval-dpo"]
    assert stale["seconds"] > 0
    assert "with --redo made again; changed: train.dpo.beta" in plan_text(stale)
    with pytest.raises(UserError, match=r"made with other inputs; changed: train\.dpo\.beta\."):
        Run(parse_recipe(made, "r"), tmp_path / "run", quiet=True).execute()


def test_a_model_that_stays_in_memory_is_not_loaded_again(tree: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    made = tree()
    made["train"] |= {"dpo": dpo(data), "other": dpo(data, start="base")}
    made["evaluate"]["models"] = ["base", "sit", "dpo"]
    loads = {s["stage"]: "load" in s["parts"] for s in plan(parse_recipe(made, "r"), tmp_path)["stages"]}
    assert [name for name, loaded in loads.items() if not loaded] == ["train-sit", "train-dpo"]
    done = tmp_path / "stages" / "eval-base" / DONE
    done.parent.mkdir(parents=True)
    done.write_text("")
    first = plan(parse_recipe(made, "r"), tmp_path)["stages"]
    assert [(s["stage"], "load" in s["parts"]) for s in first[:2]] == [("eval-base", True), ("train-sit", True)]


def test_held_out_pairs_are_read_and_not_learned(tmp_path: Path) -> None:
    def stage(**options: Any) -> dict[str, Any]:
        made = {"method": "reward", "batch_size": 2, **options}
        rows = [{"prompt": f"question {i}", "chosen": "yes of course", "rejected": "no, not now"} for i in range(12)]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = parse_recipe({"train": {"r": {**made, "pairs": str(path)}}}, "r")
        found: dict[str, Any] = plan(recipe, tmp_path / "run")["stages"][0]
        return found

    whole, half = stage(validation_share=0), stage(validation_share=0.5)
    assert (whole["rows"], whole["steps"]) == (12, 6)
    assert (half["rows"], half["steps"]) == (12, 3)
    assert half["tokens"]["trained on"] == whole["tokens"]["trained on"] / 2
    assert half["parts"]["train"] == pytest.approx(whole["parts"]["train"] / 2, abs=0.06)
    assert "validate" in half["parts"]
    assert "validate" not in whole["parts"]


def test_half_the_rate_takes_twice_the_time(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(tree(), "r")
    before = plan(recipe, tmp_path)["stages"][1]["parts"]["train"]
    monkeypatch.setattr(outlook, "rates_of", lambda device, dtype: Rates(1e7, 1e10))
    after = plan(recipe, tmp_path)["stages"][1]["parts"]["train"]
    assert after > 100 * before
    assert after > 0.5


def test_answers_of_a_trained_model_are_as_long_as_its_data(tree: Tree, tmp_path: Path) -> None:
    made = tree()
    made["evaluate"]["sampling"]["max_new_tokens"] = 90
    planned = plan(parse_recipe(made, "r"), tmp_path)
    written = {stage["stage"]: stage["tokens"]["written"] for stage in planned["stages"] if "prompts" in stage}
    assert written["eval-base"] == round(2 * counts.UNTRAINED * (90 + 90 + 32))
    assert written["eval-sit"] < 0.6 * written["eval-base"]  # "Take the apple and polish it."
    assert any("as long as those that it learned" in text for text in planned["assumptions"])


def test_own_pairs_are_sampled_first(tree: Tree, tmp_path: Path) -> None:
    made = tree()
    made["train"]["dpo"] = {"method": "dpo", "start": "base", "pairs": "starter/pairs", "n_pairs": 24, "epochs": 1}
    stage = plan(parse_recipe(made, "r"), tmp_path)["stages"][-1]
    assert stage["stage"] == "train-dpo"
    assert set(stage["parts"]) == {"load", "sample", "reference", "train"}
    answers = stage["rows"] + (outlook.ROUNDS - 1) * 10  # 0.42 of 24 rows are harmful
    assert stage["tokens"]["sampled"] == pytest.approx(answers * counts.UNTRAINED * 64, rel=0.01)


def test_the_guard_reads_harmful_prompts_and_others_are_named(tree: Tree, tmp_path: Path) -> None:
    if not embedded.is_sound(embedded.model_folder()):
        pytest.skip("the embedded model is not in the cache")
    made = tree()
    del made["gate"]

    def judged(*judges: str) -> tuple[float, list[str]]:
        made["evaluate"]["judges"] = list(judges)
        planned = plan(parse_recipe(made, "r"), tmp_path)
        return planned["stages"][0]["tokens"].get("judged", 0), planned["not_counted"]

    assert judged("refusal", "short_answer") == (0, [])
    harmful, none = judged("modes", "short_answer")
    every, _ = judged("modes", "guard", "short_answer")
    assert none == []
    assert 0 < harmful < every / 3  # one benchmark of three, twice
    (tmp_path / "reward.yaml").write_text("kind: reward\nmodel: org/reward\nrevision: " + "a" * 40 + "\n")
    assert judged("modes", "short_answer", str(tmp_path / "reward.yaml"))[1] == [f"judge {tmp_path / 'reward.yaml'}"]


def test_without_the_models_files_it_says_what_it_can(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "fetch", lambda quiet=False: pytest.fail("downloads"))
    for model, says in ((embedded.NAME, "models get"), ("nobody/has-this", "not been fetched from the hub")):
        planned = plan(parse_recipe({**tree(), "model": model}, "r"), tmp_path)
        assert [stage["stage"] for stage in planned["stages"]] == ["eval-base", "train-sit", "eval-sit"]
        assert planned["stages"][1]["steps"] == 2
        assert "seconds" not in planned
        assert "not predicted" in plan_text(planned)
        assert says in plan_text(planned)


def test_a_served_model_is_not_predicted(tmp_path: Path) -> None:
    tree = {"model": "m", "server": {"base_url": "http://localhost:1/v1"}, "evaluate": {"limit": 2}}
    planned = plan(parse_recipe(tree, "r"), tmp_path)
    assert "the server renders" in plan_text(planned)
    assert planned["stages"][0]["prompts"] == 6


def test_too_little_memory_is_said(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(tree(), "r")
    assert "Too little memory" not in plan_text(plan(recipe, tmp_path))
    monkeypatch.setattr(outlook, "free_memory", lambda: 1 << 20)
    assert "Too little memory" in plan_text(plan(recipe, tmp_path))


def test_training_alone_plans_what_it_starts_from(tree: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    made = tree()
    made["train"] |= {"dpo": dpo(data), "other": dpo(data, start="base")}
    recipe = parse_recipe(made, "r")
    assert models_in_order(recipe) == ["base", "sit", "dpo", "other"]
    assert models_in_order(recipe, ["dpo"]) == ["base", "sit", "dpo"]  # base is read, and not evaluated
    assert [stage["stage"] for stage in plan(recipe, tmp_path, only=["dpo"])["stages"]] == ["train-sit", "train-dpo"]
    assert [stage["stage"] for stage in plan(recipe, tmp_path, only=["other"])["stages"]] == ["train-other"]


def test_rows_that_are_too_long_are_told(tree: Tree, tmp_path: Path) -> None:
    assert "too_long" not in plan(parse_recipe(tree(), "r"), tmp_path)["stages"][1]
    planned = plan(parse_recipe(tree(max_length=85), "r"), tmp_path)  # a token a byte, and those of the template
    assert 0 < planned["stages"][1]["too_long"] < planned["stages"][1]["rows"]
    assert "too long" in plan_text(planned)
