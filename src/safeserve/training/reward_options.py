"""Options of reward and cost models; importing this needs no torch, so that recipes are checked fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safeserve.training.options import TrainOptions

Contradictions = Literal["drop", "keep", "majority"]


class ScorerOptions(TrainOptions):
    """What reward and cost models share."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate, of the adapter and of the head."""
    batch_size: int = Field(16, ge=1)
    """Pairs in an optimiser step; only the last step of an epoch may have fewer."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """Share of the pairs held out to measure accuracy, whole prompts at a time (when no validation pairs are given);
    with 0 nothing is measured."""
    contradictions: Contradictions = "drop"
    """Pairs that contradict each other (one says a > b, another b > a; or a > b > c > a): drop them all, keep them
    all, or let the majority of equal pairs decide (ties and longer circles are dropped)."""
    save: Literal["merged"] = "merged"
    """Saved whole, as a Hugging Face sequence classifier: transformers reads no other form as a reward model."""


class RewardOptions(ScorerOptions):
    """Options of a reward model."""

    center_rewards_coefficient: float = Field(0.01, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0 (Eisenstein et al. 2023); 0 for none."""
    margin: bool = True
    """Ask of pairs that have a ``margin`` that the rewards differ by more than it (Touvron et al. 2023)."""


class CostOptions(ScorerOptions):
    """Options of a cost model."""
