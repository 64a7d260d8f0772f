"""A calibration as a table and a reliability curve of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from safeserve.judging.calibration_store import kept
from safeserve.report.charts import reliability_chart
from safeserve.report.tables import WIDTH

ROWS = (
    ("auroc", "AUROC"),
    ("average_precision", "average precision"),
    ("sensitivity", "recall (sensitivity)"),
    ("specificity", "specificity"),
    ("precision", "precision"),
    ("f1", "F1"),
    ("kappa", "κ"),
)
_BAR = 30


def number(cell: Mapping[str, Any] | None) -> str:
    """``.893 [.871, .914]``; a dash where it was not measured."""
    if cell is None:
        return "–"
    if cell["ci95"] is None:
        return _short(cell["value"])
    low, high = cell["ci95"]
    return f"{_short(cell['value'])} [{_short(low)}, {_short(high)}]"


def calibration_view(result: Mapping[str, Any]) -> RenderableType:
    """One judge on one labelled set."""
    if "agreement" in result:
        return _pairs(result)
    table = Table(box=SIMPLE, pad_edge=False, title=Text(f"{result['judge']} on {result['labels']}"))
    table.add_column("")
    table.add_column("value [95 %]", justify="right")
    what = "unsafe" if result["question"] == "unsafe" else "refused"
    table.add_row("answers", f"{result['n']}, {result['n_positive']} of {result['n_scored']} scored {what}")
    _counts(table, result)
    for key, title in ROWS:
        table.add_row(title, number(result[key]))
    if result["ece"] is not None:
        table.add_row("calibration error", _short(result["ece"]))
    for name, cell in result["peers"].items():
        table.add_row(Text(f"AUROC of {name}"), number(cell))
    parts: list[RenderableType] = [table]
    if "classes" in result:
        parts += [_classes(result["classes"])]
    if result["reliability"]:
        parts += [_curve(result["reliability"])]
    if result["by_category"]:
        parts += [_categories(result["by_category"])]
    return Group(*parts)


def _counts(table: Table, result: Mapping[str, Any]) -> None:
    """Rows that every calibration has: prompts, what could not be scored, and whether the judge knows the answers."""
    table.add_row("prompts", str(result["n_prompts"]))
    if result["n_unscored"]:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in result["unscored_reasons"].items())
        table.add_row("unscored", Text(f"{result['n_unscored']}: {reasons}", overflow="fold"))
    if result["learned_from"]:
        table.add_row("", "The judge learned from this set: too good to be true.")


def _pairs(result: Mapping[str, Any]) -> RenderableType:
    table = Table(box=SIMPLE, pad_edge=False, title=Text(f"{result['judge']} on {result['labels']}"))
    table.add_column("")
    table.add_column("value [95 %]", justify="right")
    table.add_row("pairs", f"{result['n_scored']} of {result['n']} scored")
    _counts(table, result)
    table.add_row(f"prefers the answer that people called {result['question']}", number(result["agreement"]))
    table.add_row("ties, each counted as half", str(result["ties"]))
    if result["inconsistent"] is not None:
        table.add_row("other verdict in the other order", str(result["inconsistent"]))
    for name, part in result["by_category"].items():
        table.add_row(Text(f"{name} ({part['n']})"), number(part["agreement"]))
    return table


def print_calibration(result: Mapping[str, Any]) -> None:
    """Print one calibration."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(WIDTH, console.width))
    console.print(calibration_view(result))


def calibration_cards(judges: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the page shows of each judge: its rows a labelled set, with the curve where it gives probabilities.

    Args:
        judges: judge name to identity, as summary.json has them.
    """
    cards = []
    for judge, judge_identity in judges.items():
        sets = [_card_row(result) for result in kept(judge_identity)]
        cards.append({"judge": judge, "sets": sets})
    return cards


def _card_row(result: Mapping[str, Any]) -> dict[str, Any]:
    pairs = "agreement" in result
    cells = [("agreement on pairs", "agreement")] if pairs else [(title, key) for key, title in ROWS]
    shown = [f"{title} {number(result[key])}" for title, key in cells if result.get(key) is not None]
    curve = result.get("reliability")
    title = f"{result['judge']} on {result['labels']}: predicted against observed"
    return {
        "labels": result["labels"],
        "question": result["question"],
        "n": result["n_scored"],
        "numbers": "; ".join(shown),
        "learned_from": result["learned_from"],
        "curve": reliability_chart(curve, title) if curve else None,
    }


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def _curve(curve: list[dict[str, Any]]) -> RenderableType:
    table = Table(box=SIMPLE, pad_edge=False, title=Text("Reliability: predicted against observed, equally many rows"))
    for heading in ("predicted", "observed", "95 %", "n"):
        table.add_column(heading, justify="right")
    table.add_column("0" + " " * (_BAR - 2) + "1")
    for part in curve:
        bar = ["·"] * (_BAR + 1)
        low, high = (round(_BAR * bound) for bound in part["ci95"])
        bar[low : high + 1] = ["─"] * (high - low + 1)
        bar[round(_BAR * part["observed"])] = "●"
        bar[round(_BAR * part["predicted"])] = "|"
        interval = f"{_short(part['ci95'][0])} to {_short(part['ci95'][1])}"
        table.add_row(_short(part["predicted"]), _short(part["observed"]), interval, str(part["n"]), "".join(bar))
    return Group(table, Text("● observed, ─ its interval, | predicted", style="dim"))


def _classes(classes: Mapping[str, Any]) -> RenderableType:
    title = f"Three classes: κ {number(classes['kappa'])}; people (rows) against the judge (columns)"
    table = Table(box=SIMPLE, pad_edge=False, title=Text(title))
    names = list(classes["confusion"])
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for name in names:
        table.add_row(name.replace("_", " "), *(str(classes["confusion"][name][other]) for other in names))
    return table


def _categories(by_category: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    table = Table(box=SIMPLE, pad_edge=False, title=Text("By category"))
    table.add_column("category")
    for heading in ("n", "positive", "AUROC", "sensitivity", "specificity"):
        table.add_column(heading, justify="right")
    for name, part in by_category.items():
        cells = (part[key] for key in ("auroc", "sensitivity", "specificity"))
        shown = ("–" if cell is None else _short(cell) for cell in cells)
        table.add_row(Text(name), str(part["n"]), str(part["n_positive"]), *shown)
    return table
