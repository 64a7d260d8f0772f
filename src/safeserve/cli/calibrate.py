"""``safeserve calibrate JUDGE``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from safeserve.cli.common import next_commands, print_json, quiet_libraries


def calibrate(
    judge: str = typer.Argument(help="A judge by name, module:object, or a YAML file."),
    labels: str = typer.Option(..., "--labels", help="A labelled set by name, or a file: prompt, response, label."),
    answers: list[str] = typer.Option(
        [], "--answers", help="RUN:MODEL that holds the answers of labels without text (key, mode). Repeatable."
    ),
    root: Path | None = typer.Option(
        None, "--root", envvar="SAFESERVE_DATA_ROOT", help="Folder that holds the public data sets."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Read so many answers or pairs; keep no result."),
    question: Literal["unsafe", "refusal"] | None = typer.Option(
        None, "--question", help="What to ask of labels that answer both. By default what the judge is for."
    ),
    use: bool = typer.Option(False, "--use", help="Correct reported rates with this calibration from now on."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Measure a judge on answers that people have labelled: what it ranks, misses and flags wrongly."""
    from safeserve.evaluation.calibrate import calibrate as measure_judge

    quiet_libraries()
    result = measure_judge(judge, labels, answers=answers, root=root, limit=limit, question=question, use=use)
    if as_json:
        print_json(result)
        return
    from safeserve.report.calibration import print_calibration

    print_calibration(result)
    if not use and limit is None and result.get("sensitivity") is not None:
        next_commands(
            f"safeserve calibrate {judge} --labels {labels} --use", f"safeserve score RUN:MODEL --judge {judge}"
        )
