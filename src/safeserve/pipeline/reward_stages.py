"""The stages of a recipe that train reward and cost models: which pairs each one takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safeserve.pipeline.stage_options import StageOptions
from safeserve.training.reward_options import CostOptions, RewardOptions


class RewardStage(StageOptions, RewardOptions):
    """A reward model: which pairs, and how to train on them. It judges; it is no model that answers."""

    method: Literal["reward"]
    pairs: str
    """Source of preference pairs."""
    n_pairs: int | None = Field(None, ge=1)
    """How many, drawn with the seed; all when not given."""
    preference: Literal["auto", "better", "safer"] = "auto"
    """Which published preference to learn where the data have two; auto: better where published, else safer."""


class CostStage(StageOptions, CostOptions):
    """A cost model: which pairs, and how to train on them; it learns the safer preference and the safety labels."""

    method: Literal["cost"]
    pairs: str
    """Source of preference pairs with safety labels of both answers."""
    n_pairs: int | None = Field(None, ge=1)
    """How many, drawn with the seed; all when not given."""


SCORERS = (RewardStage, CostStage)
"""Stages whose result scores answers and writes none."""
