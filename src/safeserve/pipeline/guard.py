"""The recipe of a guard, read and checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from safeserve.core.errors import UserError, did_you_mean
from safeserve.data.labels import get_set
from safeserve.pipeline.recipe import read_tree
from safeserve.training.options import GuardRecipe


def shipped_guards() -> dict[str, Path]:
    """Shipped guard recipes: name to file."""
    folder = Path(str(resources.files("safeserve.recipes"))) / "guards"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_guard_recipe(name: str, overrides: Sequence[str] = ()) -> GuardRecipe:
    """A shipped recipe or a file, with ``key=value`` overrides.

    Raises:
        UserError: no such recipe, an unknown key or labelled set.
    """
    known = shipped_guards()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"{name}: no such recipe file and no shipped guard of that name.{did_you_mean(name, known)}")
    recipe = GuardRecipe.parse(read_tree(path, overrides), str(path))
    for source in (*recipe.sources, *recipe.held_out):
        get_set(source)
    return recipe
