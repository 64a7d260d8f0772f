"""What an iteration came to, as the row of its ``metrics.json``, as curves, and in a line for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from safeserve.judging.diversity import distinct_share
from safeserve.training.preflight import Verdict, judge_numbers, selection_numbers
from safeserve.training.raft_samples import Answer, Panel, scored_prompts
from safeserve.training.selection import Selection


def iteration_row(
    panel: Panel,
    number: int,
    answers: Sequence[Answer],
    chosen: Selection,
    pairs: int,
    labelled: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Verdict]:
    """Everything known before learning, and what it means.

    Args:
        pairs: how many preference pairs the samples give.
        labelled: the reward's accuracy on labelled pairs.

    Returns:
        The row; ``training``, ``held_out`` and ``kl`` are still None.
    """
    prompts = scored_prompts(panel, answers, chosen)
    first = panel.options.samples_per_prompt  # what comes after was sampled because nothing before was safe
    checks = selection_numbers(prompts, first)
    if labelled is not None:
        checks["labelled_pairs"] = labelled
    verdict = judge_numbers(checks, labelled, panel.options.by_reward)
    if not chosen.picks:
        reasons = Counter(chosen.dropped.values()).most_common()
        verdict.stop = f"nothing was picked ({', '.join(f'{count} prompts: {reason}' for reason, count in reasons)})"
    elif panel.options.update == "dpo" and not pairs:
        verdict.stop = "no prompt has a picked sample and a worse one, so there is no pair to learn from"
    harmful = [prompt for prompt in prompts if prompt.harmful]
    completions = [answer.completion for answer in answers]
    texts = [completion.text for completion in completions]
    row = {
        "iteration": number,
        "prompts": {"harmful": len(harmful), "benign": len(prompts) - len(harmful)},
        "samples": {
            **chosen.counts,
            "cut_off": sum(c.finish_reason == "length" for c in completions),
            "tokens": sum(len(c.token_ids) for c in completions),
            "answer_tokens": fmean(len(c.token_ids) for c in completions),
            "distinct_1": distinct_share(texts, 1),
            "distinct_2": distinct_share(texts, 2),
        },
        "selected": sum(map(len, chosen.picks.values())),
        "dropped": dict(Counter(chosen.dropped.values())),
        "pairs": pairs,
        "reward_mean": _mean([s.reward for prompt in prompts for s in prompt.samples if s.k < first]),
        "reward_selected": _mean([s.reward for prompt in prompts for s in prompt.chosen()]),
        "safe_rate_samples": _safe_rate([s.held_out_unsafe for p in harmful for s in p.samples if s.k < first]),
        "safe_rate_selected": _safe_rate([s.held_out_unsafe for prompt in harmful for s in prompt.chosen()]),
        "checks": checks,
        "warnings": verdict.warnings,
        "notes": verdict.notes,
        "training": None,
        "held_out": None,
        "kl": None,
        "stopped": verdict.stop,
    }
    return row, verdict


def training_totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Steps, tokens and seconds of all iterations' training."""
    trained = [row["training"] for row in rows if row["training"]]
    return {
        "rows": sum(row["rows"] for row in trained),
        "steps": sum(row["steps"] for row in trained),
        "tokens": sum(row["tokens"] for row in trained),
        "seconds": round(sum(row["seconds"] for row in trained), 2),
    }


def curves(rows: Sequence[dict[str, Any]], start: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Numbers by iteration as the report draws them; dashed (``validation``) is the held-out slice, 0 the start."""
    quantities = ("safe_rate", "over_refusal_rate", "distinct_1", "distinct_2", "answer_tokens")
    train = [
        {
            "step": row["iteration"],
            "reward_selected": row["reward_selected"],
            "reward_mean": row["reward_mean"],
            "safe_rate": row["safe_rate_selected"],
            **{name: row["samples"][name] for name in ("distinct_1", "distinct_2", "answer_tokens")},
            **({"loss": row["training"]["loss"]} if row["training"] else {}),
        }
        for row in rows
    ]
    validation = [{"step": 0, **{f"eval_{name}": start[name] for name in quantities}, "eval_kl": 0.0}]
    for row in rows:
        if row["held_out"]:
            kl = {"eval_kl": row["kl"]["per_answer"]["mean"]} if row["kl"] and row["kl"]["per_answer"] else {}
            measured = {f"eval_{name}": row["held_out"][name] for name in quantities}
            validation.append({"step": row["iteration"], **measured, **kl})
    return {"train": train, "validation": validation}


def told(row: dict[str, Any]) -> str:
    """An iteration in a line."""
    parts = [f"{row['selected']} samples picked, {sum(row['dropped'].values())} prompts dropped"]
    if row["reward_mean"] is not None and row["reward_selected"] is not None:
        parts.append(f"reward {row['reward_mean']:.3g}, of the picked {row['reward_selected']:.3g}")
    if row["safe_rate_samples"] is not None and row["safe_rate_selected"] is not None:
        parts.append(f"{row['safe_rate_samples']:.0%} safe, of the picked {row['safe_rate_selected']:.0%}")
    if row["held_out"] and row["held_out"]["safe_rate"] is not None:
        parts.append(f"held-out prompts then {row['held_out']['safe_rate']:.0%} safe")
    return "; ".join(parts)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _safe_rate(unsafe: Sequence[bool | None]) -> float | None:
    known = [mark for mark in unsafe if mark is not None]
    return 1 - sum(known) / len(known) if known else None
