"""The local engine: generates on this machine, in slots that never idle while a prompt waits.

Work is cut into fixed waves of the full list ordered by length. A wave depends on nothing but its own rows, so a killed
and resumed run repeats a wave exactly (same machine, same thread count).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safeserve.core.options import stable_hash
from safeserve.data.records import Prompt
from safeserve.generation.decoding import token_logprobs
from safeserve.generation.drafts import Drafts
from safeserve.generation.engine import Completion, Row, Sampling, shared
from safeserve.generation.slots import SlotDecoder
from safeserve.models.decoder import Decoder, Unsupported
from safeserve.models.loading import LoadedModel
from safeserve.models.packed import Packed, can_pack

SLOTS = {"cpu": 64, "cuda": 256}
"""Answers written at the same time."""
WAVE_ROWS = 256
"""Answers a wave: what a killed run may have to write again."""


@dataclass(frozen=True)
class LogLikelihood:
    """Of a given continuation: summed log-probability in nats, its tokens, and whether greedy decoding gives it."""

    logprob_sum: float
    tokens: int
    is_greedy: bool


def plan_waves(rows: Sequence[Row], wave_rows: int) -> list[list[Row]]:
    """Cut rows into waves of similar length, longest first; ties keep the given order."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    return [ordered[i : i + wave_rows] for i in range(0, len(ordered), wave_rows)]


class LocalEngine:
    """Generates with a loaded transformers model, which must not be trained while the engine is in use."""

    def __init__(self, loaded: LoadedModel, wave_rows: int | None = None, slots: int | None = None) -> None:
        self.loaded = loaded
        kind = loaded.device.partition(":")[0]
        self.slots = slots or SLOTS.get(kind, 64)
        self.wave_rows = wave_rows or max(WAVE_ROWS, 4 * self.slots)
        self._decoder: Decoder | None = None
        self._head: Any = None
        self._most_cache = 0
        with contextlib.suppress(Unsupported):
            self._decoder = Decoder(loaded.model)
        self.model_identity: str = loaded.identity
        self.dtype: str = loaded.dtype
        self.not_sent: tuple[str, ...] = ()
        form = "plain" if self._decoder is None else "slots"
        self.identity = stable_hash(["local-5", form, loaded.identity, loaded.dtype, self.wave_rows, self.slots])
        limit = getattr(loaded.model.config, "max_position_embeddings", None)
        self.max_positions: int = int(limit) if limit else 1 << 30

    @property
    def own_layers(self) -> bool:
        """Whether this project's layers run; transformers' own do where the architecture is another one."""
        return self._decoder is not None

    def rows(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Row]:
        """Every answer to make, in order."""
        encoded = [(prompt, shared(self.loaded.chat.prompt_ids(prompt.messages))) for prompt in prompts]
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
        with self._unfrozen_head(), torch.inference_mode():
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

    def _decode(self, rows: Sequence[Row], sampling: Sampling) -> list[Completion]:
        drafts = Drafts(rows, sampling, self.loaded.chat, self.loaded.device)
        if self._decoder is None:
            with self._unfrozen_head():
                self._decode_plain(rows, drafts, sampling.max_new_tokens)
        else:
            head = self.loaded.model.get_output_embeddings()
            if self._head is None:
                self._head = Packed([head]) if self._decoder.pack() and can_pack([head]) else head
            SlotDecoder(self._decoder, self._head, head.weight.dtype, self.slots, self._cache_bytes()).write(
                rows, drafts, sampling.max_new_tokens
            )
        return drafts.completions()

    def _cache_bytes(self) -> int:
        """Memory for keys and values: 1 GiB on a CPU, on a GPU 40 % of what was free before the first wave."""
        if not self._most_cache:
            self._most_cache = 1 << 30
            if (device := self.loaded.device).startswith("cuda"):
                kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
                self._most_cache = int(0.4 * (torch.cuda.mem_get_info(device)[0] + kept))
        return self._most_cache

    @contextlib.contextmanager
    def _unfrozen_head(self) -> Iterator[None]:
        """For transformers' own layers. Frozen, the head is copied once a row for a strided batch (torch's matmul folds
        a batch only for weights that may need a gradient): 5 GB and 3 s a wave. Nothing here computes a gradient."""
        if self._decoder is not None:
            yield
            return
        weight = self.loaded.model.get_output_embeddings().weight
        before = weight.requires_grad
        weight.requires_grad_(True)
        try:
            yield
        finally:
            weight.requires_grad_(before)

    @torch.inference_mode()
    def _decode_plain(self, rows: Sequence[Row], drafts: Drafts, max_new_tokens: int) -> None:
        """By transformers' own forward pass, for models whose layers are not run here: padded, no slots."""
        from transformers import DynamicCache

        model, device = self.loaded.model, self.loaded.device
        for start in range(0, len(rows), self.slots):
            which = torch.arange(start, min(start + self.slots, len(rows)), device=device)
            ids, mask = left_pad([row.ids for row in rows[start : start + self.slots]], device)
            cache = DynamicCache(config=model.config)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            for step in range(max_new_tokens):
                output = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                steps = torch.full_like(which, step)
                tokens, finished = drafts.add(which, steps, output.logits[:, -1].float())
                if bool(finished.any()):
                    keep = (~finished).nonzero().squeeze(-1)
                    if keep.numel() == 0:
                        break
                    which, tokens, mask, positions = which[keep], tokens[keep], mask[keep], positions[keep]
                    cache.batch_select_indices(keep)
                ids = tokens.unsqueeze(1)
                mask = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], dim=1)
                positions = positions[:, -1:] + 1

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
