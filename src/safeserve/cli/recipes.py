"""``safeserve recipes list|show|copy|validate``."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.cli.run import JSON

app = typer.Typer(help="Recipes: what is shipped, and checking your own.", no_args_is_help=True)
OVERRIDES = typer.Argument(None, help="Changes as key=value.")


@app.command("list")
def list_recipes(as_json: bool = JSON) -> None:
    """Shipped recipes with the first line of what they prove."""
    from safeserve.pipeline.recipe import header, shipped

    rows = [{"name": name, "proves": header(path).splitlines()[0]} for name, path in shipped().items()]
    print_json(rows) if as_json else print("\n".join(f"{row['name']:16} {row['proves']}" for row in rows))
    next_commands("safeserve recipes show quickstart", "safeserve run quickstart")


@app.command()
def show(name: str = typer.Argument(help="Name of a shipped recipe, or a file.")) -> None:
    """Print a recipe."""
    from safeserve.core.runs import read_text
    from safeserve.pipeline.recipe import find_recipe

    print(read_text(find_recipe(name)), end="")
    next_commands(f"safeserve recipes copy {name} mine.yaml", f"safeserve run {name} --dry-run")


@app.command()
def copy(
    name: str = typer.Argument(help="Name of a shipped recipe."),
    to: Path = typer.Argument(help="File to write; must not exist."),
) -> None:
    """Copy a shipped recipe, to change it."""
    from safeserve.core.errors import UserError
    from safeserve.core.runs import disk_errors
    from safeserve.pipeline.recipe import find_recipe

    if to.exists():
        raise UserError(f"{to}: exists already. Give a new file.")
    with disk_errors(to):
        shutil.copyfile(find_recipe(name), to)
    print(to)
    next_commands(f"safeserve recipes validate {to}", f"safeserve run {to}")


@app.command()
def validate(recipe: str = typer.Argument(help="A recipe file or name."), overrides: list[str] = OVERRIDES) -> None:
    """Check a recipe without running it, and print it with every change applied."""
    from safeserve.pipeline.recipe import load_recipe
    from safeserve.pipeline.run import recipe_yaml

    print(recipe_yaml(load_recipe(recipe, overrides or [])), end="")
    next_commands(f"safeserve run {shlex.join([recipe, *(overrides or [])])} --dry-run")
