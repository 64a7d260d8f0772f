"""Reference log-probabilities: the policy at step 0, computed once, kept in files that a killed run continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from safeserve.core.errors import EnvironmentFault
from safeserve.core.options import stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import write_bytes
from safeserve.training.batches import Row, rows_digest, share_prompts, within_budget
from safeserve.training.policy import Policy

WAVE = 512
"""Rows a file: what a killed run may have to compute again."""


def reference_logps(policy: Policy, rows: Sequence[Row], folder: Path) -> Tensor:
    """Summed response log-probabilities of ``rows`` under the step-0 policy, float32 on the CPU, shape [rows].

    Rows are taken in order of length, those with one prompt together, and written a wave at a time to
    ``folder/KEY/``, the key being model, dtype and token ids; a wave already there is read instead.
    """
    from safetensors.torch import load_file, save

    key = stable_hash([policy.loaded.identity, policy.loaded.dtype, policy.options.full, rows_digest(rows)])
    prompts = sorted(share_prompts(rows), key=lambda group: -max(rows[n].length for n in group[1]))
    order = [n for _, group in prompts for n in group]
    result = torch.empty(len(rows), dtype=torch.float32)
    with Progress("reference", len(rows)) as progress:
        for wave in range(0, len(rows), WAVE):
            numbers = order[wave : wave + WAVE]
            path = folder / key / f"{wave // WAVE:05d}.safetensors"
            if path.exists():
                progress.skip(len(numbers))
            else:
                write_bytes(path, save({"logps": _sums(policy, [rows[n] for n in numbers], progress)}))
            result[numbers] = load_file(path)["logps"]
    return result


def _sums(policy: Policy, rows: Sequence[Row], progress: Progress) -> Tensor:
    sums = torch.empty(len(rows), dtype=torch.float32)
    flat = policy.decoder is not None
    groups = [
        [(n, rows[n]) for n in part]
        for _, group in share_prompts(rows)
        for part in within_budget(rows, group, policy.token_budget, flat)
    ]
    with policy.reference():
        for batch in policy.micro_batches(groups, lambda group: [row for _, row in group]):
            numbered = [item for group in batch for item in group]
            sums[[number for number, _ in numbered]] = policy.response_logps([row for _, row in numbered]).sums().cpu()
            progress.advance(len(numbered), sum(row.length for _, row in numbered))
    return sums


def check_step_zero(policy: Policy, rows: Sequence[Row], cached: Tensor) -> float:
    """Assert that policy and reference are one model before the first update.

    Args:
        rows: some rows; they are computed in one batch with the adapter on and off.
        cached: their reference log-probabilities as training will use them, shape [rows].

    Returns:
        The largest difference a response token between the policy and the cached reference, in nats.

    Raises:
        EnvironmentFault: the adapter already changes the model (by more than 1e-5 nats), or the cache is not of it.
    """
    with policy.reference():
        off = policy.response_logps(rows)
    policy.model.eval()
    with torch.no_grad():
        on = policy.response_logps(rows)
    changed = float((on - off).sums().abs().max())
    if not changed <= 1e-5:
        raise EnvironmentFault(f"The fresh adapter changes the model by {changed:.2g} nats before the first update.")
    lengths = torch.tensor([row.response_length for row in rows])
    apart = float(((on.sums().cpu() - cached) / lengths).abs().max())
    # The same sums in another batch shape: rounding only, which in bfloat16 is a few hundredths of a nat a token.
    if not apart <= (1e-4 if policy.loaded.dtype == "float32" else 0.1):
        raise EnvironmentFault(
            f"The cached reference differs from the model by {apart:.2g} nats a token. "
            "Delete the stage's reference folder, then run the same command again."
        )
    return apart
