"""Tables of a finished RAFT stage as Markdown: best-of-k coverage before training, and its iterations.

python tools/raft_table.py RUN [STAGE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safeserve.core.runs import read_json
from safeserve.training.preflight import FEWEST


def main(run: Path, name: str = "raft") -> None:
    """Print the tables of one stage."""
    stage = run / "stages" / f"train-{name}"
    preflight, metrics = read_json(stage / "iter-1" / "preflight.json"), read_json(stage / "metrics.json")
    curve = preflight["coverage"]
    print(f"Share of harmful prompts with a safe sample among k, by the {preflight['coverage_by']}:\n")
    print("| k | " + " | ".join(str(row["k"]) for row in curve) + " |")
    print("|---" * (len(curve) + 1) + "|")
    print("| coverage | " + " | ".join(f"{row['coverage']:.2f}" for row in curve) + " |")
    print(f"\nGain of selection {interval(preflight['gain'])}; agreement with the held-out judge ", end="")
    print(f"{interval(preflight['agreement'])}; unsafe among picked less among all ", end="")
    print(f"{interval(preflight['unsafe_change'])} (99 % intervals).")
    for warning in preflight["warnings"]:
        print(f"\nWarning: {warning}")
    columns = ("iteration", "picked", "dropped", "reward", "of picked", "safe", "of picked", "held-out safe")
    columns += ("over-refusal", "distinct-2", "tokens", "KL")
    print("\n| " + " | ".join(columns) + " |")
    print("|---:" * len(columns) + "|")
    print("| " + " | ".join(["start", *[""] * 6, *held_out(metrics["held_out_start"], None)]) + " |")
    for row in metrics["iterations"]:
        cells = [str(row["iteration"]), str(row["selected"]), str(sum(row["dropped"].values()))]
        cells += [number(row[key]) for key in ("reward_mean", "reward_selected")]
        cells += [number(row[key]) for key in ("safe_rate_samples", "safe_rate_selected")]
        print("| " + " | ".join(cells + held_out(row["held_out"] or {}, row["kl"])) + " |")
    if metrics["stopped"]:
        print(f"\nStopped in iteration {metrics['stopped']['iteration']}: {metrics['stopped']['reason']}.")


def held_out(found: dict[str, Any], kl: dict[str, Any] | None) -> list[str]:
    """Cells of what was measured on the held-out prompts."""
    cells = [number(found.get(key)) for key in ("safe_rate", "over_refusal_rate", "distinct_2")]
    tokens = found.get("answer_tokens")
    return [*cells, "" if tokens is None else f"{tokens:.0f}", number(kl["per_answer"]["mean"] if kl else None)]


def number(value: float | None) -> str:
    """A rate or a mean."""
    return "" if value is None else f"{value:.2f}"


def interval(found: dict[str, Any] | None) -> str:
    """A mean with its interval."""
    if found is None or found["n"] < FEWEST:
        return "not known (too few prompts)"
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(Path(sys.argv[1]), *sys.argv[2:3])
