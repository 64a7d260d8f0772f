"""What a run would do, without doing it: stages, rows, prompts, an upper bound on generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeserve.core.runs import DONE
from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import load_suite
from safeserve.pipeline.recipe import OWN_PAIRS, DpoStage, Recipe, SitStage
from safeserve.pipeline.rows import Sources, own_pair_rows, public_pairs, sit_rows


def models_in_order(recipe: Recipe, only: Sequence[str] | None = None) -> list[str]:
    """The base and the trained models as a run makes them; with ``only``, these stages and what they start from."""
    names = ["base", *recipe.train]
    if only is None:
        return names
    wanted = set(only)
    for name in reversed(recipe.train):
        if name in wanted:
            wanted.add(recipe.train[name].start)
    return [name for name in names if name in wanted]


def plan(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Stages in order, each with what it works on and whether a finished one is there already."""
    stages: list[dict[str, Any]] = []
    prompts: list[tuple[int, int]] = []
    evaluated: list[Prompt] = []
    if recipe.evaluate:
        options = recipe.evaluate
        loaded = load_suite(options.suite, recipe.data.root, options.limit, options.skip_missing)
        for benchmark, rows in loaded.prompts.items():
            evaluated += rows
            prompts.append((len(rows), min(benchmark.max_new_tokens, options.sampling.max_new_tokens)))
    for name in ("base", *recipe.train):
        if name in recipe.train:
            stages.append(_describe(name, recipe.train[name], Sources(recipe, evaluated), folder))
        if recipe.evaluate and name in recipe.evaluate.models:
            stages.append(
                {
                    "stage": f"eval-{name}",
                    "prompts": sum(count for count, _ in prompts),
                    "max_new_tokens": sum(count * tokens for count, tokens in prompts) * recipe.evaluate.sampling.n,
                    "done": (folder / "stages" / f"eval-{name}" / DONE).exists(),
                }
            )
    return {"run": str(folder), "model": recipe.model, "stages": stages}


def _describe(name: str, stage: SitStage | DpoStage, sources: Sources, folder: Path) -> dict[str, Any]:
    if isinstance(stage, SitStage):
        rows = len(sit_rows(stage, sources))
    elif stage.pairs == OWN_PAIRS:
        rows = sum(map(len, own_pair_rows(stage, sources).values()))
    else:
        rows = len(public_pairs(stage, sources))
    return {
        "stage": f"train-{name}",
        "method": stage.method,
        "start": stage.start,
        "rows": rows,
        "epochs": stage.epochs,
        "steps": -(-rows // stage.batch_size) * stage.epochs,
        "done": (folder / "stages" / f"train-{name}" / DONE).exists(),
    }


def plan_text(todo: dict[str, Any]) -> str:
    """The plan for a person."""
    lines = [f"run {todo['run']} with {todo['model']}"]
    for stage in todo["stages"]:
        if "rows" in stage:
            what = f"{stage['method']} from {stage['start']}: {stage['rows']} rows, {stage['steps']} steps"
        else:
            what = f"{stage['prompts']} prompts, at most {stage['max_new_tokens']:,} new tokens"
        lines.append(f"  {stage['stage']:20} {what}{'  (done before)' if stage['done'] else ''}")
    return "\n".join(lines)
