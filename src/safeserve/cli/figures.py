"""``safeserve figures RUN``: pictures and tables for papers."""

from __future__ import annotations

from pathlib import Path

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.cli.run import JSON


def figures(
    run: str = typer.Argument(help="A run folder, or a name under runs/."),
    to: str = typer.Option("svg,pdf,png", "--to", help="Of svg, pdf, png, joined by commas."),
    out: Path | None = typer.Option(None, "--out", help="Folder to write to, instead of RUN/figures."),
    as_json: bool = JSON,
) -> None:
    """Draw a run for papers and slides (SVG, PDF, PNG), and write its tables as Markdown and LaTeX."""
    from safeserve.evaluation.folder import find_run
    from safeserve.report.figures import write_figures

    folder = find_run(run)
    files = write_figures(folder, out or folder / "figures", [form.strip() for form in to.split(",")])
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    print("\n".join(map(str, files)))
    next_commands(f"safeserve report {run}")
