"""DPO: pairs a second of safeserve and of TRL's DPOTrainer, and the memory of their steps.

What it proves: on the same pairs, with the same adapter, optimiser batches, learning rate and precision, and the
reference's log-probabilities included on both sides, how many times as fast safeserve is as TRL at its defaults and as
TRL tuned. First both sides must agree: the loss of step 0 is ln 2, and under the base model every response's
log-probability is the same within 1e-3 nats a token (float32); else nothing is timed.

Run it alone on the machine, from the repository's root:

    python -m benchmarks.dpo                      float32, PKU-SafeRLHF pairs
    python -m benchmarks.dpo --dtype bfloat16     bfloat16 base, float32 adapter, on both sides
    python -m benchmarks.dpo --prompts long       prompts of at least 300 tokens, answers of at most 100

On two cores and with the 64 pairs of the default this takes about an hour and a half, most of it TRL.
"""

from __future__ import annotations

import json
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
    hushed,
    in_child,
    offline,
    parser,
    peak_rss,
    retuned,
    rss,
    save,
    say,
    square_gemm,
    tuned,
)
from benchmarks.flops import Weights, dpo_flops
from benchmarks.training import Setup
from safeserve.pipeline.machine import reset_peak_memory

AS_SHIPPED: dict[str, Any] = {}
TOLERANCE = 1e-3
"""Nats a token by which both sides may differ under the base model in float32."""


def defaults(dtype: str) -> dict[str, Any]:
    """TRL's defaults, but for mixed precision, which is switched off so that both sides compute in one dtype.

    What stays at its default: gradient checkpointing on, 8 pairs a device, the reference recomputed in each step.
    """
    return {"bf16": False} if dtype == "float32" else {}


def candidates(batch: int, dtype: str) -> dict[str, dict[str, Any]]:
    """TRL's settings to try first: no checkpointing; batch a device, rows of a step by length, mixed precision."""
    sizes = [size for size in (1, 2, 4, 8) if size <= batch and batch % size == 0]
    made: dict[str, dict[str, Any]] = {}
    for bf16 in (False,) if dtype == "float32" else (False, True):
        for size in sizes:
            for by_length in (False, True) if size < batch and size > 1 else (False,):
                name = f"{size} a device" + (", sorted" if by_length else "") + (", autocast" if bf16 else "")
                made[name] = {
                    "gradient_checkpointing": False,
                    "bf16": bf16,
                    "per_device_train_batch_size": size,
                    "sorted": by_length,
                }
    return made


def refinements(name: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What to try on top of the best of :func:`candidates`: a precomputed reference, and plain attention."""
    size = settings["per_device_train_batch_size"]
    made = {name: settings}
    for rows in sorted({size, 8}):
        extra = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": rows}
        made[f"{name}, reference precomputed by {rows}"] = {**settings, **extra}
    made[f"{name}, eager attention"] = {**settings, "attn_implementation": "eager"}
    return made


def tune(setup: Setup, pairs: list[Any], most: int | None = None) -> dict[str, Any]:
    """TRL's best settings on a short run, in two rounds of at most ``most`` tries."""

    def measure(settings: dict[str, Any]) -> Run:
        return training.trl("dpo", setup, pairs, settings)

    first = tuned(dict(list(candidates(setup.batch, setup.dtype).items())[:most]), measure)
    more = dict(list(refinements(first["best"], first["settings"]).items())[:most])
    return {**retuned(first, more, measure), "pairs": len(pairs)}


def check(setup: Setup, pairs: list[Any]) -> dict[str, float]:
    """Abort unless both sides agree before the first update.

    Safeserve's log-probabilities are read from its losses: with one pair a step, no learning and the SFT term on,
    the loss is ln 2 plus the mean negative log-likelihood of the chosen response's tokens.

    Returns:
        The largest difference a token in nats, and both first losses.

    Raises:
        Disagreement: they differ.
    """
    plain = Setup(**{**vars(setup), "dtype": "float32", "learning_rate": 1e-30})
    one = Setup(**{**vars(plain), "batch": 1})
    swapped = [_swapped(pair) for pair in pairs]
    mine = [
        [loss - math.log(2) for loss in training.ours("dpo", one, side, {"sft_weight": 1.0}).more["losses"]]
        for side in (pairs, swapped)
    ]
    settings = {"gradient_checkpointing": False, "bf16": False, "precompute_ref_log_probs": True, "logging_steps": 1}
    with training.scratch() as folder, hushed():
        trainer = training.trl_trainer("dpo", one, pairs, {**settings, **_ONE}, plain.load(), folder)
        table = trainer.train_dataset
        theirs = [
            [-total / len(ids) for total, ids in zip(table[f"ref_{side}_logps"], table[f"{side}_ids"], strict=True)]
            for side in ("chosen", "rejected")
        ]
    apart = max(abs(a - b) for m, t in zip(mine, theirs, strict=True) for a, b in zip(m, t, strict=True))
    if not apart <= TOLERANCE:
        raise Disagreement(f"The sides differ by {apart:.2g} nats a token under the base model: nothing is timed.")
    first = training.ours("dpo", plain, pairs).more["first_loss"]
    peer = training.trl("dpo", plain, pairs, {"bf16": False, "logging_steps": 1}).more["first_loss"]
    for side, loss in (("safeserve", first), ("trl", peer)):
        if not abs(loss - math.log(2)) <= 1e-3:
            raise Disagreement(f"The loss of {side} at step 0 is {loss:.5f} and not ln 2: nothing is timed.")
    return {"nats_per_token_apart": apart, "first_loss": first, "peer_first_loss": peer, "pairs": len(pairs)}


_ONE = {"per_device_train_batch_size": 1}


def _swapped(pair: Any) -> Any:
    from dataclasses import replace

    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def memory(setup: Setup, options: Any, peers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Peak memory of each side on the 16 longest pairs, each in a fresh process.

    Safeserve three times: as timed; with 512 tokens in a micro-batch, a pair or two, which is what TRL holds at one a
    device; and with a whole optimiser step as one micro-batch, which is what TRL does at its defaults and with
    ``per_device_train_batch_size`` of the whole step.
    """
    whole = {"gradient_checkpointing": False, "bf16": False, "per_device_train_batch_size": setup.batch}
    tasks = {
        "safeserve": ("ours", {}),
        "safeserve, token budget 512": ("ours", {"token_budget": 512}),
        "safeserve, a step in one micro-batch": ("ours", {"token_budget": 1 << 20}),
        **{name: ("trl", settings) for name, settings in peers.items()},
        "trl, a step in one micro-batch": ("trl", whole),
    }
    found = {}
    for name, (side, settings) in tasks.items():
        task = {"side": side, "settings": settings, "setup": vars(setup), "pairs": options.pairs}
        task |= {"prompts": options.prompts, "quick": options.quick, "data": str(options.data) if options.data else ""}
        try:
            found[name] = {**in_child("dpo", task), "settings": settings}
            say(f"memory  {name}: {found[name]['peak_bytes'] / 2**20:.0f} MiB")
        except RuntimeError as error:  # the machine may have less than a side needs; the others still count
            found[name] = {"error": str(error)[-300:], "settings": settings}
            say(f"memory  {name}: did not finish")
    return found


def _child(task: dict[str, Any]) -> None:
    """Train on the longest pairs and print the memory it took."""
    import argparse

    setup = Setup(**task["setup"])
    options = argparse.Namespace(quick=task["quick"], prompts=task["prompts"], data=task["data"] or None)
    if task["quick"]:
        setup = Setup(**{**task["setup"], "model": workloads.model_name(options)})
    loaded = setup.load()
    pairs = workloads.dpo_pairs(options, loaded.chat, task["pairs"])
    pairs.sort(key=lambda pair: -sum(workloads.pair_lengths(loaded.chat, [pair])[0]))
    pairs = pairs[: 2 * setup.batch]
    import trl.trainer.dpo_trainer  # noqa: F401  (both sides' baseline holds both sides' libraries)

    from safeserve.training import trainer  # noqa: F401

    baseline = rss()
    reset_peak_memory()  # loading may have taken more for a moment
    run = training.ours if task["side"] == "ours" else training.trl
    run("dpo", setup, pairs, task["settings"], loaded)
    peak = peak_rss()
    print(json.dumps({"peak_bytes": peak, "baseline_bytes": baseline, "step_bytes": peak - baseline}))


def main() -> None:
    """Check, tune, time, measure memory, write JSON."""
    made = parser(__doc__)
    made.add_argument("--pairs", type=int, default=64, help="pairs of an epoch, a multiple of the batch (default 64)")
    made.add_argument("--prompts", choices=["pku", "long"], default="pku")
    made.add_argument("--tune-pairs", type=int, default=16, help="pairs of each tuning run (default 16)")
    made.add_argument("--peers", default="defaults,tuned", help="of defaults, tuned, as-shipped (bf16 autocast)")
    made.add_argument("--skip-memory", action="store_true")
    options = made.parse_args()
    offline()
    if options.child:
        return _child(json.loads(options.child))
    if options.quick:
        options.pairs, options.tune_pairs, options.repeats = 8, 4, min(options.repeats, 2)
    setup = Setup(workloads.model_name(options), options.dtype, batch=4 if options.quick else 8)
    loaded = setup.load()
    pairs = workloads.dpo_pairs(options, loaded.chat, options.pairs)
    lengths = workloads.pair_lengths(loaded.chat, pairs)
    weights = Weights.of(loaded.model, setup.lora_rank)
    del loaded
    agreement = check(setup, pairs[: setup.batch])
    say(f"both sides agree: {agreement}")
    warm = pairs[: options.tune_pairs]
    wanted = options.peers.split(",")
    tuning = tune(setup, warm, 2 if options.quick else None) if "tuned" in wanted else None
    every = {"defaults": defaults(options.dtype), "as-shipped": AS_SHIPPED}
    every |= {"tuned": tuning["settings"]} if tuning else {}
    peers = {f"trl {name}": every[name] for name in wanted}
    training.ours("dpo", setup, warm)
    for settings in peers.values():
        training.trl("dpo", setup, warm[: setup.batch], settings)
    shapes = weights.gemms(1024)
    before = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    sides = {"safeserve": lambda: training.ours("dpo", setup, pairs)}
    sides |= {n: lambda s=s: training.trl("dpo", setup, pairs, s) for n, s in peers.items()}  # type: ignore[misc]
    result = compared(alternate(sides, options.repeats, lambda: square_gemm(options.dtype, "cpu", options.quick)))
    after = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    result |= achieved(result, dpo_flops(weights, lengths) / len(pairs), [before, after])
    result |= {"agreement": agreement, "tuning": tuning, "peer_settings": peers, "setup": vars(setup)}
    tokens = workloads.means(("prompt", "chosen", "rejected"), lengths)
    result["workload"] = {"unit": "pair", "count": len(pairs), "mean_tokens": tokens}
    name = "-".join(["dpo", *(["long"] if options.prompts == "long" else []), options.dtype])
    save(name, result, options)  # before the memory, which may be more than there is
    if not options.skip_memory:
        save(name, {**result, "memory": memory(setup, options, peers)}, options)


if __name__ == "__main__":
    main()
