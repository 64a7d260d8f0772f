"""A whole run on the tiny model: what it leaves, what it does again, what it refuses to mix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import lock, read_json, read_jsonl
from safeserve.pipeline.plan import plan, plan_text
from safeserve.pipeline.recipe import load_recipe, parse_recipe
from safeserve.pipeline.run import Outcome, Run

Tree = Callable[..., dict[str, Any]]
BENCHMARKS = {"starter-harmful", "starter-look-alike", "starter-helpful"}


def execute(tree: dict[str, Any], folder: Path, **options: Any) -> Outcome:
    return Run(parse_recipe(tree, "own.yaml"), folder, quiet=options.pop("quiet", True), **options).execute()


def times(folder: Path) -> dict[str, int]:
    """When each file that holds a result was written."""
    kept = [*folder.glob("models/*/*"), *folder.glob("evals/*/*/*.jsonl"), *folder.glob("stages/*/DONE")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in kept}


@pytest.fixture
def finished(tree: Tree, tmp_path: Path) -> Path:
    """A finished run."""
    execute(tree(), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_leaves_what_the_contract_says_and_is_not_done_twice(tree: Tree, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = execute(tree(), folder)
    for name in ("recipe.yaml", "manifest.json", "verdict.json", "report.html", "compare/base--sit.json"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "stages").iterdir()} == {"eval-base", "train-sit", "eval-sit"}
    assert all((path / "DONE").is_file() for path in (folder / "stages").iterdir())
    assert (folder / "models" / "sit" / "adapter_config.json").is_file()
    for model in ("base", "sit"):
        summary = read_json(folder / "evals" / model / "summary.json")
        assert set(summary["benchmarks"]) == BENCHMARKS
        assert summary["provisional"] is True
        for benchmark, part in summary["benchmarks"].items():
            place = folder / "evals" / model / benchmark
            prompts = [row["id"] for row in read_jsonl(place / "prompts.jsonl")]
            assert part["n"] == len(prompts) == 2
            assert [row["id"] for row in read_jsonl(place / "completions.jsonl")] == prompts
            for judge in part["judges"]:
                assert [row["id"] for row in read_jsonl(place / "scores" / f"{judge}.jsonl")] == prompts
    assert read_json(folder / "verdict.json")["exit_code"] == first.verdict.exit_code == 4  # type: ignore[union-attr]
    manifest = read_json(folder / "manifest.json")
    assert manifest["seed"] == 3
    assert {"torch", "transformers"} <= set(manifest["machine"]["versions"])
    assert manifest["peak_memory_gib"] > 0

    before = times(folder)
    second = execute(tree(), folder)
    assert times(folder) == before
    assert second.summaries == json.loads(json.dumps(first.summaries))
    assert second.verdict == first.verdict
    assert read_json(folder / "manifest.json")["seconds"] == manifest["seconds"]

    again = load_recipe(str(folder / "recipe.yaml"))
    assert again == parse_recipe(tree(), "r")
    assert Run(again, folder, quiet=True).execute().verdict == first.verdict
    assert times(folder) == before


def test_more_seeds_are_added_to_a_finished_run(tree: Tree, finished: Path) -> None:
    before = times(finished)
    outcome = execute({**tree(), "seeds": 3}, finished)
    after = times(finished)
    assert {name: after[name] for name in before} == before  # the first seed stays as it was
    assert list(outcome.summaries) == ["base", "sit", "sit-seed4", "sit-seed5"]
    weights = [finished / "models" / name / "adapter_model.safetensors" for name in ("sit", "sit-seed4", "sit-seed5")]
    assert len({path.read_bytes() for path in weights}) == 3
    assert "Between seeds" in (finished / "report.html").read_text(encoding="utf-8")
    other = execute({**tree(), "seed": 4}, finished.parent / "other")  # a copy is what a run of that seed makes
    assert other.summaries["sit"]["benchmarks"] == outcome.summaries["sit-seed4"]["benchmarks"]
    assert (finished.parent / "other" / "models" / "sit" / "adapter_model.safetensors").read_bytes() == (
        weights[1].read_bytes()
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree["train"]["sit"].update(dose=5), "train.sit.dose"),
        (lambda tree: tree["evaluate"].update(limit=3), "evaluate.limit"),
        (lambda tree: tree["evaluate"]["sampling"].update(max_new_tokens=5), "evaluate.sampling"),
        (lambda tree: tree.update(seed=4), "seed"),
        (lambda tree: tree.update(template="alpaca"), "model base"),
    ],
)
def test_changed_inputs_stop_the_command_and_are_named(
    tree: Tree, finished: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    before = times(finished)
    changed = tree()
    change(changed)
    with pytest.raises(UserError) as error:
        execute(changed, finished)
    assert f"{named}" in str(error.value).partition("changed: ")[2].partition(". ")[0]
    assert "--redo" in str(error.value)
    assert "--name" in str(error.value)
    assert times(finished) == before


def test_redo_does_again_what_changed_and_what_came_from_it(
    tree: Tree, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(finished)
    capsys.readouterr()
    execute(tree(dose=8, save="merged"), finished, redo=True, quiet=False)
    after = times(finished)
    for path, time in before.items():
        if "base" in path:
            assert after[path] == time, path
        else:
            assert after.get(path) != time, path
    assert not (finished / "models" / "sit" / "adapter_config.json").exists()
    said = capsys.readouterr().err
    assert "evaluate base: done before" in said
    assert "train sit: inputs changed, done again" in said or "train sit" in said


def test_another_judge_reads_the_answers_that_are_there(
    tree: Tree, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.generation.local import LocalEngine

    before = times(finished)
    changed = tree()
    changed["evaluate"]["judges"] = ["refusal", "short_answer", "refusal"]
    monkeypatch.setattr(LocalEngine, "generate_wave", lambda *_: pytest.fail("generated again"))
    with pytest.raises(UserError, match=r"changed: evaluate\.judges\."):
        execute(changed, finished)
    execute(changed, finished, redo=True)
    after = times(finished)
    for path, time in before.items():
        if path.endswith("completions.jsonl"):
            assert after[path] == time
        if "/scores/" in path:
            assert after[path] != time


def test_redo_without_a_change_does_nothing(tree: Tree, finished: Path) -> None:
    before = times(finished)
    execute(tree(), finished, redo=True)
    assert times(finished) == before


def test_a_run_that_stopped_in_an_evaluation_goes_on_there(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.pipeline import run as module

    whole = module.evaluate

    def stop_at_sit(engine: Any, name: str, *rest: Any) -> Any:
        if name == "sit":
            raise KeyboardInterrupt
        return whole(engine, name, *rest)

    monkeypatch.setattr(module, "evaluate", stop_at_sit)
    with pytest.raises(KeyboardInterrupt):
        execute(tree(), tmp_path / "run")
    before = times(tmp_path / "run")
    assert "stages/train-sit/DONE" in before
    assert "stages/eval-sit/DONE" not in before
    monkeypatch.setattr(module, "evaluate", whole)
    outcome = execute(tree(), tmp_path / "run")
    assert outcome.verdict is not None
    after = times(tmp_path / "run")
    assert {path: after[path] for path in before} == before


def test_two_stages_and_only_one_asked_for(tree: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    both = tree()
    both["train"]["dpo"] = {"method": "dpo", "start": "sit", "pairs": str(data["pairs"]), "n_pairs": 4, "lora_rank": 2}
    both["train"]["other"] = {"method": "sit", "safety": str(data["safety"]), "dose": 2, "lora_rank": 2}
    execute(both, tmp_path / "run", only=["dpo"])
    assert {path.name for path in (tmp_path / "run" / "models").iterdir()} == {"sit", "dpo"}
    assert not (tmp_path / "run" / "evals").exists()
    metrics = read_json(tmp_path / "run" / "stages" / "train-dpo" / "metrics.json")
    assert metrics["rows"] == 4
    assert next(iter(metrics["curves"]["train"]))["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: no margin yet


def test_a_run_without_training_or_gate(tiny_model_dir: Path, tmp_path: Path) -> None:
    evaluate = {"limit": 1, "sampling": {"max_new_tokens": 2}}
    outcome = execute({"model": str(tiny_model_dir), "evaluate": evaluate}, tmp_path / "run")
    assert outcome.verdict is None
    assert set(outcome.summaries) == {"base"}
    assert not (tmp_path / "run" / "verdict.json").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_training_rows_near_evaluation_prompts_are_left_out_of_a_run(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safeserve.data.sources import load_prompts

    copied = load_prompts("starter/eval_harmful").rows
    rows = [{"prompt": prompt.text, "response": "No.", "kind": "safety"} for prompt in copied[:1]]
    rows += [{"prompt": f"zebra number {n} of the herd", "response": "Yes.", "kind": "safety"} for n in range(3)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = tree(safety=str(tmp_path / "mixed.jsonl"), dose=None)
    changed["evaluate"] = {"models": ["base"], "limit": 1, "sampling": {"max_new_tokens": 2}}
    del changed["gate"]
    execute(changed, tmp_path / "run", quiet=False)
    metrics = read_json(tmp_path / "run" / "stages" / "train-sit" / "metrics.json")
    assert metrics["data"][str(tmp_path / "mixed.jsonl")]["left_out"] == {"near an evaluation prompt": 1}
    assert metrics["rows"] == 4 + 3
    assert "1 rows left out (near an evaluation prompt)" in capsys.readouterr().err


def test_a_second_process_waits_outside(tree: Tree, tmp_path: Path) -> None:
    with lock(tmp_path / "run"), pytest.raises(EnvironmentFault, match="another process"):
        execute(tree(), tmp_path / "run")


def test_a_plan_writes_nothing(tree: Tree, tmp_path: Path) -> None:
    planned = plan(parse_recipe(tree(), "r"), tmp_path / "run")
    assert [stage["stage"] for stage in planned["stages"]] == ["eval-base", "train-sit", "eval-sit"]
    assert [stage.get("rows", stage.get("prompts")) for stage in planned["stages"]] == [6, 8, 6]
    assert planned["stages"][1]["steps"] == 2
    assert not (tmp_path / "run").exists()
    assert "sit from base: 8 rows, 2 steps" in plan_text(planned)


def test_conclusions_do_not_outlive_the_recipe_that_drew_them(tree: Tree, finished: Path) -> None:
    changed = tree()
    del changed["gate"]
    changed["evaluate"]["models"] = ["base"]
    outcome = execute(changed, finished)
    assert outcome.verdict is None
    assert not (finished / "verdict.json").exists()
    assert not (finished / "compare").exists()
    assert (finished / "evals" / "sit" / "summary.json").exists()  # kept: naming it again costs nothing
    page = (finished / "report.html").read_text()
    assert "No policy was applied" in page
    assert 'aria-label="base on starter-' in page
    assert 'aria-label="sit on starter-' not in page, "the page shows what the recipe measures"
