"""``safeserve compare A B``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.cli.foreign import BENCHMARK, JUDGE, LABEL, MAP, foreign_options
from safeserve.core.errors import UserError


def compare(
    a: str = typer.Argument(help="Before: RUN:MODEL, an evals/MODEL folder, or foreign completions: [NAME=]FILE."),
    b: str = typer.Argument(help="After: the same."),
    mapping: list[str] = MAP,
    label: str | None = LABEL,
    benchmark: str | None = BENCHMARK,
    judge: list[str] = JUDGE,
    force: bool = typer.Option(False, "--force", help="In spite of other decoding or another version of a judge."),
    every: bool = typer.Option(False, "--all-metrics", help="Also cut off and repetitive answers."),
    markdown: bool = typer.Option(False, "--markdown", help="Print the table as Markdown."),
    out: Path | None = typer.Option(None, "--out", help="Also write the comparison to this JSON file."),
    win_rate: str | None = typer.Option(None, "--win-rate", help="A pairwise judge's YAML file: who answers better?"),
    null_test: bool = typer.Option(False, "--null-test", help="With --win-rate: also B against itself; must be 50 %."),
    as_json: bool = typer.Option(False, "--json", help="Print the comparison as JSON."),
) -> None:
    """Compare two models on the same prompts: differences with intervals, answers fixed and broken, exact tests."""
    from safeserve.core.runs import write_json
    from safeserve.evaluation.compare import compare as compare_evals
    from safeserve.evaluation.foreign import read_sides

    if null_test and win_rate is None:
        raise UserError("--null-test: tests the judge of --win-rate. Give that too.")
    before, after = read_sides(a, b, foreign_options(mapping, label, benchmark, judge))
    result = compare_evals(before, after, force)
    if win_rate is not None:
        from safeserve.evaluation.win_rate import add_win_rates

        result = add_win_rates(result, before, after, win_rate, null_test)
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
        return
    from safeserve.report.tables import comparison_markdown, print_comparison
    from safeserve.report.win_rate import print_win_rates, win_rates_markdown

    if markdown:
        print(comparison_markdown(result, every) + win_rates_markdown(result))
    else:
        print_comparison(result, every)
        print_win_rates(result)
    next_commands(f"safeserve gate {quote(b)} {quote(a)} --policy starter")
