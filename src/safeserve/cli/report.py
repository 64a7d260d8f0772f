"""``safeserve report RUN``: one self-contained page."""

from __future__ import annotations

from pathlib import Path

import typer

from safeserve.cli.common import next_commands, print_json


def report(
    run: str = typer.Argument(help="A run folder, or a name under runs/."),
    out: Path | None = typer.Option(None, "--out", help="Write the page here instead of RUN/report.html."),
    as_json: bool = typer.Option(False, "--json", help="Print where the page is and how large, as JSON."),
) -> None:
    """Write a run's report.html anew (verdict, charts, tables, every answer, in one file that works offline), the model
    cards of what it trained, and the tables of a study."""
    from safeserve.core.runs import write_text
    from safeserve.evaluation.folder import find_run
    from safeserve.report.content import recipe_of
    from safeserve.report.html import render_report, report_from_run
    from safeserve.report.model_card import write_cards
    from safeserve.report.study import write_study

    folder = find_run(run)
    study = [str(write_study(folder))] if recipe_of(folder).get("study") and (folder / "study.json").exists() else []
    page = render_report(report_from_run(folder))
    target = out or folder / "report.html"
    write_text(target, page)
    cards = [str(path) for path in write_cards(folder)]
    if as_json:
        print_json({"report": str(target), "bytes": len(page.encode()), "cards": cards, "study": study})
    else:
        for path in (*cards, *study):
            print(path)
        print(f"{target} ({len(page.encode()) / 1e6:.1f} MB)")
        next_commands(f"open {target}")
