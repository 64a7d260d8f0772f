"""What a trained guard is, as a table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_guard(metrics: dict[str, Any], file: Path) -> None:
    """Rows and licence per source, ranking on held-out prompts, calibration, size and hash."""
    console = Console()
    sources = Table("labelled set", "rows", "licence", title=f"guard {escape(metrics['name'])}")
    for name, rows in metrics["rows"].items():
        sources.add_row(escape(name), str(rows), escape(metrics["licences"][name]))
    console.print(sources)
    ranking = Table("held-out prompts of", "n", "unsafe", "AUROC")
    for name, part in metrics["validation"].items():
        shown = "one class only" if part["auroc"] is None else f"{part['auroc']:.3f}"
        ranking.add_row(escape(name), str(part["n"]), str(part["unsafe"]), shown)
    console.print(ranking)
    calibration = metrics["calibration"]
    console.print(
        f"P = sigmoid({calibration['slope']:.3f} x logit {calibration['intercept']:+.3f}), "
        f"unsafe from {calibration['threshold']:g} on; {metrics['bytes'] / 1e6:.1f} MB, sha256 {metrics['sha256']}"
    )
    console.print(escape(str(file)), highlight=False)
