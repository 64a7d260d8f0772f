"""Win rates as a table, with what the judge cost and how far it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeserve.report.tables import WIDTH

_HEADINGS = ("benchmark (n)", "win rate", "95 %", "equal length", "95 %", "won/tied/lost", "inconsistent", "unscored")


def win_rate_rows(comparison: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of words a benchmark, under ``_HEADINGS``; none where no win rate was measured."""
    rows: list[tuple[str, ...]] = []
    for name, part in comparison["benchmarks"].items():
        if (cell := part.get("win_rate")) is None:
            continue
        controlled, inconsistent = cell["length_controlled"], cell["inconsistent"]
        rows.append(
            (
                f"{name} ({cell['n_scored']})",
                _percent(cell["win_rate"]),
                _interval(cell["ci95"]),
                _percent(controlled["win_rate"]),
                _interval(controlled["ci95"]),
                f"{cell['wins']}/{cell['ties']}/{cell['losses']}",
                f"{_percent(inconsistent['rate'])} of {inconsistent['n']}",
                str(cell["n_unscored"]),
            )
        )
    return rows


def win_rate_notes(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know: the judge and its cost, texts that are equal, null tests, what was left out."""
    about = comparison["win_rate"]
    usage = about["usage"]
    tokens = f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens"
    cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4f}"
    notes = [
        f"Judge {about['judge']} ({about['model']}), both orders: {usage['calls']} calls, {usage['from_cache']} "
        f"verdicts from before, {tokens}{cost}. A tie counts half; so does a pair whose verdict flips with the order."
    ]
    for name, part in comparison["benchmarks"].items():
        cell = part.get("win_rate")
        if cell is None:
            continue
        if cell["identical"]:
            notes.append(f"{name}: {cell['identical']} pairs of identical answers, tied without asking.")
        if cell["n_without_answer"]:
            notes.append(f"{name}: {cell['n_without_answer']} answers have none on the other side to compare with.")
        if why := cell["length_controlled"]["reason"]:
            notes.append(f"{name}: no win rate at equal length: {why}.")
        if test := cell.get("null_test"):
            notes.append(_null_test_note(name, test))
    if about["left_out"]:
        notes.append(f"No win rate of harmful prompts and of multiple choice: {', '.join(about['left_out'])}.")
    return notes


def print_win_rates(comparison: Mapping[str, Any]) -> None:
    """The table on stdout; nothing where no win rate was measured."""
    if "win_rate" not in comparison:
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(WIDTH, console.width))
    title = f"Win rate of {comparison['b']} against {comparison['a']}"
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=Text(title))
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in win_rate_rows(comparison):
        table.add_row(*map(Text, row))
    console.print(table)
    for note in win_rate_notes(comparison):
        console.print(Text(note))


def win_rates_markdown(comparison: Mapping[str, Any]) -> str:
    """The table and its notes as Markdown; empty where no win rate was measured."""
    if "win_rate" not in comparison:
        return ""
    rows = [_HEADINGS, ("---",) + ("---:",) * (len(_HEADINGS) - 1), *win_rate_rows(comparison)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    notes = "\n".join(f"* {note}" for note in win_rate_notes(comparison))
    return f"\n\nWin rate of {comparison['b']} against {comparison['a']}\n\n{table}\n\n{notes}\n"


def _null_test_note(name: str, test: Mapping[str, Any]) -> str:
    verdict = "passed" if test["passed"] else "FAILED"
    return (
        f"{name}: null test {verdict}: answers against themselves give {_percent(test['win_rate'])}, {test['ties']} of "
        f"{test['n_scored']} called ties ({test['n'] - test['n_scored']} unscored); verdicts for the first place "
        f"{test['named_first']}, for the second {test['named_second']}."
    )


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"


def _interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
