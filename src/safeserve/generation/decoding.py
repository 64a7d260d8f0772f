"""Choosing the next token: pure functions on logits, so that they can be tested without a model."""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 512
"""Most likely tokens looked at before the whole vocabulary is sorted."""


def penalise(logits: Tensor, earlier: Tensor, frequency_penalty: float) -> Tensor:
    """Subtract ``frequency_penalty`` once for each earlier occurrence (OpenAI's definition).

    Args:
        logits: float32, [rows, vocabulary].
        earlier: the tokens of the answers so far, -1 where an answer is shorter, [rows, longest].
    """
    amounts = torch.where(earlier < 0, 0.0, -frequency_penalty).to(logits.dtype)
    return logits.scatter_add(1, earlier.clamp(min=0), amounts)


def nucleus_sample(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """Sample one token a row by inverse transform from the smallest set with mass ``top_p``.

    One uniform number a row decides, so a sample does not depend on what else is in the batch.

    Args:
        logits: float32, [rows, vocabulary].
        uniform: numbers in [0, 1), [rows].

    Returns:
        Token ids, [rows].
    """
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p >= 1:  # every token may come, so nothing needs to be in order
        cumulative = probabilities.cumsum(dim=-1)
        position = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True)
        return position.squeeze(-1).clamp(max=logits.shape[-1] - 1)  # rounding may reach the very end
    # Sorting a whole vocabulary costs more than a forward pass of a small model, and the nucleus is nearly always few.
    ordered, order = torch.topk(probabilities, min(HEAD, probabilities.shape[-1]), dim=-1)
    tokens = _from_nucleus(ordered, order, top_p, uniform)
    wide = ordered.sum(-1) < top_p
    if bool(wide.any()):
        ordered, order = torch.sort(probabilities[wide], dim=-1, descending=True, stable=True)
        tokens[wide] = _from_nucleus(ordered, order, top_p, uniform[wide])
    return tokens


def _from_nucleus(ordered: Tensor, order: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """The token that each row's number falls on; ``ordered`` are the highest probabilities, of the tokens ``order``."""
    cumulative = ordered.cumsum(dim=-1)
    # Mass before a token below top_p means that the token belongs to the nucleus (the first always does).
    before = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], dim=-1)
    size = (before < top_p).sum(-1, keepdim=True)
    mass = cumulative.gather(-1, size - 1)
    position = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * mass, right=True)
    return order.gather(-1, torch.minimum(position, size - 1)).squeeze(-1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability (nats) of one token a row; logits float32 [rows, vocabulary], tokens [rows]."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)
