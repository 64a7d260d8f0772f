"""Direct preference optimisation, with cDPO, IPO, SafeDPO and an SFT term as options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safeserve.core.errors import UserError
from safeserve.data.records import PreferencePair
from safeserve.training.batches import Row
from safeserve.training.options import DpoOptions
from safeserve.training.run import Training, TrainResult

if TYPE_CHECKING:
    from torch import Tensor

    from safeserve.models.loading import LoadedModel
    from safeserve.training.losses import PairLogps
    from safeserve.training.policy import Policy

__all__ = ["DpoObjective", "DpoOptions", "EncodedPair", "TrainResult", "order_by_safety", "train_dpo"]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """Token rows of a pair; ``offset`` is the extra margin that SafeDPO asks of it."""

    chosen: Row
    rejected: Row
    offset: float = 0.0


class DpoObjective:
    """A preference loss, a mean over the pairs of the optimiser step.

    Args:
        reference: summed response log-probabilities of chosen and rejected under the step-0 policy, by pair.
    """

    def __init__(self, options: DpoOptions, reference: dict[EncodedPair, tuple[float, float]]) -> None:
        self.options = options
        self.reference = reference

    def rows(self, item: EncodedPair) -> Sequence[Row]:
        """Chosen and rejected."""
        return [item.chosen, item.rejected]

    def weight(self, item: EncodedPair) -> int:
        """One pair."""
        return 1

    def loss(self, policy: Policy, items: Sequence[EncodedPair]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over pairs; beside it the implicit rewards, their margin and how often chosen wins."""
        import torch

        from safeserve.training.losses import PairLogps, implicit_rewards

        sums = policy.response_logps([pair.chosen for pair in items] + [pair.rejected for pair in items]).sums()
        current = PairLogps(*sums.chunk(2))
        reference = PairLogps(*torch.tensor([self.reference[pair] for pair in items], device=sums.device).unbind(1))
        rewards = implicit_rewards(current, reference, self.options.beta)
        statistics = {
            "reward_chosen": rewards.chosen.sum(),
            "reward_rejected": rewards.rejected.sum(),
            "margin": (rewards.chosen - rewards.rejected).sum(),
            "accuracy": (rewards.chosen > rewards.rejected).float().sum(),
        }
        return self.pair_losses(current, reference, items).sum(), statistics

    def pair_losses(self, current: PairLogps, reference: PairLogps, items: Sequence[EncodedPair]) -> Tensor:
        """The loss of each pair that the options name, shape [pairs]."""
        import torch

        from safeserve.training.losses import PairLogps, chosen_nll_loss, dpo_loss, ipo_loss, safedpo_loss

        options = self.options
        device = current.chosen.device
        lengths = PairLogps(
            torch.tensor([pair.chosen.response_length for pair in items], device=device),
            torch.tensor([pair.rejected.response_length for pair in items], device=device),
        )
        if options.loss == "ipo":
            losses = ipo_loss(current, reference, lengths, options.beta)
        elif options.loss == "safedpo":
            offset = torch.tensor([pair.offset for pair in items], device=device)
            losses = safedpo_loss(current, reference, options.beta, offset)
        else:
            losses = dpo_loss(current, reference, options.beta, options.label_smoothing)
        if options.sft_weight:
            losses = losses + options.sft_weight * chosen_nll_loss(current, lengths)
        return losses


def order_by_safety(pair: PreferencePair) -> PreferencePair:
    """SafeDPO's reordering (Kim et al. 2025): a safe response is preferred to an unsafe one; else order is kept.

    Raises:
        UserError: a safety label is missing.
    """
    if pair.chosen_safe is None or pair.rejected_safe is None:
        raise UserError(
            f"pair {pair.id}: loss: safedpo needs chosen_safe and rejected_safe, and one is missing. "
            "Use data with safety labels (such as PKU-SafeRLHF), or loss: dpo."
        )
    if pair.rejected_safe and not pair.chosen_safe:
        return replace(pair, chosen=pair.rejected, rejected=pair.chosen, chosen_safe=True, rejected_safe=False)
    return pair


def train_dpo(
    model: LoadedModel,
    pairs: Sequence[PreferencePair],
    options: DpoOptions,
    out: Path,
    *,
    seed: int,
    validation: Sequence[PreferencePair] | None = None,
    parent: str,
    work: Path | None = None,
) -> TrainResult:
    """Train ``model`` on preference pairs and save the result to ``out``.

    The reference is ``model`` as given (an adapter it was loaded from is merged): its log-probabilities are computed
    once before training and kept in ``work/reference``. Otherwise as :func:`safeserve.training.sit.train_sit`.

    Raises:
        UserError: no usable pairs, contradicting options, missing safety labels, or ``work`` belongs to a training
            with other inputs.
    """
    if options.loss == "safedpo":
        ordered = [order_by_safety(pair) for pair in pairs]
        swapped = sum(new is not old for new, old in zip(ordered, pairs, strict=True))
        pairs = ordered
        validation = [order_by_safety(pair) for pair in validation] if validation else None

    def encode(pair: PreferencePair) -> EncodedPair:
        unsafe_loses = options.loss == "safedpo" and pair.chosen_safe and not pair.rejected_safe
        return EncodedPair(
            chosen=Row.of(model.chat.render(pair.messages, pair.chosen), pair.meta.get("chosen_complete", True)),
            rejected=Row.of(model.chat.render(pair.messages, pair.rejected), pair.meta.get("rejected_complete", True)),
            offset=options.delta if unsafe_loses else 0.0,
        )

    training: Training[PreferencePair, EncodedPair] = Training(
        method="dpo",
        model=model,
        options=options,
        encode=encode,
        rows=lambda pair: [pair.chosen, pair.rejected],
        objective=lambda policy, items, work: _with_reference(options, policy, items, work),
        out=out,
        parent=parent,
        seed=seed,
        work=work,
    )
    result = training.run(pairs, validation)
    if options.loss == "safedpo":
        result.metrics["reordered_pairs"] = swapped
    return result


def _with_reference(options: DpoOptions, policy: Policy, pairs: Sequence[EncodedPair], work: Path) -> DpoObjective:
    from safeserve.training.reference import check_step_zero, reference_logps

    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    logps = reference_logps(policy, rows, work / "reference")
    cheapest = 2 * min(range(len(pairs)), key=lambda n: pairs[n].chosen.length + pairs[n].rejected.length)
    check_step_zero(policy, rows[cheapest : cheapest + 2], logps[cheapest : cheapest + 2])
    return DpoObjective(
        options,
        {pair: (chosen, rejected) for pair, (chosen, rejected) in zip(pairs, logps.view(-1, 2).tolist(), strict=True)},
    )
