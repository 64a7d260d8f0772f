"""``safeserve train sit|dpo|raft|reward|cost RECIPE``: the training stages of a recipe, without evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from safeserve.cli.common import STARTED, command_line, next_commands, print_json, quiet_libraries, run_folder
from safeserve.cli.run import DRY_RUN, JSON, NAME, OUT, QUIET, REDO, SEED, show_plan

app = typer.Typer(
    help="Train by one method: the stages of that method in a recipe, and what they start from.", no_args_is_help=True
)
RECIPE = typer.Argument(help="A recipe file, or the name of a shipped one.")
OVERRIDES = typer.Argument(None, help="Changes as key=value.")


@app.command()
def sit(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Safety instruction tuning: supervised fine-tuning on helpful, look-alike and safety demonstrations."""
    _train("sit", recipe, overrides, run_folder(name, out, Path(recipe).stem), redo, seed, dry_run, quiet, as_json)


@app.command()
def dpo(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Direct preference optimisation on pairs of a preferred and a dispreferred answer."""
    _train("dpo", recipe, overrides, run_folder(name, out, Path(recipe).stem), redo, seed, dry_run, quiet, as_json)


@app.command()
def raft(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """RAFT and iterative DPO: sample the policy, score, select, learn from the picked samples, and again.

    Exit code 4: the checks before or after the first iteration say that this selection does harm or nothing.
    """
    _train("raft", recipe, overrides, run_folder(name, out, Path(recipe).stem), redo, seed, dry_run, quiet, as_json)


@app.command()
def reward(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """A reward model: learns from pairs which answer people prefer, and is measured on prompts held out."""
    _train("reward", recipe, overrides, run_folder(name, out, Path(recipe).stem), redo, seed, dry_run, quiet, as_json)


@app.command()
def cost(
    recipe: str = RECIPE,
    overrides: list[str] = OVERRIDES,
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """A cost model: learns which answer is more harmful, and that unsafe answers cost more than 0."""
    _train("cost", recipe, overrides, run_folder(name, out, Path(recipe).stem), redo, seed, dry_run, quiet, as_json)


def _train(
    method: str,
    recipe: str,
    overrides: list[str] | None,
    folder: Path,
    redo: bool,
    seed: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from safeserve.core.errors import UserError
    from safeserve.core.runs import read_json
    from safeserve.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    stages = [name for name, stage in loaded.train.items() if stage.method == method]
    if not stages:
        raise UserError(f"{recipe}: no stage with method: {method}. Its stages: {', '.join(loaded.train) or 'none'}.")
    quiet_libraries()
    if dry_run:
        show_plan(loaded, folder, as_json, only=stages)
        return
    from safeserve.pipeline.run import Run

    run = Run(loaded, folder, command=command_line(), redo=redo, quiet=quiet, only=stages, started=STARTED)
    run.execute()
    stages = [name for name in stages if name in run.recipe.train]
    results = {name: read_json(folder / "stages" / f"train-{name}" / "metrics.json") for name in stages}
    if as_json:
        print_json(results)
    else:
        for name, metrics in results.items():
            print(f"{name}: {folder / 'models' / name}  ({metrics['stage_seconds']:.0f} s)")
            if metrics.get("held_out"):
                print(f"  {_accuracy(metrics['held_out'])}")
    if method in ("reward", "cost"):
        extra = "invert: true\\n" if method == "cost" else ""
        made = [f"printf 'kind: reward\\nmodel: {folder / 'models' / name}\\n{extra}' > {name}.yaml" for name in stages]
        next_commands(*made, *(f"safeserve score RUN:MODEL --judge {name}.yaml" for name in stages[:1]))
        return
    next_commands(*(f"safeserve eval {folder / 'models' / name} --suite starter" for name in stages))


def _accuracy(held_out: dict[str, Any]) -> str:
    """What was found on held-out prompts, in a line."""
    low, high = held_out["ci95"]
    length, matched = held_out["length_only"], held_out["length_matched"]
    told = f"accuracy on {held_out['n']} pairs with other prompts {held_out['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    told += f"; by length alone ({length['rule']} wins) {length['accuracy']:.3f}"
    if matched["n"]:
        told += f"; on the {matched['n']} of matched length {matched['accuracy']:.3f}"
    return told
