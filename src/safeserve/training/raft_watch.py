"""What becomes of the policy: its answers to held-out prompts, and how far it has moved from the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.runs import read_json, write_json
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Sampling
from safeserve.training.batches import Row
from safeserve.training.preflight import HeldOut, held_out_numbers, mean_interval
from safeserve.training.raft_samples import Sampler

if TYPE_CHECKING:
    from safeserve.models.loading import LoadedModel

BATCH = 8
"""Answers that are read at once for their log-probabilities."""


def watch(sampler: Sampler, prompts: Sequence[Prompt], folder: Path, title: str) -> tuple[HeldOut, dict[str, Any]]:
    """One policy's greedy answers to the held-out prompts, judged; its rates."""
    sampling = Sampling(max_new_tokens=sampler.options.sample_tokens, seed=sampler.seed)
    watching = [sampler.options.held_out_judge]
    answers = sampler.answers(prompts, sampling, folder / "held_out", title, watching)
    unsafe = {a.prompt.id: sampler.panel.held_out_unsafe(a) for a in answers if a.prompt.label == "harmful"}
    found = HeldOut(
        unsafe={name: mark for name, mark in unsafe.items() if mark is not None},
        refused={a.prompt.id: a.refused for a in answers if a.refused is not None},
        texts={a.prompt.id: a.completion.text for a in answers},
    )
    return found, held_out_numbers(found, {a.prompt.id: len(a.completion.token_ids) for a in answers})


def kl_prompts(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """``count`` of the held-out prompts (all where there are fewer), evenly spread."""
    count = min(count, len(prompts))
    return [prompts[n * len(prompts) // count] for n in range(count)]


def kl_answers(sampler: Sampler, prompts: Sequence[Prompt], folder: Path, title: str) -> list[Completion]:
    """True samples of the policy (temperature 1, whole distribution), from which its divergence is estimated."""
    sampling = Sampling(
        max_new_tokens=sampler.options.sample_tokens, temperature=1.0, seed=sampler.seed, iteration=100_000
    )
    return sampler.completions(prompts, sampling, folder / "kl" / "answers", title)


def rows_of(model: LoadedModel, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Row]:
    """The answers as they were sampled, token by token, with the end token where there was one."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = model.chat.prompt_ids(prompt.messages)
        end = (model.chat.end_id,) if completion.finish_reason == "stop" else ()
        if completion.token_ids or end:
            rows.append(Row((*ids, *completion.token_ids, *end), len(ids)))
    return rows


def token_logps(model: LoadedModel, rows: Sequence[Row]) -> list[list[float]]:
    """log p of every response token of each row, in nats."""
    import torch

    from safeserve.training.logprobs import plain_logps

    found: list[list[float]] = []
    with torch.no_grad():
        for at in range(0, len(rows), BATCH):
            batch = rows[at : at + BATCH]
            values = iter(plain_logps(model.model, batch, model.device).values.tolist())
            found += [list(islice(values, row.response_length)) for row in batch]
    return found


def kl_estimate(policy: Sequence[Sequence[float]], start: Sequence[Sequence[float]]) -> dict[str, Any]:
    """KL(policy || start) in nats from samples of the policy: Schulman's k3 ("Approximating KL divergence", 2020).

    For a token that the policy drew, with r = p_start / p_policy, k3 = r - 1 - log r: never negative, and unbiased for
    the divergence of the two next-token distributions. Summed over an answer's tokens, it estimates the divergence of
    the distributions of answers up to the longest that was sampled.

    Args:
        policy, start: log-probabilities of the same tokens, answer by answer.
    """
    sums = []
    for mine, theirs in zip(policy, start, strict=True):
        logs = [b - a for a, b in zip(mine, theirs, strict=True)]
        sums.append(sum(math.exp(log) - 1 - log for log in logs))
    tokens = sum(map(len, policy))
    return {"per_answer": mean_interval(sums), "per_token": sum(sums) / tokens if tokens else None, "tokens": tokens}


def kept_kl(folder: Path) -> dict[str, Any] | None:
    """An estimate that was made before."""
    path = folder / "kl" / "kl.json"
    return read_json(path) if path.exists() else None


def keep_kl(folder: Path, found: dict[str, Any]) -> None:
    """Keep an estimate for a run that goes on."""
    write_json(folder / "kl" / "kl.json", found)
