"""How cost grows: DPO by the token budget of a micro-batch, an evaluation by the number of prompts.

What it proves: (a) pairs a second and peak memory of DPO (SmolLM2-135M, an optimiser batch of 96 pairs) for
micro-batches of 512 to 16k tokens; (b) seconds and peak memory of an evaluation, refusal judge included, of 10 to
100,000 prompts. (b) runs on a tiny random model with answers of at most 8 tokens, so that the largest finishes: it
measures what the evaluation costs around the model. Every point is a process of its own, and memory is also given
above what the process held before it, with the model loaded. Writes docs/images/speed_growth.svg beside the JSON.

Run it alone on the machine, from the repository's root; on two cores about an hour:

    python -m benchmarks.growth
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import synthetic, training, workloads
from benchmarks.common import REPOSITORY, in_child, offline, parser, peak_rss, rss, save, say, square_gemm
from benchmarks.flops import Weights, dpo_flops
from benchmarks.plot import Panel, svg
from benchmarks.training import Setup
from safeserve.data.records import PreferencePair
from safeserve.pipeline.machine import reset_peak_memory

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
COUNTS = (10, 100, 1000, 10_000, 100_000)
PLOT = REPOSITORY / "docs" / "images" / "speed_growth.svg"


@dataclass(frozen=True)
class Ready:
    """DPO that has run once: ``gflop`` of arithmetic a pair, and the ``gemm`` peak (GFLOP/s) measured after it."""

    loaded: Any
    pairs: list[PreferencePair]
    gflop: float
    gemm: float


def ready(setup: Setup, count: int, data: str | None, quick: bool) -> Ready:
    """Load the model and ``count`` PKU pairs, and pay what only a first training pays."""
    options = argparse.Namespace(quick=quick, prompts="pku", data=data)
    loaded = setup.load()
    pairs = workloads.dpo_pairs(options, loaded.chat, count)
    lengths = workloads.pair_lengths(loaded.chat, pairs)
    gflop = dpo_flops(Weights.of(loaded.model, setup.lora_rank), lengths) / len(pairs) / 1e9
    training.ours("dpo", replace(setup, batch=8), pairs[:8], loaded=loaded)
    return Ready(loaded, pairs, gflop, square_gemm(setup.dtype, "cpu", quick))


def _train(task: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch under a token budget; what it took."""
    options = argparse.Namespace(quick=task["quick"])
    setup = Setup(workloads.model_name(options), task["dtype"], batch=task["pairs"])
    with_all = ready(setup, task["pairs"], task["data"], task["quick"])
    baseline = rss()
    reset_peak_memory()  # loading may have taken more for a moment
    run = training.ours("dpo", setup, with_all.pairs, {"token_budget": task["budget"]}, with_all.loaded)
    reached = {"rate": run.rate, "gemm": with_all.gemm, "share": run.rate * with_all.gflop / with_all.gemm}
    return {**reached, "baseline_bytes": baseline, "peak_bytes": peak_rss()}


def _evaluate(task: dict[str, Any]) -> dict[str, Any]:
    """Evaluate so many synthetic prompts with the tiny model; what it took."""
    from safeserve.core.runs import write_jsonl
    from safeserve.data.sources import load_prompts
    from safeserve.evaluation.benchmarks import Benchmark
    from safeserve.evaluation.evaluate import evaluate
    from safeserve.generation.engine import Sampling
    from safeserve.generation.local import LocalEngine
    from safeserve.models.loading import load

    with training.scratch() as folder:
        path = folder / "growth.jsonl"
        rows = ({"id": one.id, "prompt": one.text} for one in synthetic.prompts(task["prompts"], (5, 60)))
        write_jsonl(path, rows)
        loaded = load(synthetic.save_model("tiny", folder / "model"), dtype="float32", device="cpu", quiet=True)
        baseline = rss()
        reset_peak_memory()
        start = time.perf_counter()
        prompts = load_prompts(path, label="benign").rows
        benchmark = Benchmark("growth", str(path), judges=("refusal",), max_new_tokens=8)
        engine = LocalEngine(loaded)
        evaluate(engine, "tiny", {benchmark: prompts}, Sampling(), ["refusal"], folder / "eval", "own", quiet=True)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "baseline_bytes": baseline, "peak_bytes": peak_rss()}


def panels(training_rows: list[dict[str, Any]], evaluation_rows: list[dict[str, Any]]) -> list[Panel]:
    """The plot: rate and memory over the budget, seconds and memory over the prompts."""
    mib = 2**20

    def above(row: dict[str, Any]) -> float:
        return float(row["peak_bytes"] - row["baseline_bytes"]) / mib

    budgets, prompts, over = "tokens in a micro-batch", "prompts", "MiB above the model"
    return [
        Panel("DPO: pairs/s", budgets, tuple((row["budget"], row["rate"]) for row in training_rows)),
        Panel(f"DPO: {over}", budgets, tuple((row["budget"], above(row)) for row in training_rows)),
        Panel("Evaluation: seconds", prompts, tuple((row["prompts"], row["seconds"]) for row in evaluation_rows), True),
        Panel(f"Evaluation: {over}", prompts, tuple((row["prompts"], above(row)) for row in evaluation_rows)),
    ]


def measured(task: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Medians over processes of their own."""
    found = [in_child("growth", task) for _ in range(repeats)]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main() -> None:
    """Measure every point, write JSON and plot."""
    made = parser(__doc__, repeats=3)
    made.add_argument("--pairs", type=int, default=96, help="pairs, all of them one optimiser batch (default 96)")
    made.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS))
    made.add_argument("--counts", type=int, nargs="*", default=list(COUNTS), help="prompts of the evaluations")
    made.add_argument("--plot", type=Path, help="SVG file (default: docs/images/speed_growth.svg; none with --quick)")
    options = made.parse_args()
    offline()
    if options.child:
        task = json.loads(options.child)
        print(json.dumps((_train if "budget" in task else _evaluate)(task)))
        return
    if options.quick:
        options.pairs, options.budgets, options.counts, options.repeats = 8, [256, 1024], [10, 100], 1
    data = str(options.data) if options.data else None
    common = {"quick": options.quick, "data": data, "dtype": options.dtype, "pairs": options.pairs}
    training_rows, evaluation_rows = [], []
    for budget in options.budgets:
        row = {"budget": budget, **measured({**common, "budget": budget}, options.repeats)}
        training_rows.append(row)
        share, memory = row["share"], row["peak_bytes"] / 2**20
        say(f"budget {budget}: {row['rate']:.3g} pairs/s, {share:.0%} of the peak, {memory:.0f} MiB")
    for count in options.counts:
        row = {"prompts": count, **measured({"prompts": count}, 1 if count > 10_000 else options.repeats)}
        evaluation_rows.append(row)
        say(f"{count} prompts: {row['seconds']:.1f} s, {row['peak_bytes'] / 2**20:.0f} MiB")
    if plot := options.plot or (None if options.quick else PLOT):
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(svg(panels(training_rows, evaluation_rows)), encoding="utf-8")
    save(f"growth-{options.dtype}", {"dpo": training_rows, "evaluation": evaluation_rows}, options)


if __name__ == "__main__":
    main()
