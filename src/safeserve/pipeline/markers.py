"""What every stage of a run depends on: the same account for a run, which refuses what is stale, and for its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeserve import __version__
from safeserve.core.options import stable_hash
from safeserve.core.runs import Stage
from safeserve.evaluation.benchmarks import Benchmark
from safeserve.judging.registry import make_judge
from safeserve.models.loading import default_device, identity_of, resolve_dtype
from safeserve.pipeline.raft import raft_inputs
from safeserve.pipeline.recipe import Recipe
from safeserve.pipeline.rows import Sources
from safeserve.pipeline.train_stages import RaftStage, TrainStage, parents

CODE = 1
"""Raised when a stage would produce something else from the same inputs, so that old results are seen as stale."""


@dataclass
class Markers:
    """The markers of a run's stages, in the order of the run, for each hash is an input of what is made from it.

    Attributes:
        hashes: of "base" and of every training stage so far.
    """

    recipe: Recipe
    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """What models of this run compute in; "served" where a server answers, for it tells nobody."""
        return "served" if self.recipe.server else resolve_dtype(self.recipe.dtype, default_device())

    def begin(self, served: object = None) -> None:
        """Take up the base model; ``served`` is what a server told of it.

        Raises:
            SafeserveError: the model is not here.
        """
        identity = stable_hash(served) if served is not None else identity_of(self.recipe.model, self.recipe.template)
        self.hashes["base"] = stable_hash([identity, self.dtype])

    def source_of(self, name: str) -> str:
        """What :func:`safeserve.models.loading.load` takes for a model of this run."""
        return self.recipe.model if name == "base" else str(self.folder / "models" / name)

    def training(self, name: str, sources: Sources) -> Stage:
        """A training stage's; ``sources`` have been read for it."""
        options: TrainStage = self.recipe.train[name]
        told = options.model_dump(mode="json", exclude={"seed", "repeats"})  # seed: below, as it acts
        inputs = {
            **{f"train.{name}.{key}": value for key, value in told.items()},
            **{f"data {source}": part["identity"] for source, part in sources.account.items()},
            "seed": self.recipe.seed_of(options),
            "quantize": self.recipe.quantize,
            **{f"model {parent}": self.hashes[parent] for parent in parents(options, self.hashes)},
        }
        if isinstance(options, RaftStage):
            inputs |= raft_inputs(options, self.recipe.train, self.source_of)
        return self._stage(f"train-{name}", inputs)

    def evaluation(self, name: str, benchmarks: Iterable[Benchmark], identities: Mapping[str, str]) -> Stage:
        """An evaluation's, of the model ``name`` on benchmarks whose prompts have these identities."""
        options = self.recipe.evaluate
        assert options is not None
        inputs = {
            "evaluate.suite": [benchmark.declaration for benchmark in benchmarks],
            "evaluate.judges": [[judge, make_judge(judge).identity] for judge in options.judges],
            "evaluate.limit": options.limit,
            "evaluate.sampling": options.sampling.model_dump(),
            "seed": self.recipe.seed,
            f"model {name}": self.hashes[name],
            **{f"data {benchmark}": identity for benchmark, identity in identities.items()},
        }
        return self._stage(f"eval-{name}", inputs)

    def _stage(self, label: str, inputs: dict[str, Any]) -> Stage:
        return Stage(self.folder / "stages" / label, {**inputs, "safeserve": [__version__, CODE]})
