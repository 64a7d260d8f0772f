"""A RAFT stage of a recipe: its judges, some of which the recipe trains itself, and its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.errors import UserError, did_you_mean, placed
from safeserve.core.extensions import source_hash
from safeserve.core.options import stable_hash
from safeserve.core.runs import read_json, sha256_file
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Judge, Score
from safeserve.judging.registry import GENERAL, KINDS, LOWER_IS_BETTER, family, is_own, make_judge
from safeserve.pipeline.reward_stages import SCORERS, CostStage
from safeserve.pipeline.train_stages import RaftStage, TrainStage
from safeserve.training.raft_options import RAFT_CODE

if TYPE_CHECKING:
    from safeserve.pipeline.training import Workshop
    from safeserve.training.raft_prompts import Pools


@dataclass
class Untrained:
    """Stands for the judge that a stage will train, while a recipe is checked."""

    name: str
    identity: str

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """Nothing can be scored yet."""
        return [Score(None, None, reason="not trained yet")] * len(items)


class CostGuard:
    """A cost model as a guard: it is trained so that sigmoid(cost) is the probability that an answer is unsafe."""

    def __init__(self, name: str, cost: Judge) -> None:
        """``cost``: a reward judge whose value is the cost itself."""
        self.name, self.cost = f"guard-{name}", cost
        self.identity = stable_hash(["cost guard", cost.identity])

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """P(unsafe), and the label that a cost of 0 divides."""
        return [self._score(score) for score in self.cost.score(items)]

    def _score(self, score: Score) -> Score:
        if score.value is None:
            return score
        return replace(score, value=1 / (1 + math.exp(-score.value)), label="unsafe" if score.value > 0 else "safe")


def check_judges(stage: RaftStage, stages: Mapping[str, TrainStage], known: Sequence[str], where: str) -> None:
    """Check the judges of a stage before anything runs.

    Args:
        known: models that are there when the stage begins.

    Raises:
        UserError: no such judge, one that cannot do what it is named for, or a held-out judge that selects.
    """
    from safeserve.training.raft_samples import Panel
    from safeserve.training.selection import own_rule

    def make(name: str) -> Judge:
        if name not in stages:
            return make_judge(name)
        if name not in known or not isinstance(stages[name], SCORERS):
            fitting = [other for other in known if isinstance(stages.get(other), SCORERS)]
            raise UserError(
                f'"{name}" is no earlier stage that trains a reward or cost model.{did_you_mean(name, fitting)}'
            )
        return Untrained(f"{'guard' if name == stage.guard else 'reward'}-{name}", f"stage {name}")

    with placed(where):
        panel = Panel.of(stage, make)
        for name, weight in stage.weights.items():
            group = family(panel.judges[name].name)
            if weight > 0 and group in LOWER_IS_BETTER:
                raise UserError(
                    f"reward: {name} gives {LOWER_IS_BETTER[group]}; lower is better, so a positive weight rewards the "
                    f"worst answers. Write reward: {{{name}: -1.0}}."
                )
            if stage.labelled_pairs and group in KINDS and group not in GENERAL:
                raise UserError(
                    f"labelled_pairs: {name} compares an answer with a written one, and pairs bring none, so none of "
                    "them could be scored. Remove labelled_pairs, or name a reward that reads the answer alone."
                )
        if stage.guard and family(panel.judges[stage.guard].name) != "guard" and not is_own(stage.guard):
            raise UserError(f"guard: {stage.guard} gives no P(unsafe). Name a judge of the family guard.")
        if stage.guard in stages and not isinstance(stages[str(stage.guard)], CostStage):
            raise UserError(f"guard: {stage.guard} is a reward model. A cost model can be a guard.")
        tells = family(panel.judges[stage.held_out_judge].name) in ("refusal", "modes", "guard")
        if not tells and not is_own(stage.held_out_judge):
            raise UserError(
                f"held_out_judge: {stage.held_out_judge} does not say what is unsafe. Name refusal, modes or a guard."
            )
        if is_own(stage.rule):
            own_rule(stage.rule)


def judge_maker(
    stage: RaftStage, stages: Mapping[str, TrainStage], folder_of: Callable[[str], str]
) -> Callable[..., Judge]:
    """Makes the judges of a stage by the names that it has for them.

    Args:
        folder_of: where a stage of the recipe has saved its model.
    """

    def make(name: str) -> Judge:
        if name not in stages:
            return make_judge(name)
        from safeserve.judging.reward import RewardJudge, RewardOptions

        cost = isinstance(stages[name], CostStage)
        if name == stage.guard:
            return CostGuard(name, RewardJudge(f"reward-{name}", RewardOptions(model=folder_of(name))))
        return RewardJudge(f"reward-{name}", RewardOptions(model=folder_of(name), invert=cost))

    return make


def raft_inputs(stage: RaftStage, stages: Mapping[str, TrainStage], folder_of: Callable[[str], str]) -> dict[str, Any]:
    """What a RAFT stage's result depends on beside its options and data: judges, an own rule's code, our own."""
    make = judge_maker(stage, stages, folder_of)
    return {
        "judges": [[judge, make(judge).identity] for judge in stage.judges],
        "raft": RAFT_CODE,
        **({"rule": source_hash(stage.rule)} if is_own(stage.rule) else {}),
    }


def train_raft(stage: RaftStage, pools: Pools, out: Path, folder: Path, shop: Workshop) -> dict[str, Any]:
    """Run a RAFT stage and return its metrics."""
    from safeserve.training.raft import run_raft

    shop.forget()  # it loads what it needs, one model at a time
    result = run_raft(
        shop.load_named,
        shop.model_name(stage.start),
        pools,
        stage,
        out,
        seed=shop.seed,
        work=folder,
        make=judge_maker(stage, shop.stages, shop.model_name),
        costs=shop.costs,
        say=shop.say,
        quiet=shop.quiet,
    )
    return {**result.metrics, **({"picks_sha256": _picks(stage)} if stage.picks else {})}


def check_picks(stage: TrainStage, folder: Path) -> None:
    """What people picked must still be what a finished stage has learned.

    Raises:
        UserError: the file has changed.
    """
    if not isinstance(stage, RaftStage) or not stage.picks:
        return
    if read_json(folder / "metrics.json").get("picks_sha256") != _picks(stage):
        raise UserError(
            f"{stage.picks}: has changed since {folder} was made. Restore it, or choose another run with --name."
        )


def _picks(stage: RaftStage) -> str | None:
    path = Path(stage.picks or "").expanduser()
    return sha256_file(path) if path.exists() else None
