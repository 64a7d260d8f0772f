"""The real command on a random tiny model: from a recipe file to a verdict, and the commands that read the run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]
RULES = ("--judge", "refusal", "--judge", "short_answer")
"""Judges that need no model of their own."""


def test_from_a_recipe_to_a_verdict(
    cli: Cli,
    cli_here: Cli,
    recipe: Callable[..., Path],
    tiny_model_dir: Path,
    tmp_path: Path,
    no_traceback: Callable[..., None],
) -> None:
    path = recipe(model="somewhere/else/entirely")
    first = cli("run", path, f"model={tiny_model_dir}")
    no_traceback(first, tmp_path)
    run = tmp_path / "runs" / "own"
    verdict = json.loads((run / "verdict.json").read_text())
    assert first.code == verdict["exit_code"] == 4, first.stderr  # three prompts a benchmark prove nothing
    assert "starter-harmful" in first.stdout
    assert "report.html" in first.stderr
    assert (run / "report.html").stat().st_size > 10_000

    # the same command does nothing again, and agrees
    written = {p: p.stat().st_mtime_ns for p in run.glob("evals/*/*/completions.jsonl")}
    assert len(written) == 6
    second = cli_here("run", path, f"model={tiny_model_dir}", "--json")
    assert second.code == 4
    assert json.loads(second.stdout)["verdict"] == verdict
    assert second.stderr.count("done before") == 3
    assert {p: p.stat().st_mtime_ns for p in written} == written

    # what reads the run
    compared = cli_here("compare", "own:base", "own:sit", "--json")
    assert compared.code == 0
    assert json.loads(compared.stdout) == json.loads((run / "compare" / "base--sit.json").read_text())
    assert cli_here("compare", "runs/own:base", "runs/own:sit", "--markdown").stdout.count("|") > 20
    for bound, code in ((0.0, 0), (1.0, 1)):
        policy = {"name": "own", "description": "one rule", "min_prompts": 1, "max_unscored": 0.0}
        rule = {"metric": "safe_rate", "judge": "refusal", "benchmark": "starter-harmful", "at_least": bound}
        policy["rules"] = [rule]
        (tmp_path / "policy.yaml").write_text(json.dumps(policy))  # JSON is YAML
        gated = cli_here("gate", "own:sit", "own:base", "--policy", "policy.yaml", "--json")
        assert gated.code == json.loads(gated.stdout)["exit_code"] == code
    before = (run / "evals" / "sit" / "summary.json").read_text()
    assert cli_here("score", "own:sit", *RULES).code == 0
    assert (run / "evals" / "sit" / "summary.json").read_text() == before  # the same rules, the same result
    (run / "report.html").unlink()
    assert cli_here("report", "own").code == 0
    assert (run / "report.html").exists()
    # the card's command makes the run again, in a folder of its own
    card = (run / "models" / "sit" / "README.md").read_text()
    (command,) = re.findall(r"`safeserve (run [^`]*)`", card)
    assert "| lora rank | 2 |" in card
    again = cli_here(*shlex.split(command), "--dry-run")
    assert again.code == 0, again.stderr
    assert "done before" not in again.stdout
    assert command == "run runs/own/recipe.yaml --out runs/own-again"
    merged = cli_here("models", "merge", run / "models" / "sit", tmp_path / "merged", "--dtype", "float32")
    assert merged.code == 0, merged.stderr
    again = cli_here("eval", tmp_path / "merged", "--limit", "2", "--quiet", "--json", "--name", "merged", *RULES)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["benchmarks"]["starter-harmful"]["n"] == 2
    listed = cli_here("models", "list")
    assert "runs/own/models/sit" in listed.stdout
    assert list(tmp_path.glob("safeserve-error.log")) == []


def test_a_dry_run_says_what_would_happen(cli_here: Cli, recipe: Callable[..., Path], tmp_path: Path) -> None:
    ran = cli_here("run", recipe(), "--dry-run")
    assert ran.code == 0
    assert "sit from base: 16 rows, 4 steps" in ran.stdout
    assert not (tmp_path / "runs").exists()


def test_training_alone(cli_here: Cli, recipe: Callable[..., Path], tmp_path: Path) -> None:
    ran = cli_here("train", "sit", recipe(), "train.sit.epochs=2", "--json", "--name", "trained")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["sit"]["steps"] == 8
    assert (tmp_path / "runs" / "trained" / "models" / "sit" / "adapter_model.safetensors").exists()


def test_version_and_help(cli_here: Cli) -> None:
    from safeserve import __version__

    assert cli_here("--version").stdout == f"safeserve {__version__}\n"
    ran = cli_here("--help")
    assert ran.code == 0
    for verb in (
        "quickstart",
        "run",
        "train",
        "eval",
        "score",
        "compare",
        "gate",
        "report",
        "data",
        "models",
        "recipes",
    ):
        assert verb in ran.stdout


def test_lists_are_printed_for_programs(cli_here: Cli, tmp_path: Path) -> None:
    adapter = tmp_path / "runs" / "r" / "models" / "sit"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    models = json.loads(cli_here("models", "list", "--json").stdout)
    assert [row["kind"] for row in models] == ["embedded", "hub", "adapter"]
    assert models[2]["name"] == "runs/r/models/sit"
    assert {"quickstart"} < {row["name"] for row in json.loads(cli_here("recipes", "list", "--json").stdout)}


def test_recipes_are_shown_copied_and_validated(cli_here: Cli, tmp_path: Path) -> None:
    assert "quickstart" in cli_here("recipes", "list").stdout
    assert "safeserve run quickstart" in cli_here("recipes", "show", "quickstart").stdout
    assert cli_here("recipes", "copy", "quickstart", "mine.yaml").code == 0
    ran = cli_here("recipes", "validate", "mine.yaml", "seed=99")
    assert ran.code == 0
    (tmp_path / "resolved.yaml").write_text(ran.stdout)
    assert cli_here("recipes", "validate", "resolved.yaml").stdout == ran.stdout
    assert "seed: 99" in ran.stdout
