"""``safeserve analyze RUN``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import typer

from safeserve.cli.common import next_commands, print_json, quiet_libraries


def analyze(
    run: str = typer.Argument(help="A run folder, a name under runs/, or any folder that holds evals/MODEL."),
    model: str | None = typer.Option(None, "--model", help="Only this model of the run."),
    against: str | None = typer.Option(None, "--against", help="With --model: the model before it."),
    judge: str | None = typer.Option(
        None, "--judge", help="Who decides what is unsafe: a judge that has scored the run. Default: modes."
    ),
    guard: str | None = typer.Option(
        None,
        "--guard",
        help="Also find the first unsafe sentence of unsafe answers with this guard (guard, or a file).",
    ),
    seed: int = typer.Option(7, "--seed", min=0, help="Seed of the permutations."),
    out: Path | None = typer.Option(None, "--out", help="Write here instead of RUN/analysis."),
    as_json: bool = typer.Option(False, "--json", help="Print the analysis as JSON."),
) -> None:
    """Say why answers fail: what changed between models, and which prompts stay unsafe beyond chance.

    Exit codes: 0 done, 2 wrong input, 3 environment, 4 nothing to analyse.
    """
    from safeserve.evaluation.analysis import analyze as analyze_sides
    from safeserve.evaluation.analysis import read_run
    from safeserve.evaluation.analysis_position import guard_for
    from safeserve.evaluation.folder import find_run
    from safeserve.report.analysis import print_analysis, write_analysis
    from safeserve.report.samples_table import clean

    quiet_libraries()
    folder = find_run(run)
    sides = read_run(folder, model, against)
    reader = guard_for(guard) if guard is not None else None
    analysis = analyze_sides(sides, judge, seed=seed, guard=reader, strict=against is not None, run=folder)
    files = write_analysis(analysis, out or folder / "analysis", folder.resolve().name)
    if as_json:
        print_json(clean(analysis))
        return
    print_analysis(analysis)
    markdown = next(path for path in files if path.suffix == ".md")
    page = [] if out else [f"safeserve report {quote(run)}"]
    next_commands(f"open {quote(str(markdown))}", *page)
