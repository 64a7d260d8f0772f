"""``safeserve guard train RECIPE``."""

from __future__ import annotations

from pathlib import Path

import typer

from safeserve.cli.common import next_commands, print_json, quiet_libraries
from safeserve.cli.run import JSON, QUIET

app = typer.Typer(help="The built-in guard: train one of your own.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps ``train`` a verb of its own."""


@app.command()
def train(
    recipe: str = typer.Argument("permissive", help="permissive, research, or a YAML file."),
    overrides: list[str] = typer.Argument(None, help="Changes as key=value."),
    root: Path | None = typer.Option(
        None, "--root", envvar="SAFESERVE_DATA_ROOT", help="Folder that holds the public data sets."
    ),
    out: Path = typer.Option(..., "--out", help="The guard file to write, NAME.safetensors; metrics go beside it."),
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Train and calibrate a guard on labelled answers; a killed training goes on where it stopped."""
    from safeserve.core.errors import UserError
    from safeserve.pipeline.guard import load_guard_recipe

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: a guard is a file NAME.safetensors.")
    chosen = load_guard_recipe(recipe, overrides or [])
    quiet_libraries()
    from safeserve.training.guard import train_guard

    metrics = train_guard(chosen, str(root) if root is not None else None, out, quiet)
    if as_json:
        print_json(metrics)
    else:
        from safeserve.report.guard import print_guard

        print_guard(metrics, out)
    next_commands(
        f"printf 'kind: guard\\nfile: {out}\\n' > my-guard.yaml",
        "safeserve calibrate my-guard.yaml --labels beavertails_30k_test --root PATH",
    )
