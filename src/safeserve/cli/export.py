"""``safeserve export TARGET --to inspect|csv|parquet|jsonl``."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from safeserve.cli.common import next_commands, print_json


def export(
    target: str = typer.Argument(help="A run (folder, or name under runs/), RUN:MODEL, or an evals/MODEL folder."),
    to: str = typer.Option(..., "--to", help="inspect, csv, parquet or jsonl."),
    out: Path | None = typer.Option(None, "--out", help="File to write (a folder for inspect)."),
    redo: bool = typer.Option(False, "--redo", help="Overwrite what exists."),
    as_json: bool = typer.Option(False, "--json", help="Print the files written, as JSON."),
) -> None:
    """Write every sample with its scores for other tools: Inspect logs, or one table."""
    from safeserve.report.exports import export as write

    files = write(target, to, out, redo=redo)
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        print(path)
    if to == "inspect":
        next_commands(shlex.join(["inspect", "view", "--log-dir", str(files[0].parent)]))
    else:
        next_commands(shlex.join(["safeserve", "export", target, "--to", "inspect"]))
