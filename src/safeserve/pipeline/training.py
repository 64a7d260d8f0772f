"""Train one stage of a recipe: load what it starts from, make the pairs that it samples itself, fit, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.costs import Costs
from safeserve.data.records import Demonstration
from safeserve.evaluation.evaluate import token_counts
from safeserve.generation.engine import Sampling, read_completions
from safeserve.models.loading import LoadedModel
from safeserve.pipeline.raft import train_raft
from safeserve.pipeline.reward_stages import CostStage, RewardStage
from safeserve.pipeline.rows import OWN_SHARES
from safeserve.pipeline.train_stages import OWN_PAIRS, DpoStage, RaftStage, SitStage, TrainStage

if TYPE_CHECKING:
    from safeserve.training.own_pairs import OwnPairs
    from safeserve.training.run import TrainResult


@dataclass(frozen=True)
class Workshop:
    """What training a stage needs of its run.

    Attributes:
        stages: the recipe's training stages.
        load: a model of the run by name, as training starts from it.
        load_named: a model by folder or name, as the recipe loads models.
        forget: lets go of the model that is in memory.
        model_name: what :func:`safeserve.models.loading.load` takes for a model of the run.
        costs: gets the seconds and tokens of the stage's parts.
        say: tells the user what is done.
    """

    seed: int
    quiet: bool
    stages: Mapping[str, TrainStage]
    load: Callable[[str], LoadedModel]
    load_named: Callable[[str], LoadedModel]
    forget: Callable[[], None]
    model_name: Callable[[str], str]
    costs: Costs
    say: Callable[[str], None]


def train_stage(options: TrainStage, rows: Any, out: Path, folder: Path, shop: Workshop) -> dict[str, Any]:
    """Train a stage on its rows, save the result to ``out`` and return its metrics.

    Args:
        rows: what :func:`safeserve.pipeline.rows.stage_rows` gives for the stage.
        folder: the stage's own folder, for checkpoints and what is sampled.
    """
    if isinstance(options, RaftStage):
        return train_raft(options, rows, out, folder, shop)
    model = shop.load(options.start)
    common: dict[str, Any] = {
        "work": folder / "checkpoints",
        "seed": shop.seed,
        "parent": shop.model_name(options.start),
    }
    own: dict[str, Any] = {}
    fit: Callable[..., TrainResult]
    if isinstance(options, SitStage):
        from safeserve.training.sit import train_sit as fit
    elif isinstance(options, RewardStage):
        from safeserve.training.reward import train_reward as fit
    elif isinstance(options, CostStage):
        from safeserve.training.reward import train_cost as fit
    else:
        from safeserve.training.dpo import train_dpo as fit

        if options.pairs == OWN_PAIRS:
            built = _own_pairs(options, rows, model, folder, shop)
            rows, own = built.pairs, {"dropped_prompts": built.dropped}
    started = time.monotonic()
    metrics = fit(model, rows, options, out, **common).metrics
    shop.costs.add("train", seconds=metrics["seconds"], tokens=metrics["tokens"])
    checked = metrics.get("validation_seconds", 0.0)
    if metrics["validation_rows"]:
        shop.costs.add("validate", seconds=checked)
    # The rest is saving, after the pass of the reference in DPO.
    rest = max(0.0, time.monotonic() - started - metrics["seconds"] - checked)
    shop.costs.add("reference" if isinstance(options, DpoStage) else "save", seconds=rest)
    return {**metrics, **own}


def _own_pairs(
    options: DpoStage, rows: dict[str, list[Demonstration]], model: LoadedModel, folder: Path, shop: Workshop
) -> OwnPairs:
    from safeserve.generation.local import LocalEngine
    from safeserve.training.own_pairs import build_own_pairs

    sampling = Sampling(
        max_new_tokens=options.sample_tokens,
        temperature=options.sample_temperature,
        top_p=0.95,
        seed=shop.seed,
    )
    safety, look_alike, helpful = (rows[source] for source in OWN_SHARES)
    target = folder / "pairs"
    with shop.costs.timed("sample"):
        built = build_own_pairs(LocalEngine(model), safety, look_alike, helpful, sampling, target, shop.quiet)
    for path in target.glob("*/completions.jsonl"):
        shop.costs.add("sample", **token_counts(read_completions(path)))
    shop.say(f"  {len(built.pairs)} pairs; {built.dropped} harmful prompts dropped (the model never complied)")
    return built
