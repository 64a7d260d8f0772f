"""``safeserve eval MODEL --suite S`` and ``safeserve score RUN:MODEL --judge J``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from safeserve.cli.common import RUNS, command_line, next_commands, print_json, quiet_libraries
from safeserve.cli.run import JSON, LIMIT, NAME, OUT, QUIET, REDO, SEED
from safeserve.core.errors import UserError


def evaluate(
    model: str = typer.Argument(help="The embedded model's name, a model or adapter folder, or a hub id."),
    suite: str = typer.Option("starter", "--suite", help="Suite, or several joined by +."),
    root: str | None = typer.Option(None, "--root", envvar="SAFESERVE_DATA_ROOT", help="Folder with public data."),
    template: str | None = typer.Option(None, "--template", help="alpaca or chatml, for a base model."),
    judge: list[str] = typer.Option(None, "--judge", help="Judges to use; may be repeated."),
    skip_missing: bool = typer.Option(False, "--skip-missing", help="Leave out sets that cannot be reached."),
    max_new_tokens: int | None = typer.Option(
        None, "--max-new-tokens", min=1, help="Longest answer; a benchmark's own limit holds where it is shorter."
    ),
    server: str | None = typer.Option(None, "--server", help="URL of an OpenAI-compatible server that serves MODEL."),
    api_key_env: str | None = typer.Option(None, "--api-key-env", help="Variable with the server's key."),
    name: str | None = NAME,
    out: Path | None = OUT,
    redo: bool = REDO,
    limit: int | None = LIMIT,
    seed: int | None = SEED,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Measure one model on a suite: safety, over-refusal and helpfulness, with intervals."""
    from safeserve.evaluation.benchmarks import default_judges
    from safeserve.evaluation.benchmarks import suite as benchmarks_of
    from safeserve.pipeline.recipe import EvaluateOptions, parse_recipe

    options: dict[str, Any] = {"models": ["base"], "suite": suite, "limit": limit, "skip_missing": skip_missing}
    options["judges"] = judge or default_judges(benchmarks_of(suite), EvaluateOptions.model_fields["judges"].default)
    if max_new_tokens is not None:
        options["sampling"] = {"max_new_tokens": max_new_tokens}
    tree: dict[str, Any] = {"model": model, "template": template, "data": {"root": root}, "evaluate": options}
    if server is not None:
        tree["server"] = {"base_url": server, "api_key_env": api_key_env}
    elif api_key_env is not None:
        raise UserError("--api-key-env: is the key of --server. Give that too.")
    recipe = parse_recipe({**tree, **({"seed": seed} if seed is not None else {})}, "safeserve eval")
    quiet_libraries()
    from safeserve.pipeline.run import Run

    folder = out or RUNS / (name or f"eval-{Path(model).name.replace('@', '-')}-{suite}")
    outcome = Run(recipe, folder, command=command_line(), redo=redo, quiet=quiet).execute()
    summary = outcome.summaries["base"]
    if as_json:
        print_json(summary)
    else:
        from safeserve.report.tables import print_summary

        print_summary(summary)
    next_commands(f"safeserve compare {folder}:base OTHER_RUN:MODEL", f"safeserve score {folder}:base --judge JUDGE")


def score(
    target: str = typer.Argument(help="RUN:MODEL, or an evals/MODEL folder."),
    judge: list[str] = typer.Option(None, "--judge", help="Judges; may be repeated. The usual ones when not given."),
    as_json: bool = JSON,
) -> None:
    """Judge what a model answered, again or by another judge, without generating anything."""
    from safeserve.evaluation.evaluate import rescore
    from safeserve.evaluation.folder import find_eval
    from safeserve.judging.registry import DEFAULT_JUDGES

    folder = find_eval(target)
    summary = rescore(folder, judge or DEFAULT_JUDGES)
    if as_json:
        print_json(summary)
    else:
        from safeserve.report.tables import print_summary

        print_summary(summary)
    next_commands(f"safeserve compare {target} OTHER_RUN:MODEL")
