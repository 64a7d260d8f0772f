"""``safeserve view DIR``: the runs in a browser, on this machine only."""

from __future__ import annotations

from pathlib import Path

import typer

from safeserve.cli.common import RUNS


def view(
    folder: Path = typer.Argument(RUNS, help="Folder with runs."),
    port: int = typer.Option(7373, "--port", min=0, max=65535, help="Port on localhost; 0 takes a free one."),
    no_browser: bool = typer.Option(False, "--no-browser", help="Only print the address."),
) -> None:
    """Show all runs in the browser: their verdicts and pages, and any two models compared. Ctrl-C ends it."""
    from safeserve.report.view import serve

    def ready(address: str) -> None:
        print(address, flush=True)
        if not no_browser:
            import webbrowser

            webbrowser.open(address)

    serve(folder, port, ready)
