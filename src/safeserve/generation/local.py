"""The local engine: batches on this machine, sorted by length; a finished row leaves its batch at once.

Work is cut into fixed waves of the full list ordered by length. A wave depends on nothing but its own rows, so a killed
and resumed run repeats a wave exactly (same machine, same thread count).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safeserve.core.options import seed_for, stable_hash
from safeserve.data.records import Prompt
from safeserve.generation.decoding import nucleus_sample, penalise, token_logprobs
from safeserve.generation.engine import Completion, FinishReason, Row, Sampling
from safeserve.models.loading import LoadedModel

WAVE_ROWS = 96


@dataclass(frozen=True)
class LogLikelihood:
    """Of a given continuation: summed log-probability in nats, its tokens, and whether greedy decoding gives it."""

    logprob_sum: float
    tokens: int
    is_greedy: bool


def plan_waves(rows: Sequence[Row], wave_rows: int = WAVE_ROWS) -> list[list[Row]]:
    """Cut rows into waves of similar length, longest first; ties keep the given order."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    return [ordered[i : i + wave_rows] for i in range(0, len(ordered), wave_rows)]


class LocalEngine:
    """Generates with a loaded transformers model."""

    def __init__(self, loaded: LoadedModel, wave_rows: int = WAVE_ROWS) -> None:
        self.loaded = loaded
        self.wave_rows = wave_rows
        # Frozen, the head is copied once a row for a strided batch (torch's matmul folds a batch only for weights that
        # may need a gradient): 5 GB and 3 s a wave. Nothing here computes a gradient.
        loaded.model.get_output_embeddings().weight.requires_grad_(True)
        self.model_identity: str = loaded.identity
        self.dtype: str = loaded.dtype
        self.not_sent: tuple[str, ...] = ()
        self.identity = stable_hash(["local-1", loaded.identity, loaded.dtype, wave_rows])
        limit = getattr(loaded.model.config, "max_position_embeddings", None)
        self.max_positions: int = int(limit) if limit else 1 << 30

    def rows(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Row]:
        """Every answer to make, in order."""
        encoded = [(prompt, self.loaded.chat.prompt_ids(prompt.messages)) for prompt in prompts]
        return [Row(prompt, k, ids) for prompt, ids in encoded for k in range(sampling.n)]

    def waves(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Row]]:
        """The fixed waves of this list of prompts."""
        return plan_waves(self.rows(prompts, sampling), self.wave_rows)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        for wave in self.waves(prompts, sampling):
            yield from self.generate_wave(wave, sampling)

    def generate_wave(self, wave: Sequence[Row], sampling: Sampling) -> list[Completion]:
        """All answers of one wave, in its order. A prompt too long for the model is an error row, not a crash."""
        fits = [row for row in wave if len(row.ids) + sampling.max_new_tokens <= self.max_positions]
        made = dict(zip([id(row) for row in fits], self._decode(fits, sampling), strict=True)) if fits else {}
        return [made.get(id(row)) or self._too_long(row) for row in wave]

    def loglikelihood(self, items: Sequence[tuple[Prompt, str]], batch_rows: int = 16) -> list[LogLikelihood]:
        """Log-likelihood of each continuation (without its end token) after its prompt."""
        encoded = [self.loaded.chat.render(prompt.messages, text) for prompt, text in items]
        pairs = [(r.prompt, r.response[:-1]) for r in encoded]
        order = sorted(range(len(pairs)), key=lambda i: -(len(pairs[i][0]) + len(pairs[i][1])))
        results: dict[int, LogLikelihood] = {}
        for start in range(0, len(order), batch_rows):
            chosen = order[start : start + batch_rows]
            for i, result in zip(chosen, self._score([pairs[i] for i in chosen]), strict=True):
                results[i] = result
        return [results[i] for i in range(len(items))]

    def _score(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[LogLikelihood]:
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.zeros((len(pairs), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (prompt, answer) in enumerate(pairs):
            ids[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            mask[i, : len(prompt) + len(answer)] = 1
        device = self.loaded.device
        with torch.inference_mode():
            logits = self.loaded.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        results = []
        for i, (prompt, answer) in enumerate(pairs):
            if not answer:
                results.append(LogLikelihood(0.0, 0, True))
                continue
            span = logits[i, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
            tokens = torch.tensor(answer, device=device)
            total = float(token_logprobs(span, tokens).sum())
            results.append(LogLikelihood(total, len(answer), bool((span.argmax(-1) == tokens).all())))
        return results

    @torch.inference_mode()
    def _decode(self, rows: Sequence[Row], sampling: Sampling) -> list[Completion]:
        from transformers import DynamicCache

        model, device = self.loaded.model, self.loaded.device
        ids, mask = left_pad([row.ids for row in rows], device)
        stop = torch.tensor(self.loaded.chat.stop_ids, device=device)
        uniforms = self._uniforms(rows, sampling).to(device) if sampling.temperature > 0 else None
        counts: torch.Tensor | None = None
        answers: list[list[int]] = [[] for _ in rows]
        sums = [0.0] * len(rows)
        reasons: list[FinishReason] = ["length"] * len(rows)
        alive = list(range(len(rows)))
        cache = DynamicCache(config=model.config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        for step in range(sampling.max_new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1].float()
            if counts is None and sampling.frequency_penalty:
                counts = torch.zeros_like(logits)
            scores = penalise(logits, counts, sampling.frequency_penalty) if counts is not None else logits
            if uniforms is None:
                tokens = scores.argmax(-1)
            else:
                tokens = nucleus_sample(scores, sampling.temperature, sampling.top_p, uniforms[alive, step])
            logprobs = token_logprobs(logits, tokens).tolist()
            ended = torch.isin(tokens, stop)
            for index, token, logprob, end in zip(alive, tokens.tolist(), logprobs, ended.tolist(), strict=True):
                sums[index] += logprob
                if end:
                    reasons[index] = "stop"
                else:
                    answers[index].append(token)
            if counts is not None:
                counts.scatter_add_(1, tokens.unsqueeze(1), counts.new_ones((len(alive), 1)))
            if bool(ended.any()):
                keep = (~ended).nonzero().squeeze(-1)
                if keep.numel() == 0:
                    break
                alive = [alive[i] for i in keep.tolist()]
                cache.batch_select_indices(keep)
                tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
                counts = counts[keep] if counts is not None else None
            ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=1)
            positions = positions[:, -1:] + 1
        return [
            Completion(
                id=row.prompt.id,
                text=self.loaded.chat.decode(answers[i]),
                token_ids=tuple(answers[i]),
                finish_reason=reasons[i],
                logprob_sum=round(sums[i], 4),
                k=row.k,
                prompt_tokens=len(row.ids),
            )
            for i, row in enumerate(rows)
        ]

    def _uniforms(self, rows: Sequence[Row], sampling: Sampling) -> torch.Tensor:
        """One row of uniform numbers a sample, from the sample's own seed: [rows, max_new_tokens], float32, CPU."""
        drawn = []
        for row in rows:
            generator = torch.Generator().manual_seed(seed_for(sampling.seed, row.prompt.id, row.k, sampling.iteration))
            drawn.append(torch.rand(sampling.max_new_tokens, generator=generator))
        return torch.stack(drawn)

    def _too_long(self, row: Row) -> Completion:
        reason = f"prompt of {len(row.ids)} tokens leaves no room in the model's {self.max_positions} positions"
        return Completion(row.prompt.id, "", (), "error", None, row.k, len(row.ids), reason)


def left_pad(sequences: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest], padded on the left (masked, so any pad id serves)."""
    width = max(len(ids) for ids in sequences)
    padded = torch.zeros((len(sequences), width), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for i, ids in enumerate(sequences):
        padded[i, width - len(ids) :] = torch.tensor(ids)
        mask[i, width - len(ids) :] = 1
    return padded.to(device), mask.to(device)
