"""Options of SIT and DPO; importing this needs no torch, so that recipes are checked fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from safeserve.core.errors import UserError
from safeserve.core.options import Options


def default_token_budget(device: str, dtype: str) -> int:
    """Tokens in a micro-batch where the recipe does not say: on a CPU, as many as keep their activations in 1.4 GB."""
    if device != "cpu":
        return 16384
    return 2048 if dtype == "bfloat16" else 1024


class TrainOptions(Options):
    """What SIT and DPO share."""

    full: bool = False
    """Train all weights (kept in float32 while training) instead of a LoRA adapter."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapter's matrices."""
    lora_alpha: float = Field(32, gt=0)
    """The adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    lora_targets: str | tuple[str, ...] = "all-linear"
    """Layers that get an adapter: every linear layer but the head, or a list of layer names such as q_proj."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate."""
    epochs: int = Field(1, ge=1)
    """Passes over the training rows, each in a new random order."""
    batch_size: int = Field(16, ge=1)
    """Rows (SIT) or pairs (DPO) in an optimiser step; only the last step of an epoch may have fewer."""
    token_budget: int | None = Field(None, ge=1)
    """Tokens in a micro-batch (default: 1024 on a CPU, 2048 there in bfloat16, 16384 on a GPU): speed and memory."""
    max_length: int = Field(1024, ge=2)
    """Rows longer than this many tokens (or than the model's positions) are left out and named, never cut."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay (not on norms and biases)."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice; about a third slower."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows set apart to measure a validation loss (when no validation rows are given)."""
    eval_steps: int | None = Field(None, ge=1)
    """Validation loss every this many steps; it is always measured at the end."""
    checkpoint_steps: int | None = Field(50, ge=1)
    """A checkpoint every this many steps, from which a killed run resumes; null for none."""
    save: Literal["adapter", "merged"] = "adapter"
    """Save the adapter alone (small; needs its parent) or the model with the adapter merged."""

    @model_validator(mode="after")
    def _no_ignored_lora(self) -> Self:
        adapter_only = {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
        if self.full and (ignored := sorted(adapter_only & self.changed())):
            raise UserError(f"{', '.join(ignored)}: would be ignored, because full: true trains without an adapter.")
        if self.full and self.save == "adapter" and "save" in self.model_fields_set:
            raise UserError("save: adapter needs an adapter, and full: true trains without one. Use save: merged.")
        return self


class SitOptions(TrainOptions):
    """Options of safety-tuned supervised fine-tuning."""


class DpoOptions(TrainOptions):
    """Options of direct preference optimisation."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(8, ge=1)
    """Pairs in an optimiser step; only the last step of an epoch may have fewer."""
    loss: Literal["dpo", "ipo", "safedpo"] = "dpo"
    """dpo (Rafailov et al. 2023), ipo (Azar et al. 2023) or safedpo (Kim et al. 2025; needs safety labels)."""
    beta: float = Field(0.1, gt=0)
    """Tie to the reference: higher keeps the policy closer to it. For ipo it is tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """cDPO: the assumed share of pairs whose preference is wrong. Only with loss: dpo."""
    delta: float = Field(0.0, ge=0)
    """SafeDPO's offset: extra margin asked of pairs with a safe chosen and an unsafe rejected response."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the mean negative log-likelihood a token of the chosen response, added to the loss."""

    @model_validator(mode="after")
    def _no_ignored_loss_option(self) -> Self:
        if self.label_smoothing and self.loss != "dpo":
            raise UserError(f"label_smoothing: would be ignored by loss: {self.loss}. Remove it, or use loss: dpo.")
        if self.delta and self.loss != "safedpo":
            raise UserError(f"delta: would be ignored by loss: {self.loss}. Remove it, or use loss: safedpo.")
        return self


class OwnPairOptions(Options):
    """How the start model is sampled for pairs of its own (``starter/pairs``)."""

    sample_temperature: float = Field(0.8, gt=0)
    """``starter/pairs`` only: temperature of the start model's own samples."""
    sample_tokens: int = Field(64, ge=1)
    """``starter/pairs`` only: their longest length in tokens."""


class GuardTraining(TrainOptions):
    """How a guard is trained: of the options of SIT and DPO those that act."""

    epochs: int = Field(2, ge=1)
    """Passes over the training rows, each in a new random order."""
    batch_size: int = Field(32, ge=1)
    """Answers (or pairs) in an optimiser step."""
    token_budget: int | None = Field(2048, ge=1)
    """Padded tokens in a micro-batch."""
    checkpoint_steps: int | None = Field(100, ge=1)
    """A checkpoint every this many steps, from which a killed training resumes; null for none."""

    @model_validator(mode="after")
    def _no_ignored_option(self) -> Self:
        acting = {"lora_rank", "lora_alpha", "learning_rate", "epochs", "batch_size", "token_budget", "warmup_ratio"}
        acting |= {"schedule", "max_grad_norm", "weight_decay", "checkpoint_steps"}
        if ignored := sorted(self.model_fields_set - acting):
            raise UserError(f"{', '.join(ignored)}: would be ignored in the training of a guard. Remove it.")
        return self


class GuardRecipe(Options):
    """What a guard learns from, and how. One file of the recipes folder."""

    name: str
    licence: str
    """Of the guard file: it follows from the strictest of its sources."""
    sources: dict[str, int | None] = Field(min_length=1)
    """Labelled set to the most rows of it, drawn with the seed; null takes all."""
    held_out: tuple[str, ...] = ()
    """Labelled sets it is tested on: rows with one of their prompts are left out of training."""
    validation_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the prompts kept for calibration."""
    sensitivity: float = Field(0.9, gt=0, lt=1)
    """Share of the held-out unsafe answers that the threshold must catch: for a gate a miss costs more than a false
    alarm."""
    pair_weight: float = Field(0.5, ge=0)
    """Weight of a preference pair (worse answer above better one) beside a labelled answer."""
    depth: int = Field(20, ge=2)
    """Layers of the embedded model that the guard keeps."""
    adapted_from: int = Field(10, ge=0)
    """First layer that learns; the states below it are computed once."""
    window_tokens: int = Field(128, ge=16)
    """Tokens of an answer read at a time."""
    prompt_tokens: int = Field(96, ge=8)
    """Of a longer prompt the last ones are read."""
    seed: int = 7
    """Draws the rows, splits the prompts, orders the steps."""
    training: GuardTraining = GuardTraining()
    """Steps, rates, checkpoints."""
