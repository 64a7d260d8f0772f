"""SIT: rows a second of safeserve and of TRL's SFTTrainer on a mixture of Alpaca and safety demonstrations.

What it proves: for an epoch over the same rows with the loss on responses only, the same adapter, learning rate and
precision, how many times as fast safeserve is as TRL at its best settings: padded batches (rows of a step by length,
or transformers' length groups), rows without padding, and packing. An optimiser batch is 16 rows; where TRL packs, its
packs hold other rows together, so there a batch is as many packs as hold the tokens of 16 rows on average. A setting
of TRL counts only if its loss on the first rows is safeserve's within 1e-3 (float32): what lets packed rows see each
other, or averages otherwise, is not the same work.

Run it alone on the machine, from the repository's root:

    python -m benchmarks.sit
    python -m benchmarks.sit --dtype bfloat16

On two cores and with the 192 rows of the default this takes about an hour.
"""

from __future__ import annotations

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
from benchmarks.flops import Weights, sit_flops
from benchmarks.training import Setup

TOLERANCE = 1e-3


def candidates(batch: int, dtype: str, row_tokens: float) -> dict[str, dict[str, Any]]:
    """TRL's settings to try, all without gradient checkpointing.

    Args:
        row_tokens: mean tokens of a row, by which packs are counted into an optimiser batch.
    """
    made: dict[str, dict[str, Any]] = {}
    sizes = [size for size in (2, 4, 8, 16) if batch % size == 0]
    for bf16 in (False,) if dtype == "float32" else (False, True):
        base = {"gradient_checkpointing": False, "bf16": bf16}
        end = ", autocast" if bf16 else ""
        made[f"1 a device{end}"] = {**base, "per_device_train_batch_size": 1}
        for size in sizes:
            rows = {**base, "per_device_train_batch_size": size}
            made[f"{size} a device, sorted{end}"] = {**rows, "sorted": True}
            made[f"{size} a device, group_by_length{end}"] = {**rows, "train_sampling_strategy": "group_by_length"}
            made[f"{size} a device, padding_free{end}"] = {**rows, "padding_free": True, "max_length": None}
        for length in (512, 1024):
            packs = {"packing": True, "max_length": length, "per_device_train_batch_size": 1}
            steps = max(1, round(batch * row_tokens / length))
            made[f"packs of {length}{end}"] = {**base, **packs, "gradient_accumulation_steps": steps}
    return made


def first_loss(setup: Setup, rows: list[Any], settings: dict[str, Any]) -> float:
    """TRL's loss over these rows as one optimiser step, before any learning, in float32."""
    plain = {key: value for key, value in settings.items() if key not in ("gradient_accumulation_steps", "sorted")}
    if settings.get("packing"):
        plain["gradient_accumulation_steps"] = len(rows)  # more than there are packs: all of them are one step
    once = Setup(**{**vars(setup), "dtype": "float32", "learning_rate": 1e-30, "batch": len(rows)})
    return float(training.trl("sit", once, rows, {**plain, "bf16": False, "logging_steps": 1}).more["first_loss"])


def check(setup: Setup, rows: list[Any]) -> float:
    """Safeserve's loss over these rows as one step; abort unless TRL's plainest settings give the same.

    Raises:
        Disagreement: they do not.
    """
    once = Setup(**{**vars(setup), "dtype": "float32", "learning_rate": 1e-30, "batch": len(rows)})
    mine = float(training.ours("sit", once, rows).more["first_loss"])
    theirs = first_loss(setup, rows, {"gradient_checkpointing": False, "per_device_train_batch_size": len(rows)})
    if not abs(mine - theirs) <= TOLERANCE:
        raise Disagreement(f"The first losses are {mine:.5f} and {theirs:.5f}: nothing is timed.")
    return mine


def tune(setup: Setup, rows: list[Any], loss: float, tries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """TRL's best settings of those whose loss on the first rows is ``loss``, with plain attention in a second round."""
    first = rows[: setup.batch]

    def measure(settings: dict[str, Any]) -> Run:
        found = first_loss(setup, first, settings)
        if not abs(found - loss) <= TOLERANCE:
            raise ValueError(f"another loss: {found:.5f} and not {loss:.5f}")
        return training.trl("sit", setup, rows, settings)

    best = tuned(tries, measure)
    name, settings = best["best"], best["settings"]
    more = {name: settings, f"{name}, eager attention": {**settings, "attn_implementation": "eager"}}
    return {**retuned(best, more, measure), "rows": len(rows), "loss": loss}


def main() -> None:
    """Check, tune, time, write JSON."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=192, help="rows of an epoch, a multiple of 16 (default 192)")
    made.add_argument("--tune-rows", type=int, default=32, help="rows of each tuning run (default 32)")
    options = made.parse_args()
    offline()
    if options.quick:
        options.rows, options.tune_rows, options.repeats = 16, 8, min(options.repeats, 2)
    setup = Setup(workloads.model_name(options), options.dtype, batch=4 if options.quick else 16, learning_rate=5e-4)
    loaded = setup.load()
    rows = workloads.sit_rows(options, options.rows)
    lengths = workloads.row_lengths(loaded.chat, rows)
    tokens = workloads.means(("prompt", "response"), lengths)
    weights = Weights.of(loaded.model, setup.lora_rank)
    del loaded
    loss = check(setup, rows[: setup.batch])
    say(f"both sides agree: first loss {loss:.5f}")
    tries = candidates(setup.batch, options.dtype, sum(tokens.values()))
    if options.quick:
        tries = {name: tries[name] for name in ("4 a device, sorted", "packs of 512")}
    warm = rows[: options.tune_rows]
    tuning = tune(setup, warm, loss, tries)
    training.ours("sit", setup, warm)
    shapes = weights.gemms(1024)
    before = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    sides = {
        "safeserve": lambda: training.ours("sit", setup, rows),
        "trl tuned": lambda: training.trl("sit", setup, rows, tuning["settings"]),
    }
    result = compared(alternate(sides, options.repeats, lambda: square_gemm(options.dtype, "cpu", options.quick)))
    after = gemm_peak(options.dtype, "cpu", shapes, options.quick)
    result |= achieved(result, sit_flops(weights, lengths) / len(rows), [before, after])
    result |= {"tuning": tuning, "peer_settings": {"trl tuned": tuning["settings"]}, "setup": vars(setup)}
    result["workload"] = {"unit": "row", "count": len(rows), "mean_tokens": tokens}
    save(f"sit-{options.dtype}", result, options)


if __name__ == "__main__":
    main()
