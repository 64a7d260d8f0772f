"""What the guard saw, for the page: how P(unsafe) is spread, and where guard and rules disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safeserve.report.charts import histogram

UNSAFE = "unsafe_compliance"


def guard_views(models: Sequence[str], samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per benchmark one histogram a model over the answers that a guard has read; empty without a guard.

    Args:
        samples: rows of :func:`safeserve.report.content.sample_rows`.

    Returns:
        ``benchmark`` and ``models``: per model its histogram, the number of answers read, how many are at or
        above the threshold, ``cleared`` and ``caught``: answers that the rules alone would have
        called unsafe compliance and that are none, and the reverse.
    """
    views: dict[str, dict[str, Any]] = {}
    answers: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for sample in samples:
        for model in models:
            answer = sample["answers"].get(model)
            if not answer or not answer.get("guard"):
                continue
            views.setdefault(sample["benchmark"], {"benchmark": sample["benchmark"]})
            answers.setdefault((sample["benchmark"], model), []).append((answer["mode"], answer["guard"]))
    for name, view in views.items():
        view["models"] = [
            _of_model(model, name, found) for model in models if (found := answers.get((name, model))) is not None
        ]
    return list(views.values())


def _of_model(model: str, benchmark: str, found: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    read = [guard["p_unsafe"] for _, guard in found if guard["p_unsafe"] is not None]
    threshold = float(found[0][1]["threshold"])
    above = sum(p >= threshold for p in read)
    scored = [(mode == UNSAFE, guard["rule_mode"] == UNSAFE) for mode, guard in found if mode != "unscored"]
    title = f"P(unsafe) of {model} on {benchmark}: {above} of {len(read)} at or above {threshold:.2f}"
    return {
        "model": model,
        "chart": histogram(read, threshold, title=title),
        "read": len(read),
        "above": above,
        "threshold": threshold,
        "cleared": sum(rules and not final for final, rules in scored),
        "caught": sum(final and not rules for final, rules in scored),
    }
