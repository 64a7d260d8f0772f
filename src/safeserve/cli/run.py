"""``safeserve run RECIPE`` and ``safeserve quickstart``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from safeserve.cli.common import STARTED, command_line, next_commands, print_json, quiet_libraries, run_folder

if TYPE_CHECKING:
    from safeserve.pipeline.recipe import Recipe

NAME = typer.Option(None, "--name", help="Name of the run: results go to runs/NAME.")
OUT = typer.Option(None, "--out", help="Folder of the run, instead of runs/NAME.")
REDO = typer.Option(False, "--redo", help="Discard stages whose inputs changed, and what was made from them.")
JSON = typer.Option(False, "--json", help="Print the result as JSON.")
LIMIT = typer.Option(None, "--limit", min=1, help="At most this many prompts a benchmark.")
SEED = typer.Option(None, "--seed", help="Seed of the run.")
DRY_RUN = typer.Option(False, "--dry-run", help="Say what would run, its tokens, about how long and how much memory.")
QUIET = typer.Option(False, "--quiet", help="No progress.")


def run(
    recipe: str = typer.Argument(help="A recipe file, or the name of a shipped one (safeserve recipes list)."),
    overrides: list[str] = typer.Argument(None, help="Changes as key=value, for example train.dpo.beta=0.2."),
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    limit: int | None = LIMIT,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Run a recipe from data to verdict; the same command goes on where a stopped one left off.

    Exit codes: 0 done or gate passed, 1 gate failed, 2 wrong input, 3 environment, 4 not enough evidence.
    """
    changes = list(overrides or [])
    changes += [f"evaluate.limit={limit}"] if limit is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    raise typer.Exit(execute(recipe, changes, run_folder(name, out, Path(recipe).stem), redo, dry_run, quiet, as_json))


def quickstart(
    full: bool = typer.Option(False, "--full", help="Use all starter pairs instead of the default share."),
    model: str | None = typer.Option(None, "--model", help="Another model: a folder or a hub id."),
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    limit: int | None = LIMIT,
    seed: int | None = SEED,
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Measure the embedded model, align it, measure it again on the same prompts, and read the verdict."""
    changes = ["train.dpo.n_pairs=null"] if full else []
    changes += [f"model={model}"] if model is not None else []
    changes += [f"evaluate.limit={limit}"] if limit is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    default = "quickstart" + ("-full" if full else "") + (f"-{Path(model).name}" if model is not None else "")
    folder = run_folder(name, out, default)
    code = execute("quickstart", changes, folder, redo, dry_run, quiet, as_json, announce=not quiet)
    raise typer.Exit(code)


def say_how_long(recipe: Recipe, folder: Path) -> None:
    """What the demo will take here, before it begins: it differs by a factor of four between two laptops."""
    from safeserve.core.progress import clock
    from safeserve.pipeline.plan import plan

    planned = plan(recipe, folder)
    if planned.get("seconds"):
        machine = f"{planned['machine']['dtype']} on {planned['machine']['name']}"
        print(f"This takes about {clock(planned['seconds'])} in {machine}; --dry-run says more.", file=sys.stderr)


def show_plan(recipe: Recipe, folder: Path, as_json: bool, only: Sequence[str] | None = None) -> None:
    """Print what would run, and the command that runs it."""
    from safeserve.pipeline.plan import plan, plan_text

    planned = plan(recipe, folder, only)
    print_json(planned) if as_json else print(plan_text(planned))
    next_commands(command_line([argument for argument in sys.argv[1:] if argument != "--dry-run"]))


def execute(
    recipe: str,
    changes: list[str],
    folder: Path,
    redo: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    announce: bool = False,
) -> int:
    """Run and print, with ``announce`` first how long it will take; returns the exit code."""
    from safeserve.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, changes)
    quiet_libraries()
    if dry_run:
        show_plan(loaded, folder, as_json)
        return 0
    if announce:
        say_how_long(loaded, folder)
    from safeserve.pipeline.run import Run

    run = Run(loaded, folder, command=command_line(), redo=redo, quiet=quiet, started=STARTED)
    outcome, loaded = run.execute(), run.recipe
    if as_json:
        print_json(
            {
                "run": str(folder),
                "summaries": outcome.summaries,
                "comparisons": outcome.comparisons,
                "verdict": outcome.verdict.to_json() if outcome.verdict else None,
                "seconds": outcome.seconds,
            }
        )
    else:
        from safeserve.report.tables import print_outcome

        print_outcome(outcome.summaries, outcome.comparisons, outcome.verdict)
        if not loaded.evaluate:
            for stage in loaded.train:
                print(f"{stage}: {folder / 'models' / stage}")
    if not loaded.evaluate:
        next_commands(*(f"safeserve eval {folder / 'models' / stage} --suite starter" for stage in loaded.train))
    else:
        worth = [f"open {folder / 'report.html'}"]
        if loaded.gate:
            gate = loaded.gate
            if gate.policy == "starter":
                worth.append(f"safeserve gate {folder}:{gate.candidate} {folder}:{gate.against} --policy strict")
            worth.append(f"safeserve compare {folder}:{gate.against} {folder}:{gate.candidate} --all-metrics")
        next_commands(*worth, "safeserve recipes list")
    return outcome.verdict.exit_code if outcome.verdict else 0
