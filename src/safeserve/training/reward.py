"""Reward and cost models: a language model's body with one output, trained on preference pairs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.core.pair_accuracy import RankedPair, accuracy, accuracy_report, better_length_rule
from safeserve.core.progress import Progress
from safeserve.data.records import Message, PreferencePair, Prompt
from safeserve.judging.hub_models import HubModel, control_names, turns_of
from safeserve.judging.reward import in_chat_template
from safeserve.training.batches import Row
from safeserve.training.reward_options import CostOptions, RewardOptions, ScorerOptions
from safeserve.training.reward_pairs import (
    Settled,
    prompt_group,
    settle,
    settle_labels,
    split_by_prompt,
    without_prompts,
)
from safeserve.training.run import Training, TrainResult

if TYPE_CHECKING:
    from torch import Tensor

    from safeserve.models.loading import LoadedModel
    from safeserve.training.policy import Policy

__all__ = ["CostOptions", "RewardOptions", "TrainResult", "train_cost", "train_reward"]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredPair:
    """A pair as token rows that begin alike.

    Attributes:
        higher, lower: the answer whose score should be the higher one, and the other.
        margin: by how much at least (reward models).
        signs: +1 for an unsafe answer, -1 for a safe one, in that order (cost models); zeros where it is not asked.
        lengths: characters of the answers.
        group: the prompt.
    """

    higher: Row
    lower: Row
    margin: float
    signs: tuple[int, int]
    lengths: tuple[int, int]
    group: str

    @property
    def rows(self) -> list[Row]:
        """Both rows."""
        return [self.higher, self.lower]


class _PairObjective:
    """What both objectives share.

    Attributes:
        validated: both scores of the pairs of a validation, as the policy scored them last.
    """

    def __init__(self) -> None:
        self.validated: dict[ScoredPair, tuple[float, float]] = {}

    def rows(self, item: ScoredPair) -> Sequence[Row]:
        """The answer that should score higher, and the other one."""
        return item.rows

    def weight(self, item: ScoredPair) -> int:
        """One pair."""
        return 1

    def scores(self, policy: Any, items: Sequence[ScoredPair]) -> tuple[Tensor, Tensor]:
        """Scores of the answers that should be higher, and of the others, each [pairs]."""
        import torch

        higher, lower = policy.scores([pair.higher for pair in items] + [pair.lower for pair in items]).chunk(2)
        if not torch.is_grad_enabled():
            self.validated.update(zip(items, zip(higher.tolist(), lower.tolist(), strict=True), strict=True))
        return higher, lower


class RewardObjective(_PairObjective):
    """Bradley-Terry with margins and centring, a mean over the pairs of the optimiser step."""

    def __init__(self, centring: float) -> None:
        super().__init__()
        self.centring = centring

    def loss(self, policy: Any, items: Sequence[ScoredPair]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over pairs; beside it both rewards, their difference and how often chosen wins."""
        import torch

        from safeserve.training.reward_losses import bradley_terry_loss, centring_loss

        chosen, rejected = self.scores(policy, items)
        margins = torch.tensor([pair.margin for pair in items], device=chosen.device)
        losses = bradley_terry_loss(chosen, rejected, margins)
        if self.centring:
            losses = losses + self.centring * centring_loss(chosen, rejected)
        return losses.sum(), {
            "reward_chosen": chosen.sum(),
            "reward_rejected": rejected.sum(),
            "margin": (chosen - rejected).sum(),
            "accuracy": (chosen > rejected).float().sum(),
        }


class CostObjective(_PairObjective):
    """Bradley-Terry on (more harmful, less harmful) and the sign loss of both answers (Safe RLHF)."""

    def loss(self, policy: Any, items: Sequence[ScoredPair]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over pairs; beside it both costs, how often they are in order and how often their signs are right."""
        import torch

        from safeserve.training.reward_losses import bradley_terry_loss, sign_loss

        costs = torch.stack(self.scores(policy, items))
        signs = torch.tensor([pair.signs for pair in items], device=costs.device).t()
        more, less = costs
        losses = bradley_terry_loss(more, less) + sign_loss(costs, signs).sum(0)
        return losses.sum(), {
            "cost_more_harmful": more.sum(),
            "cost_less_harmful": less.sum(),
            "accuracy": (more > less).float().sum(),
            "sign_accuracy": (costs * signs > 0).float().mean(0).sum(),
        }


def train_reward(
    model: LoadedModel,
    pairs: Sequence[PreferencePair],
    options: RewardOptions,
    out: Path,
    *,
    seed: int,
    validation: Sequence[PreferencePair] | None = None,
    parent: str,
    work: Path | None = None,
) -> TrainResult:
    """Train a reward model on preference pairs and save it to ``out`` as a Hugging Face sequence classifier.

    The answer is read as the last turn of its conversation, rendered whole by the chat template, exactly as
    :class:`safeserve.judging.reward.RewardJudge` reads it; the score is taken at the last token.

    Args:
        validation: held-out pairs; training pairs with one of their prompts are left out and counted. Without them
            ``validation_share`` of the pairs is held out, whole prompts at a time.

    Returns:
        As every training; ``model.model`` is the classifier. ``metrics`` has beside the usual ones ``held_out`` (see
        :func:`safeserve.core.pair_accuracy.accuracy_report`; None where nothing is held out), ``contradictions`` and
        ``prompts``.

    Raises:
        UserError: no usable pairs, contradicting options, or ``work`` belongs to a training with other inputs.
    """
    margins = sum(pair.margin is not None for pair in pairs)
    if options.margin and "margin" in options.model_fields_set and not margins:
        raise UserError("margin: would be ignored, because no pair has a margin. Remove it.")

    def ranked(pair: PreferencePair) -> tuple[str, str, float, tuple[int, int]]:
        return pair.chosen, pair.rejected, (pair.margin or 0.0) if options.margin else 0.0, (0, 0)

    scorer = _Scorer("reward", model, options, ranked, seed)
    objective = RewardObjective(options.center_rewards_coefficient)
    used = {"pairs_with_margin": margins if options.margin else 0}
    return scorer.train(settle, pairs, validation, objective, used, out, parent, work)


def train_cost(
    model: LoadedModel,
    pairs: Sequence[PreferencePair],
    options: CostOptions,
    out: Path,
    *,
    seed: int,
    validation: Sequence[PreferencePair] | None = None,
    parent: str,
    work: Path | None = None,
) -> TrainResult:
    """Train a cost model (Dai et al. 2023, arXiv 2310.12773): higher is more harmful, above 0 is unsafe.

    ``chosen`` must be the less harmful answer (``preference: safer``), and every pair needs both safety labels.
    Otherwise as :func:`train_reward`; ``metrics["held_out"]`` has ``sign_accuracy`` beside the accuracy of the order.

    Raises:
        UserError: also when a safety label is missing.
    """

    def ranked(pair: PreferencePair) -> tuple[str, str, float, tuple[int, int]]:
        return pair.rejected, pair.chosen, 0.0, (-1 if pair.rejected_safe else 1, -1 if pair.chosen_safe else 1)

    def agreed(given: Sequence[PreferencePair], policy: Any) -> Settled:
        labelled = settle_labels(given, policy)
        ordered = settle(labelled.pairs, policy)
        return Settled(ordered.pairs, {**ordered.report, "pairs": len(given), "labels": labelled.report})

    scorer = _Scorer("cost", model, options, ranked, seed)
    return scorer.train(agreed, pairs, validation, CostObjective(), {}, out, parent, work)


@dataclass(frozen=True)
class _Scorer:
    """What reward and cost models share.

    Attributes:
        ranked: the answer that should score higher, the other one, the margin, and the signs of both.
        ends: last tokens of the conversations seen, filled while encoding.
    """

    method: str
    model: LoadedModel
    options: ScorerOptions
    ranked: Callable[[PreferencePair], tuple[str, str, float, tuple[int, int]]]
    seed: int
    ends: set[int] = field(default_factory=set)

    def train(
        self,
        settled: Callable[[Sequence[PreferencePair], Any], Settled],
        pairs: Sequence[PreferencePair],
        validation: Sequence[PreferencePair] | None,
        objective: Any,
        report: dict[str, Any],
        out: Path,
        parent: str,
        work: Path | None,
    ) -> TrainResult:
        options = self.options
        if not pairs:
            raise UserError(f"{self.method}: no pair to train on.")
        if validation is None and options.eval_steps and not options.validation_share:
            raise UserError("eval_steps: would be ignored without held-out pairs. Set validation_share, or remove it.")
        if validation is not None and "validation_share" in options.model_fields_set:
            raise UserError(
                "validation_share: would be ignored, because validation pairs are given. Remove one of them."
            )
        learn = settled(pairs, options.contradictions)
        report = {**report, "contradictions": learn.report}
        _say(self.method, learn.report)
        if not learn.pairs:
            raise UserError(f"{self.method}: all {len(pairs)} pairs contradict each other or have one answer twice.")
        train: list[PreferencePair] = learn.pairs
        held: list[PreferencePair] = []
        if validation is None and options.validation_share:
            train, held = split_by_prompt(learn.pairs, options.validation_share, self.seed)
        elif validation is not None:
            told = settled(validation, options.contradictions)
            held = told.pairs
            groups = {prompt_group(pair) for pair in held}
            train = without_prompts(learn.pairs, groups)
            report |= {"validation_contradictions": told.report, "in_validation": len(learn.pairs) - len(train)}
            if not held or not train:
                side = "validation pairs contradict each other" if not held else "pairs have prompts of the validation"
                raise UserError(f"{self.method}: all {side}, so nothing is left. Give other pairs.")
        report["prompts"] = {
            "train": len({prompt_group(pair) for pair in train}),
            "held_out": len({prompt_group(pair) for pair in held}),
        }
        training = _RewardTraining(
            method=self.method,
            model=self.model,
            options=options,
            encode=self.encode,
            rows=lambda item: item.rows,
            objective=lambda policy, items, work: objective,
            pairs=objective,
            out=out,
            parent=parent,
            seed=self.seed,
            work=work,
            ends=self.ends,
            report=report,
            rule=better_length_rule([self._lengths(pair) for pair in train]),
        )
        return training.run(train, held)

    def encode(self, pair: PreferencePair) -> ScoredPair:
        higher, lower, margin, signs = self.ranked(pair)
        ids = [self._ids(pair.messages, answer) for answer in (higher, lower)]
        self.ends.update(row[-1] for row in ids)
        together = zip(*ids, strict=False)
        shared = next((at for at, (a, b) in enumerate(together) if a != b), min(map(len, ids)))
        rows = [Row(row, shared) for row in ids]
        return ScoredPair(rows[0], rows[1], margin, signs, self._lengths(pair), prompt_group(pair))

    def _ids(self, messages: Sequence[Message], answer: str) -> tuple[int, ...]:
        """The conversation as the judge reads it."""
        turns = turns_of(self._reader, Prompt("", tuple(messages), "benign"), answer)
        return tuple(in_chat_template(self.model.tokenizer, turns)["input_ids"])

    @cached_property
    def _reader(self) -> HubModel:
        loaded = self.model
        return HubModel(loaded.name, None, loaded.tokenizer, loaded.device, 0, control_names(loaded.tokenizer))

    def _lengths(self, pair: PreferencePair) -> tuple[int, int]:
        higher, lower, _, _ = self.ranked(pair)
        return len(higher), len(lower)


def _say(method: str, report: dict[str, Any]) -> None:
    labels = report.get("labels", {})
    found = {
        "pairs contradict each other": report["contradicting"],
        "pairs hold an answer with both safety labels": labels.get("pairs_with_such_answers", 0),
        "pairs prefer an answer labelled unsafe to one labelled safe": labels.get("labels_against_preference", 0),
        "pairs have the same answer twice": report["identical"],
        "pairs are repeated": report["repeated"],
    }
    told = "; ".join(f"{count} {what}" for what, count in found.items() if count)
    if told:
        print(
            f"{method}: of {report['pairs']} pairs {told}. contradictions: {report['policy']} leaves {report['used']}.",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class _RewardTraining(Training[PreferencePair, ScoredPair]):
    """A training whose policy is a scorer; ``report`` becomes part of the metrics."""

    pairs: _PairObjective = field(default_factory=_PairObjective)
    ends: set[int] = field(default_factory=set)
    report: dict[str, Any] = field(default_factory=dict)
    rule: Any = "longer"

    def _policy(self) -> Policy:
        from safeserve.training.reward_policy import RewardPolicy

        return RewardPolicy(self.model, self.options, self.seed)

    def _split(
        self, records: Sequence[PreferencePair], validation: Sequence[PreferencePair] | None
    ) -> tuple[Sequence[PreferencePair], Sequence[PreferencePair]]:
        return records, validation or []

    def _measured(self, policy: Policy, validation: Sequence[ScoredPair]) -> dict[str, Any]:
        import torch

        if not validation:
            return {**self.report, "held_out": None}
        scored = self.pairs.validated
        if unread := [pair for pair in validation if pair not in scored]:  # killed between validation and here
            policy.model.eval()
            with torch.no_grad(), Progress("accuracy", len(unread)) as progress:
                for group in policy.micro_batches(unread, lambda item: item.rows):
                    self.pairs.scores(policy, group)
                    progress.advance(len(group), sum(row.length for item in group for row in item.rows))
        ranked = [RankedPair(*scored[pair], pair.lengths, pair.group) for pair in validation]
        held_out = accuracy_report(ranked, self.rule)
        if self.method == "cost":
            right = [score * sign > 0 for p in validation for score, sign in zip(scored[p], p.signs, strict=True)]
            groups = [pair.group for pair in validation for _ in range(2)]
            held_out["sign_accuracy"] = accuracy(right, groups)
        return {**self.report, "held_out": held_out}

    def _save(self, policy: Policy) -> None:
        from safeserve.training import reward_policy

        assert isinstance(policy, reward_policy.RewardPolicy)
        reward_policy.save_reward(policy, self.out, self.parent, self.method, self.ends)

    def _kept(self) -> LoadedModel:
        from safeserve.training.reward_policy import load_reward

        return load_reward(self.out, self.model)

    def _inputs(self, items: Sequence[ScoredPair], validation: Sequence[ScoredPair]) -> dict[str, Any]:
        labels = stable_hash([[item.margin, item.signs, item.group] for item in (*items, *validation)])
        return {**super()._inputs(items, validation), "margins and labels": labels}
