"""Options of RAFT and iterative DPO; importing this needs no torch, so that recipes are checked fast."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from safeserve.core.errors import UserError, did_you_mean
from safeserve.training.options import DpoOptions, SitOptions
from safeserve.training.selection import RULES

RAFT_CODE = 2
"""Raised when the same inputs would end in other picks, numbers or stops, so that old results are seen as stale."""


class RaftOptions(DpoOptions):
    """Sample, score, select, learn, again: RAFT (``update: sit``) or iterative DPO (``update: dpo``)."""

    update: Literal["sit", "dpo"] = "sit"
    """What is learned from an iteration: the picked samples (sit), or the picked against the worst ones (dpo)."""
    iterations: int = Field(5, ge=1, le=100)
    """How often; each one samples the policy that the one before it made."""
    prompts_per_iteration: int = Field(100, ge=1)
    """Prompts that are sampled in an iteration (B), drawn with the seed, without replacement as long as they last."""
    harmful_share: float = Field(0.5, ge=0, le=1)
    """Share of harmful prompts among them."""
    samples_per_prompt: int = Field(8, ge=2)
    """Answers to each prompt (K)."""
    sample_temperature: float = Field(0.85, gt=0)
    """Temperature of the samples."""
    sample_top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus of the samples."""
    sample_tokens: int = Field(120, ge=1)
    """Longest sample in tokens. One that is cut off there is learned without an end token."""
    reward: str | dict[str, float] | None = None
    """The judge whose value is maximised, or judges with weights; higher is better, so a guard's weight is negative."""
    guard: str | None = None
    """The judge that gives P(unsafe): for ``rule: constrained``, ``combine: switch`` and the coverage curve."""
    combine: Literal["weights", "switch"] = "weights"
    """weights: the weighted sum; switch: Llama 2's, safety where the prompt is harmful or the answer too unsafe."""
    rule: str = "top1"
    """Which samples are picked: top1, topk, threshold, constrained, human, or ``module:object`` for an own rule."""
    top_share: float | None = Field(None, gt=0, lt=1)
    """``topk``: share that is picked of the samples that can be (scored, not empty, equal texts of a prompt once)."""
    top_count: int | None = Field(None, ge=1)
    """``topk``: number of samples that is picked."""
    at_least: float | None = Field(None, allow_inf_nan=False)
    """``threshold``: the reward that a sample must reach."""
    tau: float = Field(0.5, ge=0, le=1)
    """With a guard: the highest P(unsafe) of a sample that counts as safe; ``constrained`` picks among those only."""
    resample: int = Field(0, ge=0, le=10)
    """``constrained``: so many more rounds of samples for prompts without a safe one, before they are dropped."""
    drop_refusals: bool = False
    """``constrained``: samples that refuse a benign prompt in full, by the refusal rules, are not picked either."""
    picks: str | None = None
    """``human``: JSON lines with a prompt's id and the picked sample's number (k) or text."""
    held_out_judge: str = "refusal"
    """Who says what is safe when selection and policy are watched; never one that gives the reward or P(unsafe)."""
    held_out_prompts: int = Field(40, ge=4)
    """Prompts kept out of the training, in the same proportion, on which every iteration's policy is measured."""
    kl_samples: int = Field(32, ge=0)
    """Answers, each to another held-out prompt (so at most as many as those are), from which the policy's KL divergence
    from the start is estimated; 0 leaves that out."""
    labelled_pairs: str | None = None
    """Source of preference pairs on which the reward's accuracy is measured before training."""
    n_labelled_pairs: int = Field(200, ge=10)
    """At most so many of them, drawn with the seed."""

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        if rule not in RULES and ":" not in rule:
            raise UserError(f'rule: unknown rule "{rule}".{did_you_mean(rule, RULES)}')
        return rule

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given, rule = self.changed(), self.rule
        if rule != "human" and not self.weights:
            raise UserError("reward: is missing. Name a judge, or judges with weights.")
        if rule == "human" and self.picks is None:
            raise UserError("picks: is missing. rule: human needs the file of what people picked.")
        if rule == "topk" and (self.top_share is None) == (self.top_count is None):
            raise UserError("rule: topk needs one of top_share and top_count.")
        if rule == "threshold" and self.at_least is None:
            raise UserError("at_least: is missing. rule: threshold needs the reward that a sample must reach.")
        if self.guard is None and (rule == "constrained" or self.combine == "switch"):
            raise UserError("guard: is missing. It gives P(unsafe), which this rule needs.")
        own = {"topk": {"top_share", "top_count"}, "threshold": {"at_least"}, "human": {"picks"}}
        own["constrained"] = {"resample", "drop_refusals"}
        for name, keys in own.items():
            if rule != name and (ignored := sorted(keys & given)):
                raise UserError(f"{', '.join(ignored)}: would be ignored by rule: {rule}; only {name} heeds it.")
        if "kl_samples" in given and self.kl_samples > self.held_out_prompts:
            raise UserError(
                f"kl_samples: {self.kl_samples} is more than held_out_prompts ({self.held_out_prompts}); each of them "
                "gives one answer. Lower kl_samples, or raise held_out_prompts."
            )
        if self.guard is None and "tau" in given:
            raise UserError("tau: would be ignored without a guard, which gives P(unsafe).")
        if not self.weights and (ignored := sorted({"combine", "labelled_pairs"} & given)):
            raise UserError(f"{', '.join(ignored)}: would be ignored without a reward. Remove it, or name a reward.")
        if not self.weights and self.update == "dpo":
            raise UserError("reward: is missing. update: dpo needs to know the worst sample of each prompt.")
        if "n_labelled_pairs" in given and self.labelled_pairs is None:
            raise UserError("n_labelled_pairs: would be ignored without labelled_pairs.")
        learning = set(DpoOptions.model_fields) - set(SitOptions.model_fields)
        if self.update == "sit" and (ignored := sorted(learning & given)):
            raise UserError(f"{', '.join(ignored)}: would be ignored by update: sit. Remove it, or use update: dpo.")
        if self.update == "dpo" and self.loss == "safedpo" and self.guard is None:
            raise UserError("guard: is missing. loss: safedpo needs to know which samples are safe.")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Judges of the reward with their weights; none for picks of people without a reward."""
        if self.reward is None:
            return {}
        return {self.reward: 1.0} if isinstance(self.reward, str) else dict(self.reward)

    @property
    def by_reward(self) -> bool:
        """Whether the reward alone decides which of a prompt's samples is picked; a guard or people may have a say."""
        return self.rule not in ("constrained", "human") and (self.rule in RULES or self.guard is None)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a sample must have to be picked."""
        if self.rule == "human":
            return ()
        return ("reward", "p_unsafe") if self.rule == "constrained" else ("reward",)

    def shares(self, count: int) -> tuple[int, int]:
        """How many of ``count`` prompts are harmful and benign."""
        harmful = round(count * self.harmful_share)
        return harmful, count - harmful

    def sit_options(self) -> SitOptions:
        """Options of the training on picked samples."""
        return SitOptions(**self._of(SitOptions))

    def dpo_options(self) -> DpoOptions:
        """Options of the training on pairs."""
        return DpoOptions(**self._of(DpoOptions))

    def _of(self, kind: type[SitOptions] | type[DpoOptions]) -> dict[str, object]:
        """What is set, and the two whose defaults differ between the methods."""
        always = {"learning_rate", "batch_size"}
        return {key: getattr(self, key) for key in kind.model_fields if key in self.model_fields_set | always}
