"""``safeserve check A [B]``: may these numbers be believed?"""

from __future__ import annotations

from shlex import quote

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.cli.foreign import BENCHMARK, JUDGE, LABEL, MAP, foreign_options
from safeserve.core.errors import EXIT_EVIDENCE, EXIT_OK


def check(
    a: str = typer.Argument(help="RUN:MODEL, an evals/MODEL folder, or foreign completions: [NAME=]FILE."),
    b: str | None = typer.Argument(None, help="A second one; rules about both together need it."),
    mapping: list[str] = MAP,
    label: str | None = LABEL,
    benchmark: str | None = BENCHMARK,
    judge: list[str] = JUDGE,
    root: str | None = typer.Option(None, "--root", envvar="SAFESERVE_DATA_ROOT", help="Folder with public data."),
    trained_on: list[str] = typer.Option(
        [], "--trained-on", help="A source or file that A was trained on. Repeatable."
    ),
    claim: list[str] = typer.Option([], "--claim", help="A published rate, BENCHMARK=PERCENT. Repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Look for what makes an evaluation worthless: wrong pairing, cut answers, loops, leaks, impossible rates.

    Exit codes: 0 no error was found (warnings may be), 2 wrong input, 4 an error: the numbers are no evidence.
    """
    from safeserve.evaluation.compare import findings_between
    from safeserve.evaluation.findings import worst_first
    from safeserve.evaluation.foreign import read_side, read_sides
    from safeserve.evaluation.hygiene import check_side
    from safeserve.evaluation.known import claimed_rates, expected_prompts, training_prompts

    options = foreign_options(mapping, label, benchmark, judge)
    one, two = read_sides(a, b, options) if b else (read_side(a, options), None)
    expected = expected_prompts([*one.benchmarks, *(two.benchmarks if two else ())], root)
    training = training_prompts(trained_on, root)
    found = findings_between(one, two, expected, training) if two else check_side(one, expected, training)
    found = worst_first([*found, *claimed_rates(one, claim)])
    if as_json:
        print_json([finding.to_json() for finding in found])
    else:
        from safeserve.report.tables import print_findings

        print_findings(found)
        next_commands(f"safeserve compare {quote(a)} {quote(b)}" if b else f"safeserve check {quote(a)} OTHER")
    raise typer.Exit(EXIT_EVIDENCE if any(one.severity == "error" for one in found) else EXIT_OK)
