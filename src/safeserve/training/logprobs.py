"""Log-probabilities of response tokens: decoder body on all tokens, head on response tokens only, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from safeserve.models.packed import fill
from safeserve.models.prefix import SharedRow, lay_out
from safeserve.training.batches import Row, share_prompts

if TYPE_CHECKING:
    from safeserve.models.decoder import Decoder

# Elements of the one float32 [tokens, vocabulary] block that exists at a time: 64 MiB.
CHUNK_ELEMENTS = 1 << 24
# The same on a GPU, where products of a hundred rows would leave most of it idle.
CHUNK_ELEMENTS_GPU = 1 << 27
# Rows of it that are widened to float32 at a time on a CPU: what fits a core's cache.
WIDE_ROWS = 32
# Set in a config when the model changes its logits after the head; then the model computes them itself.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


@dataclass(frozen=True)
class ResponseLogps:
    """log p(token | what precedes it) of the response tokens of some rows.

    Attributes:
        values: float32, in nats, [tokens].
        owners: the row of each token, [tokens].
        rows: how many rows there are.
    """

    values: Tensor
    owners: Tensor
    rows: int

    def sums(self) -> Tensor:
        """Sum over each row's response, [rows]."""
        return torch.zeros(self.rows, dtype=self.values.dtype, device=self.values.device).index_add(
            0, self.owners, self.values
        )

    def __sub__(self, other: ResponseLogps) -> ResponseLogps:
        """Differences token by token; both must come from the same rows in the same form."""
        return ResponseLogps(self.values - other.values, self.owners, self.rows)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows.

    Attributes:
        input_ids, attention_mask: shape [rows, longest].
        predictors: positions in the flattened [rows * longest] whose output predicts a response token, [tokens].
        targets: the response tokens, [tokens], row after row.
        owners: the row of each response token, [tokens].
    """

    input_ids: Tensor
    attention_mask: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    rows: int


def collate(rows: Sequence[Row], device: torch.device | str) -> Batch:
    """Pad ``rows`` to the longest; padding is known by the mask, so any token id can be padding."""
    width = max(row.length for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, row in enumerate(rows):
        input_ids[number, : row.length] = torch.tensor(row.ids)
        attention_mask[number, : row.length] = 1
        predictors += range(number * width + row.start - 1, number * width + row.length - 1)
        targets += row.ids[row.start :]
        owners += [number] * row.response_length
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        predictors=torch.tensor(predictors, device=device),
        targets=torch.tensor(targets, device=device),
        owners=torch.tensor(owners, device=device),
        rows=len(rows),
    )


def plain_logps(model: Any, rows: Sequence[Row], device: torch.device | str) -> ResponseLogps:
    """The rows padded and run by transformers; differentiable.

    Args:
        model: a transformers causal language model, or a peft model around one.
    """
    causal, batch = causal_model(model), collate(rows, device)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if not head_is_plain(causal):
        logits = causal(**inputs).logits.flatten(0, 1)[batch.predictors]
        return ResponseLogps(_gather_logps(logits, batch.targets), batch.owners, batch.rows)
    hidden = causal.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)[batch.predictors]
    return ResponseLogps(_through_head(causal, hidden, batch.targets), batch.owners, batch.rows)


def shared_logps(model: Any, decoder: Decoder, rows: Sequence[Row], device: torch.device | str) -> ResponseLogps:
    """The same without padding, a prompt that several rows begin with computed once; differentiable.

    Args:
        model: what ``decoder`` was made from.
    """
    groups = share_prompts(rows)
    layout = lay_out([SharedRow(prompt, tuple(rows[n].response for n in group)) for prompt, group in groups], device)
    hidden = decoder.shared(layout)[layout.predictors]
    numbers = torch.tensor([n for _, group in groups for n in group], device=device)
    values = _through_head(causal_model(model), hidden, layout.targets)
    return ResponseLogps(values, numbers[layout.owners], len(rows))


def _through_head(causal: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) after each of ``hidden`` [tokens, width], float32, [tokens]."""
    head = causal.get_output_embeddings()
    elements = CHUNK_ELEMENTS if head.weight.device.type == "cpu" else CHUNK_ELEMENTS_GPU
    size = max(1, elements // head.weight.shape[0])
    if head.weight.requires_grad and torch.is_grad_enabled():
        parts = [(hidden[at : at + size], targets[at : at + size]) for at in range(0, len(hidden), size)]
        return torch.cat([checkpoint(_head_logps, part, head, goal, use_reentrant=False) for part, goal in parts])
    result: Tensor = _FrozenHead.apply(hidden, head.weight, head.bias, targets, size)  # type: ignore[no-untyped-call]
    return result


def causal_model(model: Any) -> Any:
    """The causal language model inside ``model``, with the adapter layers that peft put into it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_is_plain(causal: Any) -> bool:
    """True when logits are exactly head(body(x)): a plain linear head, and nothing done to the logits after it."""
    head = causal.get_output_embeddings()
    changed = any(getattr(causal.config, name, None) not in (None, 1, 1.0) for name in LOGIT_CHANGES)
    return type(head) is torch.nn.Linear and not changed and causal.get_decoder() is not causal


def _gather_logps(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _head_logps(hidden: Tensor, head: Any, targets: Tensor) -> Tensor:
    return _gather_logps(head(hidden), targets)


def _exponentiate(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) [tokens], and the sum [tokens, 1] of what ``logits`` become: exp(logits - their highest).

    In place, and computed in float32: a copy of all logits would cost as much as the product that made them.
    """
    rows = WIDE_ROWS if logits.device.type == "cpu" else len(logits)
    logps, totals = [], []
    for part, target in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        wide = part.float()
        reached = wide.gather(-1, target.unsqueeze(-1))
        highest = wide.amax(-1, keepdim=True)
        total = wide.sub_(highest).exp_().sum(-1, keepdim=True)
        logps.append((reached - highest - total.log()).squeeze(-1))
        totals.append(total)
        if wide is not part:
            part.copy_(wide)
    return torch.cat(logps), torch.cat(totals)


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities through a head that is not trained.

    The gradient by the hidden state, W[target] - softmax(logits) W, does not depend on what comes after, so it is
    computed at once for each chunk and the logits are dropped: neither kept for the backward pass nor made twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, size: int) -> Tensor:
        logps = hidden.new_empty(len(targets), dtype=torch.float32)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Few different numbers of rows where oneDNN keeps code for each: see Decoder.filled.
        steps = 32 if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else 0
        # One block for all chunks: fresh memory of this size costs as much as the product that fills it.
        rows = len(targets) + (fill(len(targets), steps) if steps else 0)
        block = weight.new_empty(min(size, rows), len(weight))
        for at in range(0, len(targets), size):
            part, target = hidden[at : at + size].to(weight.dtype), targets[at : at + size]
            count = len(part)
            if steps:
                part = pad(part, (0, 0, 0, min(len(block) - count, fill(count, steps))))
            logits = torch.mm(part, weight.t(), out=block[: len(part)])
            if bias is not None:
                logits.add_(bias)
            logps[at : at + size], total = _exponentiate(logits[:count], target)
            if slopes is not None:
                slopes[at : at + size] = weight[target] - (logits @ weight)[:count].div_(total)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0].unsqueeze(-1) * slopes).to(slopes.dtype), None, None, None, None
