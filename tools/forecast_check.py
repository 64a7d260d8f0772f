"""Predicted against actual seconds and memory of a finished run, and the shares of the matrix rate that it implies.

    python tools/forecast_check.py runs/quickstart

Run it on the machine and with the threads of the run, when nothing else works there: the prediction rests on the rate
of matrix products, which is measured now unless it is kept. The column "tokens" is actual over predicted; "share" is
what forecast.SHARES holds for this kind of work, and "implied" what it should hold for this run's tokens to take the
seconds that they took. Parts without a share are constants (LOAD_SECONDS, START_SECONDS).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safeserve.core.runs import read_json
from safeserve.pipeline.forecast import START_SECONDS
from safeserve.pipeline.machine import gib
from safeserve.pipeline.outlook import Outlook
from safeserve.pipeline.plan import plan
from safeserve.pipeline.recipe import load_recipe

SHARE = {"generate": "decode", "sample": "decode", "judge": "guard", "reference": "reference", "train": "train"}
"""Part of a stage to the kind of work that decides its seconds."""
TOKENS = {"generate": "written", "sample": "sampled"}
"""Part of a stage to the predicted tokens that are its measured ones (training counts a shared prompt twice)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    recipe = load_recipe(str(run / "recipe.yaml"))
    outlook = Outlook.of(recipe)
    planned = plan(recipe, run / "no-such-folder")  # as if nothing were done
    print("| stage | part | predicted s | actual s | actual / predicted | tokens | share | implied |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    totals = [0.0, 0.0]
    for stage in planned["stages"]:
        metrics = read_json(run / "stages" / stage["stage"] / "metrics.json")
        for part, predicted in stage["parts"].items():
            cost = metrics["parts"].get(part, {})
            if metrics["resumed"] or "seconds" not in cost:
                print(f"| {stage['stage']} | {part} | {predicted:.1f} | not measured (resumed, or not done) |||||")
                continue
            actual, kind = cost["seconds"], SHARE.get(part)
            more = cost["tokens"] / stage["tokens"][TOKENS[part]] if part in TOKENS else 1.0
            implied = "|"
            if kind:
                machine = outlook.guard_machine if kind == "guard" else outlook.machine
                should = machine.implied_share(kind, actual / more / max(predicted, 0.01))
                implied = f"{getattr(machine.shares, kind):.2f} | {should:.2f}"
            print(
                f"| {stage['stage']} | {part} | {predicted:.1f} | {actual:.1f} | {actual / max(predicted, 0.01):.2f} "
                f"| {more:.2f} | {implied} |"
            )
        whole = metrics["stage_seconds"]
        totals = [totals[0] + stage["seconds"], totals[1] + whole]
        memory = f"{gib(stage['peak_memory_bytes']):.2f} GiB predicted, {metrics['peak_memory_gib']:.2f} measured"
        print(
            f"| {stage['stage']} | **all** | {stage['seconds']:.1f} | {whole:.1f} | {whole / stage['seconds']:.2f} "
            f"| {memory} |||"
        )
    manifest = read_json(run / "manifest.json")
    outside = sum(manifest["overhead_seconds"].values())
    print(f"| start, compare | | {START_SECONDS:.1f} | {outside:.1f} | {outside / START_SECONDS:.2f} ||||")
    predicted, actual = totals[0] + START_SECONDS, totals[1] + outside
    print(f"| **run** | | {predicted:.1f} | {actual:.1f} | {actual / predicted:.2f} ||||")


if __name__ == "__main__":
    main()
