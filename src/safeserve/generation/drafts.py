"""Answers being written: which token comes next, what each answer holds so far, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeserve.core.options import seed_for
from safeserve.generation.decoding import nucleus_sample, penalise, token_logprobs
from safeserve.generation.engine import Completion, Row, Sampling
from safeserve.models.chat import ChatFormat


class Drafts:
    """The answers to ``rows``, token by token.

    Everything stays on ``device``; one small tensor of flags a step comes back.
    """

    def __init__(self, rows: Sequence[Row], sampling: Sampling, chat: ChatFormat, device: torch.device | str) -> None:
        self._rows, self._sampling, self._chat = rows, sampling, chat
        self._stop = torch.tensor(chat.stop_ids, device=device)
        self._tokens = torch.full((len(rows), sampling.max_new_tokens), -1, dtype=torch.long, device=device)
        self._sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self._uniforms = _uniforms(rows, sampling).to(device) if sampling.temperature > 0 else None

    def add(self, which: Tensor, steps: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the next token of some answers.

        Args:
            which: numbers of the rows, [some].
            steps: how many tokens each has, [some].
            logits: float32, [some, vocabulary].

        Returns:
            The tokens, and which answers are finished by them, each [some].
        """
        scores = logits
        if self._sampling.frequency_penalty:
            scores = penalise(logits, self._tokens[which, : int(steps.max())], self._sampling.frequency_penalty)
        if self._uniforms is None:
            tokens = scores.argmax(-1)
        else:
            chance = self._uniforms[which, steps]
            tokens = nucleus_sample(scores, self._sampling.temperature, self._sampling.top_p, chance)
        self._sums.index_add_(0, which, token_logprobs(logits, tokens).double())
        self._tokens[which, steps] = tokens
        return tokens, torch.isin(tokens, self._stop) | (steps == self._sampling.max_new_tokens - 1)

    def completions(self) -> list[Completion]:
        """All answers, in the rows' order."""
        stops = set(self._chat.stop_ids)
        made = []
        for row, tokens, total in zip(self._rows, self._tokens.tolist(), self._sums.tolist(), strict=True):
            answer = [token for token in tokens if token >= 0]
            stopped = bool(answer) and answer[-1] in stops
            answer = answer[:-1] if stopped else answer
            made.append(
                Completion(
                    id=row.prompt.id,
                    text=self._chat.decode(answer),
                    token_ids=tuple(answer),
                    finish_reason="stop" if stopped else "length",
                    logprob_sum=round(total, 4),
                    k=row.k,
                    prompt_tokens=len(row.ids),
                )
            )
        return made


def _uniforms(rows: Sequence[Row], sampling: Sampling) -> Tensor:
    """One row of uniform numbers a sample, from the sample's own seed: [rows, max_new_tokens], float32, CPU."""
    drawn = []
    for row in rows:
        generator = torch.Generator().manual_seed(seed_for(sampling.seed, row.prompt.id, row.k, sampling.iteration))
        drawn.append(torch.rand(sampling.max_new_tokens, generator=generator))
    return torch.stack(drawn)
