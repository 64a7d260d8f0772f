"""Reward models: pairs a second of safeserve and of TRL's RewardTrainer.

What it proves: for an epoch over the same PKU-SafeRLHF pairs with the same adapter, head, optimiser batches, learning
rate, centring and precision, how many times as fast safeserve is as TRL tuned: batch a device, rows of a step by
length, attention, mixed precision. First both sides must agree: with all pairs in each step the losses of the first two
steps are the same within 1e-3 (float32). Before the first update every reward is 0, so the first loss is ln 2 and the
second one tells what each side read of every answer.

Run it alone on the machine, from the repository's root:

    python -m benchmarks.reward
    python -m benchmarks.reward --dtype bfloat16

On two cores and with the 96 pairs of the default this takes about an hour, most of it TRL.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks import training, workloads
from benchmarks.common import (
    Disagreement,
    Run,
    achieved,
    alternate,
    compared,
    gemm_peak,
    offline,
    parser,
    retuned,
    save,
    say,
    square_gemm,
    tuned,
)
from benchmarks.flops import Weights, reward_flops
from benchmarks.training import Setup

TOLERANCE = 1e-3


def candidates(batch: int, dtype: str) -> dict[str, dict[str, Any]]:
    """TRL's settings to try, all without gradient checkpointing."""
    made: dict[str, dict[str, Any]] = {}
    sizes = [size for size in (1, 2, 4, 8, 16) if batch % size == 0]
    for bf16 in (False,) if dtype == "float32" else (False, True):
        base = {"gradient_checkpointing": False, "bf16": bf16}
        end = ", autocast" if bf16 else ""
        for size in sizes:
            rows = {**base, "per_device_train_batch_size": size}
            made[f"{size} a device{end}"] = rows
            if 1 < size < batch:
                made[f"{size} a device, sorted{end}"] = {**rows, "sorted": True}
    return made


def tune(setup: Setup, pairs: list[Any], tries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """TRL's best settings on a short run; then that with plain attention."""

    def measure(settings: dict[str, Any]) -> Run:
        return training.trl("reward", setup, pairs, settings)

    first = tuned(tries, measure)
    name, settings = first["best"], first["settings"]
    eager = {f"{name}, eager attention": {**settings, "attn_implementation": "eager"}}
    return {**retuned(first, {name: settings, **eager}, measure), "pairs": len(pairs)}


def check(setup: Setup, pairs: list[Any]) -> dict[str, Any]:
    """Abort unless both sides have the same losses in the first two steps, each over all of ``pairs``.

    Raises:
        Disagreement: they have not.
    """
    once = Setup(**{**vars(setup), "dtype": "float32", "learning_rate": 1e-3, "batch": len(pairs)})
    mine = training.ours("reward", once, pairs, {"epochs": 2}).more["losses"]
    settings = {"gradient_checkpointing": False, "bf16": False, "per_device_train_batch_size": len(pairs)}
    peer = training.trl("reward", once, pairs, {**settings, "num_train_epochs": 2, "logging_steps": 1}).more["losses"]
    told = f"The losses of the first steps are {mine[:2]} and {peer[:2]}"
    if not (len(mine) == len(peer) == 2 and max(abs(a - b) for a, b in zip(mine, peer, strict=True)) <= TOLERANCE):
        raise Disagreement(f"{told}: nothing is timed.")
    if not (abs(mine[0] - math.log(2)) <= TOLERANCE < abs(mine[1] - mine[0])):
        raise Disagreement(f"{told}: not ln 2 and something else, so they show nothing.")
    return {"losses": mine, "peer_losses": peer, "pairs": len(pairs)}


def main() -> None:
    """Check, tune, time, write JSON."""
    made = parser(__doc__)
    made.add_argument("--pairs", type=int, default=96, help="pairs of an epoch, a multiple of 16 (default 96)")
    made.add_argument("--tune-pairs", type=int, default=32, help="pairs of each tuning run (default 32)")
    options = made.parse_args()
    offline()
    if options.quick:
        options.pairs, options.tune_pairs, options.repeats = 8, 4, min(options.repeats, 2)
    setup = Setup(workloads.model_name(options), options.dtype, batch=4 if options.quick else 16)
    loaded = setup.load()
    pairs = workloads.reward_pairs(options, options.pairs)
    lengths = workloads.pair_lengths(loaded.chat, pairs)
    weights = Weights.of(loaded.model, setup.lora_rank)
    del loaded
    agreement = check(setup, pairs[: setup.batch])
    say(f"both sides agree: {agreement}")
    tries = candidates(setup.batch, options.dtype)
    warm = pairs[: options.tune_pairs]
    tuning = tune(setup, warm, tries)
    training.ours("reward", setup, warm)
    shapes = weights.gemms(1024)
    before = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    sides = {
        "safeserve": lambda: training.ours("reward", setup, pairs),
        "trl tuned": lambda: training.trl("reward", setup, pairs, tuning["settings"]),
    }
    result = compared(alternate(sides, options.repeats, lambda: square_gemm(options.dtype, "cpu", options.quick)))
    after = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    result |= achieved(result, reward_flops(weights, lengths) / len(pairs), [before, after])
    result |= {"agreement": agreement, "tuning": tuning, "peer_settings": {"trl tuned": tuning["settings"]}}
    result["setup"] = vars(setup)
    tokens = workloads.means(("prompt", "chosen", "rejected"), lengths)
    result["workload"] = {"unit": "pair", "count": len(pairs), "mean_tokens": tokens}
    save(f"reward-{options.dtype}", result, options)


if __name__ == "__main__":
    main()
