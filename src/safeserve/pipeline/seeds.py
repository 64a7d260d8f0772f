"""The same training with other seeds: how far chance alone moves a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from safeserve.core.errors import UserError, did_you_mean
from safeserve.pipeline.train_stages import DpoStage, TrainStage, with_parents


def repeat_name(name: str, seed: int) -> str:
    """The name of a stage repeated with another seed."""
    return f"{name}-seed{seed}"


def repeated(stages: Mapping[str, TrainStage], names: Iterable[str], seeds: Sequence[int]) -> dict[str, TrainStage]:
    """The stages, followed by copies of those in ``names`` and of all that they start from, one for each seed.

    What scores answers is shared, reward models too: the instrument must not change with the seed.

    Args:
        seeds: of the copies, not of the stages themselves.
    """
    wanted = with_parents(stages, names, judges=False)
    made = dict(stages)
    for seed in seeds:
        for name in stages:
            if name in wanted:
                made[repeat_name(name, seed)] = _copy(stages[name], name, wanted, seed)
    return made


def require_repeats(stages: Mapping[str, TrainStage], where: str) -> None:
    """Every ``repeats`` names an earlier stage of the same method that is no repetition itself.

    Raises:
        UserError: one does not.
    """
    known: dict[str, TrainStage] = {}
    for name, stage in stages.items():
        if stage.repeats is not None:
            original = known.get(stage.repeats)
            if original is None:
                raise UserError(
                    f'{where}: train.{name}.repeats: no earlier stage "{stage.repeats}".'
                    f"{did_you_mean(stage.repeats, known)}"
                )
            if original.method != stage.method or original.repeats is not None:
                raise UserError(
                    f"{where}: train.{name}.repeats: {stage.repeats} is "
                    + (f"a repetition of {original.repeats}." if original.repeats else f"method {original.method}.")
                )
        known[name] = stage


def _copy(stage: TrainStage, name: str, wanted: set[str], seed: int) -> TrainStage:
    changes: dict[str, object] = {"seed": seed, "repeats": name}
    if stage.start in wanted:
        changes["start"] = repeat_name(stage.start, seed)
    if isinstance(stage, DpoStage) and stage.from_raft in wanted:
        changes["pairs"] = repeat_name(stage.pairs, seed)
    return stage.model_copy(update=changes)
