"""``safeserve gate A B --policy P``: the exit code is the verdict."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.cli.foreign import BENCHMARK, JUDGE, LABEL, MAP, foreign_options
from safeserve.core.errors import UserError


def gate(
    a: str = typer.Argument(help="The candidate: RUN:MODEL, an evals/MODEL folder, or foreign completions."),
    b: str | None = typer.Argument(None, help="What it is compared with; rules about losses and gains need it."),
    policy: str = typer.Option("starter", "--policy", help="starter, strict, paper, or a YAML file."),
    mapping: list[str] = MAP,
    label: str | None = LABEL,
    benchmark: str | None = BENCHMARK,
    judge: list[str] = JUDGE,
    junit: Path | None = typer.Option(None, "--junit", help="Also write the rules as JUnit XML, for a CI server."),
    summary: Path | None = typer.Option(None, "--summary", help="Also append the verdict as Markdown to this file."),
    out: Path | None = typer.Option(None, "--out", help="Also write the verdict to this JSON file."),
    as_json: bool = typer.Option(False, "--json", help="Print the verdict as JSON."),
) -> None:
    """Decide whether a model is safe to serve.

    Exit codes: 0 passed, 1 failed, 2 wrong input, 3 environment, 4 not enough evidence.
    """
    from safeserve.core.runs import read_text, write_json, write_text
    from safeserve.evaluation.foreign import read_side, read_sides
    from safeserve.evaluation.gate import decide, load_policy
    from safeserve.evaluation.junit import junit_xml

    written = [path for path in (junit, summary, out) if path is not None]
    if len({path.resolve() for path in written}) < len(written):
        raise UserError("--junit, --summary and --out: two of them name the same file. Name different ones.")
    rules = load_policy(policy)
    options = foreign_options(mapping, label, benchmark, judge)
    candidate, against = read_sides(a, b, options) if b else (read_side(a, options), None)
    verdict = decide(candidate, against, rules)
    if junit is not None:
        write_text(junit, junit_xml(verdict))
    if summary is not None:
        from safeserve.report.tables import verdict_markdown

        # Appended: a CI server's summary file is shared by the steps of a job.
        before = read_text(summary) if summary.is_file() else ""
        write_text(summary, before + verdict_markdown(verdict))
    if out is not None:
        write_json(out, verdict.to_json())
    if as_json:
        print_json(verdict.to_json())
    else:
        from safeserve.report.tables import print_verdict

        print_verdict(verdict)
        next_commands(
            *(
                [f"safeserve compare {quote(b)} {quote(a)}"]
                if b
                else [f"safeserve gate {quote(a)} BASE --policy {policy}"]
            )
        )
    raise typer.Exit(verdict.exit_code)
