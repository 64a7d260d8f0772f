"""Fit a recipe to the data that can be reached: what cannot be trained is taken out, named, and never replaced."""

from __future__ import annotations

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.pipeline.raft import judge_maker
from safeserve.pipeline.recipe import Recipe
from safeserve.pipeline.rows import Sources, stage_rows
from safeserve.pipeline.train_stages import DpoStage, RaftStage, TrainStage, parents


def fitted(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """The recipe without the stages whose data or judges cannot be reached, and why each of them is out.

    What starts from such a stage, or uses it as a judge, goes with it; so does a gate whose model is gone. Without
    ``data.skip_missing`` nothing is taken out.

    Raises:
        UserError: nothing is left to measure.
    """
    if not recipe.data.skip_missing:
        return recipe, {}
    gone: dict[str, str] = {}
    sources = Sources(recipe, ())
    for name, stage in recipe.train.items():
        lost = next((other for other in parents(stage, recipe.train) if other in gone), None)
        reason = f"needs {lost}, which is not run" if lost else _unreachable(stage, sources)
        if reason:
            gone[name] = reason
    if not gone:
        return recipe, gone
    changes: dict[str, object] = {"train": {name: s for name, s in recipe.train.items() if name not in gone}}
    if recipe.evaluate:
        models = tuple(model for model in recipe.evaluate.models if model not in gone)
        if not models:
            first, why = next(iter(gone.items()))
            raise UserError(f"evaluate.models: none of them can be trained with the data at hand. {first}: {why}")
        changes["evaluate"] = recipe.evaluate.model_copy(update={"models": models})
    if recipe.gate and {recipe.gate.candidate, recipe.gate.against} & set(gone):
        changes["gate"] = None
    return recipe.model_copy(update=changes), gone


def _unreachable(stage: TrainStage, sources: Sources) -> str | None:
    """Why the stage's data or judges cannot be reached, on one line; None where they can."""
    recipe = sources.recipe
    try:
        if not (isinstance(stage, DpoStage) and stage.from_raft):  # those pairs come from an earlier stage
            stage_rows(stage, sources.for_stage())
        if isinstance(stage, RaftStage):
            make = judge_maker(stage, recipe.train, lambda name: name)
            for judge in stage.judges:
                if judge not in recipe.train:
                    _ = make(judge).identity
    except (UserError, EnvironmentFault) as error:
        return " ".join(str(error).split())
    return None
