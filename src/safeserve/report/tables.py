"""Results as tables: for people on stdout (rich) and as Markdown for documents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from safeserve.core.errors import harmless
from safeserve.evaluation.findings import Finding, shown
from safeserve.evaluation.gate import Verdict
from safeserve.evaluation.metrics import PROVISIONAL
from safeserve.report.rows import (
    SUMMARISED,
    comparison_rows,
    finding_notes,
    hygiene_notes,
    is_provisional,
    mode_shift_text,
    mode_totals,
    summary_rows,
)
from safeserve.report.words import markdown

_TAG = re.compile(r"(?<!\\)<(?=[A-Za-z/!?])")
WIDTH = 110
"""Columns where stdout is no terminal, so that a redirected table is not folded at 80."""
OUTCOME_WORDS = {"pass": "passes", "fail": "fails", "no_verdict": "gets no verdict under"}
_STYLES = {"better": "bold green", "worse": "bold red", "none": ""}
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_SIGNS = {"pass": ("✓", "green"), "fail": ("✗", "bold red"), "no_verdict": ("?", "bold yellow")}


def summary_view(summary: Mapping[str, Any], every: bool = False) -> RenderableType:
    """One model's rates with intervals, and what limits them."""
    table = Table(
        box=SIMPLE, pad_edge=False, title=_plain(f"{summary['model']} on {summary.get('suite', 'its suite')}")
    )
    for heading, justify in (("benchmark", "left"), ("metric", "left"), ("value", "right"), ("95 %", "right")):
        table.add_column(heading, justify=justify, no_wrap=heading != "benchmark")  # type: ignore[arg-type]
    table.add_column("n", justify="right")
    rows = summary_rows(summary, every)
    corrected = any(row.corrected for row in rows)
    if corrected:
        table.add_column("corrected (95 %)", justify="right", no_wrap=True)
    last = None
    for row in rows:
        shown = (row.corrected or "–",) if corrected else ()
        name = _plain("" if row.benchmark == last else row.benchmark)
        table.add_row(name, _plain(row.metric), row.value, row.interval, str(row.n), *shown)
        last = row.benchmark
    return Group(table, *_note_lines(hygiene_notes({summary["model"]: summary})))


def comparison_view(comparison: Mapping[str, Any], every: bool = False) -> RenderableType:
    """Base and aligned side by side, mode shifts below, then what must be known before believing them."""
    a, b = comparison["a"], comparison["b"]
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=_plain(f"{b} against {a}, the same prompts"))
    table.add_column("benchmark (n)", overflow="fold", min_width=19)
    for name in (a, b):  # a file's name may be long: it folds, so that no number is cut off
        table.add_column(_plain(name), justify="right", overflow="fold", min_width=8)
    for heading in ("change", "95 %", "fixed/\nbroken", "p"):
        table.add_column(_plain(heading), justify="right", no_wrap=True)
    last: tuple[str, int] | None = None
    for row in comparison_rows(comparison, every):
        if (row.benchmark, row.n) != last:
            if last is not None:
                table.add_section()
            table.add_row(Text.assemble((row.benchmark, "bold"), f" ({row.n})"))
        last = (row.benchmark, row.n)
        difference = Text(row.difference, style=_STYLES[row.change])
        fixed_broken = row.fixed_broken.replace(" ", "")
        table.add_row(_plain(f"  {row.metric}"), row.a, row.b, difference, row.interval, fixed_broken, row.p)
    shifts = [
        Text.assemble((f"{benchmark}  ", "bold"), mode_shift_text(before, after))
        for benchmark, before, after in mode_totals(comparison)
    ]
    parts: list[RenderableType] = [table]
    if shifts:
        parts += [Text("Response modes", style="italic"), *(Padding(shift, (0, 0, 0, 2)) for shift in shifts)]
    notes = [*comparison.get("notes", ()), *finding_notes(comparison)]
    if is_provisional(comparison):
        notes.append(PROVISIONAL)
    return Group(*parts, *_note_lines(notes))


def verdict_sentence(verdict: Mapping[str, Any]) -> str:
    """``dpo passes the policy starter.``"""
    sentence = f"{verdict['candidate']} {OUTCOME_WORDS[verdict['outcome']]} the policy {verdict['policy']['name']}"
    return sentence + (" (provisional)." if verdict["provisional"] else ".")


def verdict_view(verdict: Verdict) -> RenderableType:
    """The verdict, every rule with its reason, and the caveats."""
    content = verdict.to_json()
    sign, style = _SIGNS[verdict.outcome]
    parts: list[RenderableType] = [Text(f"{sign} {verdict_sentence(content)}", style=style)]
    for rule in verdict.rules:
        sign, style = _SIGNS[rule.outcome]
        parts.append(Padding(Text.assemble((f"{sign} ", style), (rule.rule, "bold"), f"\n{rule.why}"), (0, 0, 0, 2)))
    said = {f"{rule.rule}: {rule.why}" for rule in verdict.rules}
    return Group(*parts, *_note_lines([reason for reason in verdict.reasons if reason not in said]))


def verdict_markdown(verdict: Verdict) -> str:
    """The verdict as Markdown: its sentence, a row a rule, and what limits it; for a CI server's summary."""
    content = verdict.to_json()
    words = {"pass": "holds", "fail": "**does not hold**", "no_verdict": "**no evidence**"}
    rows = [(markdown(r.rule), "skipped" if r.skipped else words[r.outcome], markdown(r.why)) for r in verdict.rules]
    table = markdown_table(("rule", "outcome", "measured"), rows, left=3)
    said = {f"{rule.rule}: {rule.why}" for rule in verdict.rules}
    notes = [f"* {markdown(reason)}" for reason in verdict.reasons if reason not in said]
    sign = _SIGNS[verdict.outcome][0]
    parts = [f"## {sign} {markdown(verdict_sentence(content))}", table.strip(), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def print_summary(summary: Mapping[str, Any], every: bool = False) -> None:
    """Print one model's rates."""
    _print(summary_view(summary, every))


def print_comparison(comparison: Mapping[str, Any], every: bool = False) -> None:
    """Print one comparison."""
    _print(comparison_view(comparison, every))


def print_verdict(verdict: Verdict) -> None:
    """Print a verdict with its reasons."""
    _print(verdict_view(verdict))


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what hygiene found: rule, place, what is wrong, and the first ids that show it."""
    lines: list[RenderableType] = []
    for one in findings:
        line = Text.assemble((f"{one.severity} {one.rule} ", _SEVERITY_STYLES[one.severity]), (one.where, "bold"))
        line.append(f"\n  {one.message}")
        if one.evidence:
            line.append(f"\n  {shown(one.evidence)}", style="dim")
        lines.append(line)
    _print(Group(*(lines or [Text("Nothing found.")])))


def print_outcome(
    summaries: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any]],
    verdict: Verdict | None,
) -> None:
    """Print what a run found: every comparison (one model alone: its rates), what limits them, then the verdict."""
    for comparison in comparisons.values():
        # hygiene_notes tells these rules of every model, once
        findings = [one for one in comparison.get("findings", ()) if one["rule"] not in SUMMARISED]
        print_comparison({**comparison, "findings": findings})
    # Every comparison says this one itself, and what else was found on its two sides.
    printed = (note for comparison in comparisons.values() for note in finding_notes(comparison, without=SUMMARISED))
    said = {PROVISIONAL, *printed}
    notes = [note for note in hygiene_notes(summaries) if note not in said]
    if comparisons and notes:
        _print(Group(*_note_lines(notes)))
    if not comparisons:
        for summary in summaries.values():
            print_summary(summary)
    if verdict:
        print_verdict(verdict)


def comparison_markdown(comparison: Mapping[str, Any], every: bool = False) -> str:
    """The same table as Markdown."""
    a, b = comparison["a"], comparison["b"]
    headings = ("benchmark", "metric", "n", a, b, "difference (95 %)", "fixed / broken", "p (Holm)")
    rows = [
        (r.benchmark, r.metric, str(r.n), r.a, r.b, f"{r.difference} ({r.interval})", r.fixed_broken, r.p)
        for r in comparison_rows(comparison, every)
    ]
    notes = [*comparison.get("notes", ()), *finding_notes(comparison)]
    if is_provisional(comparison):
        notes.append(PROVISIONAL)
    return markdown_table(headings, rows, left=2) + "".join(f"\n{note}\n" for note in notes)


def summary_markdown(summary: Mapping[str, Any], every: bool = False) -> str:
    """One model's rates as Markdown."""
    rows = summary_rows(summary, every)
    headings: tuple[str, ...] = ("benchmark", "metric", "value", "95 %", "n")
    cells: list[tuple[str, ...]] = [(r.benchmark, r.metric, r.value, r.interval, str(r.n)) for r in rows]
    if any(row.corrected for row in rows):
        headings = (*headings, "corrected (95 %)")
        cells = [(*cell, row.corrected or "–") for cell, row in zip(cells, rows, strict=True)]
    notes = "".join(f"\n{note}\n" for note in hygiene_notes({summary["model"]: summary}))
    return markdown_table(headings, cells, left=2) + notes


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; columns after the first ``left`` are right-aligned."""

    def line(cells: Sequence[str]) -> str:
        escaped = (re.sub(r"(?<!\\)\|", r"\|", _TAG.sub(r"\<", cell)).replace("\n", " ") for cell in cells)
        return "| " + " | ".join(escaped) + " |\n"

    ruler = "|" + "|".join("---" if i < left else "---:" for i in range(len(headings))) + "|\n"
    return line(headings) + ruler + "".join(map(line, rows))


def _note_lines(notes: list[str]) -> list[RenderableType]:
    return [Text(f"Note: {note}", style="dim") for note in notes]


def _plain(text: str) -> Text:
    # Names come from files: as Text they cannot carry rich markup.
    return Text(harmless(text))


def _print(view: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(WIDTH, console.width))
    console.print(view)
