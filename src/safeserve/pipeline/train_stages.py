"""The training stages of a recipe: which rows each one takes, beside the options of its method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, model_validator

from safeserve.core.errors import UserError
from safeserve.pipeline.reward_stages import CostStage, RewardStage
from safeserve.pipeline.stage_options import StageOptions
from safeserve.training.options import DpoOptions, SitOptions
from safeserve.training.raft_options import RaftOptions

OWN_PAIRS = "starter/pairs"
"""The pairs that are made from the start model's own samples."""
RAFT_PAIRS = "raft:"
"""``raft:NAME``: best against worst samples of the RAFT stage of that name."""


class SitStage(StageOptions, SitOptions):
    """SIT: which rows, and how to train on them."""

    method: Literal["sit"]
    helpful: str | None = None
    """Source of helpful demonstrations."""
    n_helpful: int | None = Field(None, ge=0)
    """How many of them, drawn with the seed; all when not given."""
    look_alike: str | None = None
    """Source of benign look-alikes with helpful answers."""
    n_look_alike: int | None = Field(None, ge=0)
    """How many of them; all when not given."""
    safety: str | None = None
    """Source of safety demonstrations."""
    dose: int | None = Field(None, ge=0)
    """How many safety demonstrations; a smaller dose is a subset of a larger one. All when not given."""


class DpoStage(StageOptions, DpoOptions):
    """DPO: which pairs, and how to train on them. The start is also the reference."""

    method: Literal["dpo"]
    pairs: str
    """Source of preference pairs; ``starter/pairs`` builds them from the start model's own samples, ``raft:NAME`` takes
    the best and worst samples of an earlier RAFT stage."""
    n_pairs: int | None = Field(None, ge=1)
    """How many, drawn with the seed; all when not given."""
    pairs_share: float | None = Field(None, gt=0, le=1)
    """Share of a source's pairs, drawn with the seed, instead of ``n_pairs``; a smaller one is a subset of a larger."""
    keep: Literal["all", "safe", "paper"] = "all"
    """paper: only pairs whose chosen response is safe and better; safe: chosen safe, rejected unsafe; all."""
    sample_temperature: float = Field(0.8, gt=0)
    """``starter/pairs`` only: temperature of the start model's own samples."""
    sample_tokens: int = Field(64, ge=1)
    """``starter/pairs`` only: their longest length in tokens."""

    @model_validator(mode="after")
    def _no_ignored_pair_option(self) -> DpoStage:
        given = self.changed()
        if self.pairs == OWN_PAIRS and "keep" in self.model_fields_set:
            raise UserError(f"keep: would be ignored by pairs: {OWN_PAIRS}, which knows what is safe. Remove it.")
        if self.pairs != OWN_PAIRS and (ignored := sorted(given & {"sample_temperature", "sample_tokens"})):
            raise UserError(f"{', '.join(ignored)}: would be ignored, because only pairs: {OWN_PAIRS} samples answers.")
        if self.pairs_share is not None and (self.n_pairs is not None or self.pairs == OWN_PAIRS or self.from_raft):
            raise UserError("pairs_share: stands in place of n_pairs, and only for pairs from a source. Remove it.")
        if self.from_raft and self.keep == "paper":
            raise UserError("keep: paper needs published preferences. Use keep: safe, or all.")
        return self

    @property
    def from_raft(self) -> str | None:
        """The RAFT stage whose samples make the pairs."""
        return self.pairs.removeprefix(RAFT_PAIRS) if self.pairs.startswith(RAFT_PAIRS) else None


class RaftStage(StageOptions, RaftOptions):
    """RAFT or iterative DPO: which prompts, and how to sample, select and learn. The start is what is sampled first."""

    method: Literal["raft"]
    harmful: str | tuple[str, ...] = ()
    """Source of harmful prompts (the prompts of demonstrations or pairs serve, too), or several."""
    benign: str | tuple[str, ...] = ()
    """Source of benign prompts, or several. Written answers serve judges that compare with a reference."""

    @model_validator(mode="after")
    def _has_prompts(self) -> RaftStage:
        for label, share in (("harmful", self.harmful_share), ("benign", 1 - self.harmful_share)):
            if share > 0 and not getattr(self, label):
                raise UserError(f"{label}: is missing. Name a source of prompts, or change harmful_share.")
            if share == 0 and getattr(self, label):
                raise UserError(f"{label}: would be ignored with harmful_share: {self.harmful_share:g}.")
        return self

    def sources(self, label: Literal["harmful", "benign"]) -> tuple[str, ...]:
        """Names of the sources of one kind of prompts."""
        given = self.harmful if label == "harmful" else self.benign
        return (given,) if isinstance(given, str) else given

    @property
    def judges(self) -> tuple[str, ...]:
        """Every judge that it names; a reward or cost stage of the recipe may be one."""
        return tuple(dict.fromkeys([*self.weights, *([self.guard] if self.guard else []), self.held_out_judge]))


TrainStage = SitStage | DpoStage | RaftStage | RewardStage | CostStage
METHODS: dict[str, type[SitStage] | type[DpoStage] | type[RaftStage] | type[RewardStage] | type[CostStage]] = {
    "sit": SitStage,
    "dpo": DpoStage,
    "raft": RaftStage,
    "reward": RewardStage,
    "cost": CostStage,
}


def parents(stage: TrainStage, names: Iterable[str], judges: bool = True) -> list[str]:
    """Which of the stages ``names`` a stage builds on.

    These are its start, the samples of a RAFT stage and, with ``judges``, the models that score for it.
    """
    wanted = {stage.start}
    if judges and isinstance(stage, RaftStage):
        wanted |= set(stage.judges)
    if isinstance(stage, DpoStage) and stage.from_raft:
        wanted.add(stage.from_raft)
    return [name for name in names if name in wanted]


def with_parents(stages: Mapping[str, TrainStage], names: Iterable[str], judges: bool = True) -> set[str]:
    """``names`` and every stage that they build on, directly or not; see :func:`parents`."""
    wanted = set(names)
    for name in reversed(list(stages)):  # a stage builds on earlier ones only
        if name in wanted:
            wanted |= set(parents(stages[name], stages, judges))
    return wanted
