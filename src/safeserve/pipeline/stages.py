"""What each stage of a finished run cost: seconds, tokens, tokens a second, peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json

HEADER = ("stage", "seconds", "tokens", "tokens/s", "peak memory")


@dataclass(frozen=True)
class StageTime:
    """A stage, or (``part``) what one of its parts took.

    ``tokens`` is None where they were not counted. ``rate`` is None, too, where a stage was stopped and went on: tokens
    and seconds are then of different shares of the work.
    """

    stage: str
    seconds: float
    part: str | None = None
    tokens: int | None = None
    rate: float | None = None
    peak_memory_gib: float | None = None


def stage_times(run: Path) -> list[StageTime]:
    """Stages of a run in the order of its work, each followed by its parts; before and after them what is no stage.

    Raises:
        UserError: not a finished run.
    """
    manifest = read_json(run / "manifest.json")
    seconds, overhead = manifest.get("seconds", {}), manifest.get("overhead_seconds", {})
    if not seconds:
        raise UserError(f"{run}: its manifest names no stage's seconds.")
    rows = [StageTime("start", overhead["start"])] if "start" in overhead else []
    for key in seconds:
        kind, _, name = key.partition(" ")
        stage = f"{'eval' if kind == 'evaluate' else kind}-{name}"
        path = run / "stages" / stage / "metrics.json"
        if path.exists():
            rows += _of_stage(stage, read_json(path))
    if "compare" in overhead:
        rows.append(StageTime("compare", overhead["compare"]))
    return rows


def _of_stage(stage: str, metrics: dict[str, object]) -> list[StageTime]:
    parts: dict[str, dict[str, float]] = metrics.get("parts") or {}  # type: ignore[assignment]
    total = metrics.get("stage_seconds") or metrics.get("seconds") or 0.0
    rows = [StageTime(stage, float(total), peak_memory_gib=metrics.get("peak_memory_gib"))]  # type: ignore[arg-type]
    for part, cost in parts.items():
        seconds, tokens = cost.get("seconds", 0.0), cost.get("tokens")
        known = tokens and seconds and not metrics.get("resumed")
        rows.append(
            StageTime(
                stage,
                seconds,
                part,
                tokens=int(tokens) if tokens else None,
                rate=tokens / seconds if tokens and known else None,
            )
        )
    return rows


def _cells(row: StageTime) -> tuple[str, ...]:
    return (
        row.stage if row.part is None else f"  {row.part}",
        f"{row.seconds:,.1f}",
        f"{row.tokens:,}" if row.tokens is not None else "",
        f"{row.rate:,.0f}" if row.rate is not None else "",
        f"{row.peak_memory_gib:.2f} GiB" if row.peak_memory_gib is not None else "",
    )


def _with_total(rows: Sequence[StageTime]) -> list[StageTime]:
    whole = [row for row in rows if row.part is None]
    peak = max((row.peak_memory_gib for row in whole if row.peak_memory_gib is not None), default=None)
    return [*rows, StageTime("total", sum(row.seconds for row in whole), peak_memory_gib=peak)]


def stage_table(rows: Sequence[StageTime]) -> str:
    """The table for a terminal."""
    cells = [HEADER, *map(_cells, _with_total(rows))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = []
    for first, *others in cells:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def stage_markdown(rows: Sequence[StageTime]) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" + "|---:" * (len(HEADER) - 1) + "|"]
    for row in _with_total(rows):
        cells = _cells(row)
        name = f"`{row.stage}`" if row.part is None and row.stage != "total" else cells[0].strip()
        indent = "&nbsp;&nbsp;" if row.part is not None else ""
        lines.append(f"| {indent}{name} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)
