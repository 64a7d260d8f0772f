"""``safeserve eval MODEL --suite S`` and ``safeserve score RUN:MODEL --judge J``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from safeserve.cli.common import STARTED, command_line, next_commands, print_json, quiet_libraries, run_folder
from safeserve.cli.data import parse_map
from safeserve.cli.foreign import BENCHMARK, LABEL, MAP, foreign_options
from safeserve.cli.run import DRY_RUN, JSON, LIMIT, NAME, OUT, QUIET, REDO, SEED, show_plan
from safeserve.core.errors import UserError


def evaluate(
    model: str = typer.Argument(help="The embedded model's name, a model or adapter folder, or a hub id."),
    suite: str | None = typer.Option(
        None, "--suite", help="Suites or benchmarks, joined by +; module:object for your own. Default: starter."
    ),
    lm_eval: str | None = typer.Option(
        None, "--lm-eval", help="Instead of a suite, tasks of lm-eval: boolq,piqa,openbookqa, or own YAML files."
    ),
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
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
    as_json: bool = JSON,
) -> None:
    """Measure one model on a suite: safety, over-refusal and helpfulness, with intervals."""
    if lm_eval is not None:
        others = {"--suite": suite, "--judge": judge, "--server": server, "--api-key-env": api_key_env, "--seed": seed}
        others |= {"--max-new-tokens": max_new_tokens, "--skip-missing": skip_missing, "--dry-run": dry_run}
        if given := [option for option, value in others.items() if value not in (None, False, [])]:
            raise UserError(f"--lm-eval: goes without {', '.join(given)}. Run the suite by its own command.")
        path = run_folder(name, out, f"lm-eval-{_stem(model)}") / "evals" / "base" / "lm_eval.json"
        if path.exists() and not redo:
            raise UserError(f"{path}: exists already. Pass --redo to measure again, or give another --name.")
        _capability(model, template, lm_eval, limit, path, as_json, quiet)
        return
    suite = suite or "starter"
    from safeserve.evaluation.benchmarks import default_judges
    from safeserve.evaluation.benchmarks import suite as benchmarks_of
    from safeserve.judging.registry import DEFAULT_JUDGES
    from safeserve.pipeline.recipe import parse_recipe

    options: dict[str, Any] = {"models": ["base"], "suite": suite, "limit": limit, "skip_missing": skip_missing}
    options["judges"] = judge or default_judges(benchmarks_of(suite), DEFAULT_JUDGES)
    if max_new_tokens is not None:
        options["sampling"] = {"max_new_tokens": max_new_tokens}
    tree: dict[str, Any] = {"model": model, "template": template, "data": {"root": root}, "evaluate": options}
    if server is not None:
        tree["server"] = {"base_url": server, "api_key_env": api_key_env}
    elif api_key_env is not None:
        raise UserError("--api-key-env: is the key of --server. Give that too.")
    recipe = parse_recipe({**tree, **({"seed": seed} if seed is not None else {})}, "safeserve eval")
    quiet_libraries()
    folder = run_folder(name, out, f"eval-{_stem(model)}-{_folder_name(suite)}")
    if dry_run:
        show_plan(recipe, folder, as_json)
        return
    from safeserve.pipeline.run import Run

    outcome = Run(recipe, folder, command=command_line(), redo=redo, quiet=quiet, started=STARTED).execute()
    summary = outcome.summaries["base"]
    if as_json:
        print_json(summary)
    else:
        from safeserve.report.tables import print_summary

        print_summary(summary)
    made = shlex.quote(f"{folder}:base")
    next_commands(f"safeserve compare {made} OTHER_RUN:MODEL", f"safeserve score {made} --judge JUDGE")


def _stem(model: str) -> str:
    """A model's name as part of a folder's: the last part of a path or hub id."""
    return _folder_name(Path(model).resolve().name)


def _folder_name(text: str) -> str:
    """What may be part of a folder's name; a colon would be read as RUN:MODEL."""
    return re.sub(r"[^\w.+-]+", "-", text)


def _capability(
    model: str, template: str | None, tasks: str, limit: int | None, path: Path, as_json: bool, quiet: bool
) -> None:
    """Run lm-eval's tasks and keep its numbers in ``path``."""
    from safeserve.core.runs import write_json
    from safeserve.evaluation.capability import run_lm_eval
    from safeserve.models.loading import load

    quiet_libraries()
    loaded = load(model, template=template, quiet=quiet)
    found = {
        "model": model,
        "identity": loaded.identity,
        "limit": limit,
        **run_lm_eval(loaded, [task.strip() for task in tasks.split(",")], limit),
    }
    write_json(path, found)
    if as_json:
        print_json(found)
        return
    for name, cells in found["tasks"].items():
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in cells.items() if isinstance(value, float))
        print(f"{name}  n {cells['n']}  {numbers}")
    print(f"Kept in {path}")
    next_commands(shlex.join(["safeserve", "eval", model, "--suite", "multiple-choice"]))


def score(
    target: str = typer.Argument(
        help="RUN:MODEL, an evals/MODEL folder, foreign completions (with --out), or a file of preference pairs."
    ),
    judge: list[str] = typer.Option(None, "--judge", help="Judges; may be repeated. The usual ones when not given."),
    mapping: list[str] = MAP,
    label: str | None = LABEL,
    benchmark: str | None = BENCHMARK,
    preference: str | None = typer.Option(
        None,
        "--preference",
        help="Pairs that publish two: auto, better or safer. Default: auto, better where published, else safer.",
    ),
    out: Path | None = typer.Option(
        None, "--out", help="Foreign files: the evals/MODEL folder to make of them. Pairs: a JSON file for the result."
    ),
    as_json: bool = JSON,
) -> None:
    """Judge what a model answered, again or by another judge, without generating anything.

    A file of preference pairs (chosen, rejected) is scored by how often the chosen answer has the better score, by
    subset: the accuracy of a reward model.
    """
    from safeserve.evaluation.reward_accuracy import holds_pairs

    if holds_pairs(target, given := parse_map([pair for text in mapping for pair in text.split(",")])):
        others = {"--label": label, "--benchmark": benchmark}
        _score_pairs(target, judge, given, preference or "auto", others, out, as_json)
        return
    if preference is not None:
        raise UserError(f"--preference: would be ignored, as {target} is no file of preference pairs. Leave it out.")
    from safeserve.evaluation.evaluate import require_judges, rescore
    from safeserve.evaluation.folder import find_eval
    from safeserve.evaluation.foreign import is_foreign, read_foreign, require_used, write_eval
    from safeserve.judging.registry import DEFAULT_JUDGES

    options = foreign_options(mapping, label, benchmark)
    require_used(options, target)
    if is_foreign(target):
        if out is None:
            raise UserError(f"{target}: say with --out which folder to make of these completions, e.g. evals/theirs.")
        require_judges(
            (), judge or DEFAULT_JUDGES, some_left_out=True
        )  # before the folder is made, which then stands in the way
        write_eval(read_foreign(target, options), out)
        target, folder = str(out), out
    elif out is not None:
        raise UserError("--out: would be ignored; the scores of an own evaluation are kept in it.")
    else:
        folder = find_eval(target)
    summary = rescore(folder, judge or DEFAULT_JUDGES)
    if as_json:
        print_json(summary)
    else:
        from safeserve.report.tables import print_summary

        print_summary(summary)
    next_commands(f"safeserve compare {shlex.quote(target)} OTHER_RUN:MODEL")


def _score_pairs(
    target: str,
    judges: list[str] | None,
    mapping: dict[str, str],
    preference: str,
    others: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Accuracy of each judge on a file of pairs; kept in ``out`` (a JSON file) if one is named."""
    from safeserve.core.runs import write_json
    from safeserve.evaluation.reward_accuracy import preference_note, reward_accuracy

    if ignored := [option for option, value in others.items() if value is not None]:
        raise UserError(f"{', '.join(ignored)}: would be ignored, because {target} holds pairs. Leave it out.")
    if not judges:
        raise UserError(f"{target}: holds pairs. Say with --judge who scores them, e.g. a reward model's YAML file.")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: what is found on pairs is kept in a file NAME.json.")
    quiet_libraries()
    results = [reward_accuracy(Path(target), judge, mapping, preference) for judge in judges]
    if out is not None:
        write_json(out, results)
    if as_json:
        print_json(results)
    else:
        from safeserve.report.pair_accuracy import print_pair_accuracy

        for result in results:
            print_pair_accuracy(result)
        if note := preference_note(results[0]):
            print(note)
    next_commands("safeserve train reward RECIPE", f"safeserve data show {shlex.quote(target)}")
