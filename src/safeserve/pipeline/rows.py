"""Turn a training stage of a recipe into rows, with an account of where they came from and what was left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from safeserve.core.errors import UserError
from safeserve.core.options import seed_for, stable_hash
from safeserve.data.adapters import safe_filter
from safeserve.data.catalogue import SOURCES
from safeserve.data.checks import overlaps
from safeserve.data.mixtures import sit_mixture, stratified_sample
from safeserve.data.records import Demonstration, Label, PreferencePair, Prompt
from safeserve.data.sources import Loaded, load_any, load_demonstrations, load_pairs
from safeserve.pipeline.recipe import Recipe
from safeserve.pipeline.reward_stages import CostStage, RewardStage
from safeserve.pipeline.train_stages import OWN_PAIRS, DpoStage, RaftStage, SitStage, TrainStage
from safeserve.training.raft_prompts import Pools
from safeserve.training.raft_rows import read_pairs

OWN_SHARES = {"starter/safety": 0.42, "starter/look_alike": 0.42, "starter/helpful": 0.16}
"""Shares of the three kinds of pairs when ``n_pairs`` limits them."""
T = TypeVar("T", Demonstration, PreferencePair, Prompt)


@dataclass
class Sources:
    """Reads sources for one stage, keeping account of each.

    Attributes:
        evaluation: prompts that the run evaluates; rows whose prompt is near one of them are left out (rule H11).
        folder: the run's, where earlier stages have left pairs.
        account: source to its identity (hash), rows used of rows read, and how many were left out for which reason.
        kept: what was read before, by how it was asked for: most stages of a study read the same sources.
    """

    recipe: Recipe
    evaluation: Sequence[Prompt]
    folder: Path = Path()
    account: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[Any, tuple[Sequence[Any], dict[str, Any]]] = field(default_factory=dict)

    def for_stage(self) -> Sources:
        """The same with an empty account; what was read is shared."""
        return replace(self, account={})

    def read(self, name: str | None, load: Callable[..., Loaded[T]], as_: str = "", **options: Any) -> list[T]:
        """Usable rows of a source that are not near an evaluation prompt; none for None.

        Args:
            as_: what the account says before the source's name, where one source serves twice.
        """
        if name is None:
            return []
        asked = (name, load, *sorted(options.items()))
        if asked not in self.kept:
            data = self.recipe.data
            root = None if name in data.published else data.root
            self.kept[asked] = self._read(name, load(name, root=root, **options))
        rows, told = self.kept[asked]
        self.account[as_ + name] = {**told, "left_out": dict(told["left_out"])}
        return list(rows)

    def _read(self, name: str, loaded: Loaded[T]) -> tuple[Sequence[T], dict[str, Any]]:
        near = {index for index, _, _ in overlaps(loaded.rows, self.evaluation)}
        rows = [row for index, row in enumerate(loaded.rows) if index not in near]
        if not rows:
            raise UserError(f"{name}: every row is near an evaluation prompt, so nothing is left to train on.")
        return rows, {
            # of what is used, not only of the source: another suite may leave other rows out
            "identity": stable_hash([loaded.identity, [row.id for row in rows]]),
            "rows": len(rows),
            "left_out": {
                **loaded.excluded,
                **({"cannot be used": len(loaded.problems)} if loaded.problems else {}),
                **({"near an evaluation prompt": len(near)} if near else {}),
            },
        }


def stage_rows(stage: TrainStage, sources: Sources) -> Any:
    """What a stage works on: demonstrations, pairs, by source the demonstrations behind pairs still to be made, or for
    RAFT the prompts to sample (:class:`safeserve.training.raft_prompts.Pools`)."""
    if isinstance(stage, SitStage):
        return sit_rows(stage, sources)
    if isinstance(stage, RaftStage):
        return raft_pools(stage, sources)
    if isinstance(stage, RewardStage | CostStage):
        return scorer_pairs(stage, sources)
    if stage.from_raft:
        return raft_pairs(stage, sources)
    return (own_pair_rows if stage.pairs == OWN_PAIRS else public_pairs)(stage, sources)


def sit_rows(stage: SitStage, sources: Sources) -> list[Demonstration]:
    """The SIT mixture of a stage, shuffled with its seed."""
    seed = sources.recipe.seed_of(stage)
    helpful = sources.read(stage.helpful, load_demonstrations, kind="helpful")
    look_alike = sources.read(stage.look_alike, load_demonstrations, kind="look_alike")
    safety = sources.read(stage.safety, load_demonstrations, kind="safety")
    return sit_mixture(
        helpful=draw(helpful, stage.n_helpful, seed, "n_helpful"),
        look_alike=draw(look_alike, stage.n_look_alike, seed, "n_look_alike"),
        safety=safety,
        dose=len(safety) if stage.dose is None else stage.dose,
        seed=seed,
    )


def public_pairs(stage: DpoStage, sources: Sources) -> list[PreferencePair]:
    """Preference pairs from a source, filtered and drawn as the stage says."""
    pairs = sources.read(stage.pairs, load_pairs, keep=stage.keep)
    count = stage.n_pairs if stage.pairs_share is None else max(1, round(stage.pairs_share * len(pairs)))
    return draw(pairs, count, sources.recipe.seed_of(stage), "n_pairs")


def own_pair_rows(stage: DpoStage, sources: Sources) -> dict[str, list[Demonstration]]:
    """Demonstrations behind ``starter/pairs`` by source, stratified by category when ``n_pairs`` limits them."""
    kinds = {}
    for source, share in OWN_SHARES.items():
        rows = sources.read(source, load_demonstrations)
        count = len(rows) if stage.n_pairs is None else min(len(rows), round(stage.n_pairs * share))
        kinds[source] = stratified_sample(rows, count, key=lambda row: row.category, seed=sources.recipe.seed_of(stage))
    return kinds


def scorer_pairs(stage: RewardStage | CostStage, sources: Sources) -> list[PreferencePair]:
    """The pairs that a reward or cost model learns, ordered by the preference that the stage asks for.

    Raises:
        UserError: a preference is asked for that the data do not publish.
    """
    wanted = stage.preference if isinstance(stage, RewardStage) else "safer"
    pairs = sources.read(stage.pairs, load_pairs, prefer=wanted)
    published = any(f"chosen_is_{wanted}" in pair.meta for pair in pairs)
    if isinstance(stage, RewardStage) and wanted != "auto" and not published:
        raise UserError(
            f"{stage.pairs}: preference: {wanted} would be ignored, because these pairs have one preference only. "
            "Remove it."
        )
    return draw(pairs, stage.n_pairs, sources.recipe.seed_of(stage), "n_pairs")


def raft_pairs(stage: DpoStage, sources: Sources) -> list[PreferencePair]:
    """Best against worst samples of an earlier RAFT stage.

    Raises:
        UserError: that stage has made none.
    """
    found, identity = read_pairs(sources.folder / "stages" / f"train-{stage.from_raft}")
    pairs = [pair for pair in found if safe_filter(pair)] if stage.keep == "safe" else found
    left_out = {"not kept by keep=safe": len(found) - len(pairs)} if len(pairs) < len(found) else {}
    sources.account[stage.pairs] = {"identity": identity, "rows": len(pairs), "left_out": left_out}
    if not pairs:
        raise UserError(f"{stage.pairs}: keep: safe leaves no pair of {len(found)}; it needs the labels of a guard.")
    return draw(pairs, stage.n_pairs, sources.recipe.seed_of(stage), "n_pairs")


def raft_pools(stage: RaftStage, sources: Sources) -> Pools:
    """The prompts that a RAFT stage samples, each once, and the labelled pairs on which its reward is checked."""
    taken: set[str] = set()
    ids: set[str] = set()
    pools: dict[Label, list[Prompt]] = {"harmful": [], "benign": []}
    for label, pool in pools.items():
        for name in stage.sources(label):
            repeated = 0
            for prompt in sources.read(name, _prompts, as_=f"{label} ", label=label):
                if (key := stable_hash(list(prompt.messages))) in taken:
                    repeated += 1
                    continue
                unique = prompt if prompt.id not in ids else replace(prompt, id=f"{label}-{name}-{prompt.id}")
                taken.add(key)
                ids.add(unique.id)
                pool.append(unique)
            if repeated:
                sources.account[f"{label} {name}"]["left_out"]["prompt repeated"] = repeated
    pairs = sources.read(stage.labelled_pairs, load_pairs, as_="labelled ")
    count = min(len(pairs), stage.n_labelled_pairs)
    labelled = draw(pairs, count, sources.recipe.seed_of(stage), "n_labelled_pairs")
    return Pools(pools["harmful"], pools["benign"], labelled)


def _prompts(name: str, root: str | None, label: Label) -> Loaded[Prompt]:
    """The prompts of whatever a source holds; those that are labelled otherwise are left out."""
    known = SOURCES.get(name)
    loaded = load_any(name, root=root, label=(known.label if known else None) or label)
    rows, others = [], 0
    for row in loaded.rows:
        if isinstance(row, Prompt):
            rows += [row] if row.label == label else []
            others += row.label != label
        else:
            reference = row.response if isinstance(row, Demonstration) else None
            rows.append(Prompt(row.id, row.messages, label, row.category, loaded.source.name, reference))
    if not rows:
        raise UserError(f"{name}: holds no {label} prompts.")
    return replace(loaded, rows=rows, excluded={**loaded.excluded, **({f"not {label}": others} if others else {})})


def draw(rows: Sequence[T], count: int | None, seed: int, key: str) -> list[T]:
    """``count`` rows at random with the seed, nested: fewer are a subset of more; all rows when None."""
    if count is None:
        return list(rows)
    if count > len(rows):
        raise UserError(f"{key}: {count} asked for, and the source has {len(rows)}.")
    order = list(range(len(rows)))
    random.Random(seed_for(seed, key)).shuffle(order)
    return [rows[index] for index in order[:count]]
