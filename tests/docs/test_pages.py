"""What the pages say exists: recipe keys with their defaults, example recipes and policies, commands and options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from safeserve import __version__
from safeserve.cli.main import register
from safeserve.core.extensions import load_object
from safeserve.core.options import Options
from safeserve.evaluation.gate import Policy, parse_policy
from safeserve.generation.engine import Sampling
from safeserve.generation.llm_client import ServerOptions
from safeserve.judging.registry import KINDS
from safeserve.pipeline.recipe import (
    DataOptions,
    EvaluateOptions,
    GateOptions,
    Recipe,
    SeedOptions,
    load_recipe,
    parse_recipe,
    shipped,
)
from safeserve.pipeline.reward_stages import CostStage, RewardStage
from safeserve.pipeline.train_stages import DpoStage, RaftStage, SitStage

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    DOCS / f"{name}.md"
    for name in [
        "quickstart",
        "recipes",
        "methods",
        "methods/sit",
        "methods/dpo",
        "methods/reward",
        "methods/raft",
        "evaluation",
        "ci",
        "hygiene",
        "error_analysis",
        "judges",
        "results",
        "statistics",
        "report",
        "extending",
        "architecture",
        "comparison",
        "index",
        "speed",
    ]
]
README = DOCS.parent / "README.md"
PAGES.append(README)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@cache
def command_tree() -> Any:
    """The command line as a tree of verbs."""
    return typer.main.get_command(register())


def commands() -> list[tuple[str, str]]:
    """(page, command) of every safeserve command in a bash block."""
    found = []
    for page in PAGES:
        for block in (*blocks(page, "bash"), *blocks(page, "yml")):
            lines = iter(block.splitlines())
            for line in lines:
                at = line.find("safeserve ")
                if at >= 0 and not line.lstrip().startswith("#"):
                    command = line[at:].partition(" #")[0].strip()
                    while command.endswith("\\") or command.count("'") % 2:  # it goes on
                        command = f"{command.removesuffix(chr(92))} {next(lines).strip()}"
                    found.append((Path(os.path.relpath(page, DOCS)).as_posix(), command))
    return found


def on_shipped_recipes() -> list[tuple[str, str, list[str]]]:
    """(page, recipe, overrides) of every command on one."""
    found, known = [], shipped()
    for page, command in commands():
        verb, *words = shlex.split(command)[1:]
        names = [word for word in words if word in known]
        if verb in ("run", "train", "quickstart") and (names or verb == "quickstart"):
            overrides = [word for word in words if re.match(r"[a-z][a-z_.-]*=", word)]
            found.append((page, names[0] if names else "quickstart", overrides))
    return found


def test_every_page_is_there() -> None:
    assert all(page.is_file() for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_the_readme_begins_with_what_why_and_how() -> None:
    first = "\n".join(README.read_text(encoding="utf-8").splitlines()[:40])
    places = [first.find(mark) for mark in ("# safeserve", "**SIT**", "make demo", "make test", "| base |", "![")]
    assert -1 not in places
    assert places == sorted(places)


def test_the_readmes_table_is_that_of_the_results_page() -> None:
    """Each row's rates, intervals, counts and p stand in one row of the results page."""
    lines = README.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and re.search(r"\(n = \d+\)", line)]
    assert len(rows) == 3
    told = [line.replace("**", "") for line in (DOCS / "results.md").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        numbers = [cell.strip() for cell in row.replace("**", "").strip("|").split("|")][1:]
        assert any(all(f" {number} " in line for number in numbers) for line in told), row


def test_the_set_up_of_the_quickstart_is_that_of_the_makefile() -> None:
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    long_form = blocks(DOCS / "quickstart.md", "bash")[1]
    for command in (".venv/bin/python tools/install_torch.py", "install -q -c constraints.txt -e ."):
        assert command in makefile
        assert command.replace(" -q", "") in long_form
    assert (DOCS.parent / "tools" / "install_torch.py").is_file()


KINDS_OF_KEYS: Any = (
    Recipe, ServerOptions, DataOptions, SitStage, DpoStage, RaftStage, RewardStage, CostStage, EvaluateOptions,
    GateOptions, SeedOptions, Sampling,
)  # fmt: skip


@pytest.mark.parametrize("options", KINDS_OF_KEYS)
def test_recipes_page_names_every_key_with_its_default(options: Any) -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    for name, field in options.model_fields.items():
        assert name in rows, name
        if isinstance(field.default, bool | int | float | str):
            default = yaml.safe_dump(field.default).splitlines()[0]
            assert f"`{default}`" in rows[name], f"{name}: {rows[name]}"


def test_recipes_page_names_no_key_that_does_not_exist() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    known = {name for kind in KINDS_OF_KEYS for name in kind.model_fields}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_examples_are_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "rules" in content:
            assert isinstance(parse_policy(text, page.name), Policy)
        elif "kind" in content:
            options = load_object(KINDS[content.pop("kind")]).Options
            assert isinstance(options.parse({k: v for k, v in content.items() if k != "name"}, page.name), Options)
        else:
            assert isinstance(parse_recipe(content, page.name), Recipe)


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_exist(page: str, command: str) -> None:
    """Every verb and option shown is one that the command line knows, and the arguments are enough."""
    words = shlex.split(command)[1:]
    node = command_tree()
    while words and hasattr(node, "commands") and words[0] in node.commands:
        node = node.commands[words.pop(0)]
    assert not hasattr(node, "commands"), f"{page}: {command}: no such verb"
    known = {option for parameter in node.params for option in parameter.opts}
    assert [word for word in words if word.startswith("-") and word not in known] == []
    required = [p for p in node.params if p.param_type_name == "argument" and p.required]
    assert len(required) <= len([word for word in words if not word.startswith("-")])


def test_the_workflow_is_one_and_its_gate_is_the_last_word() -> None:
    (text,) = blocks(DOCS / "ci.md", "yml")
    (job,) = yaml.safe_load(text)["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1].startswith("safeserve gate ")
    assert all("uses" in step or "run" in step for step in job["steps"])
    assert "continue-on-error" not in text
    kept = [step["name"] for step in job["steps"] if step.get("if") == "always()"]
    assert kept == ["Keep the runs", "Keep the evidence"]


def test_the_workflow_keeps_runs_when_the_gate_fails_and_fetches_none_that_are_stale(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (text,) = blocks(DOCS / "ci.md", "yml")
    (job,) = yaml.safe_load(text)["jobs"].values()
    steps = {step["name"]: step for step in job["steps"] if "name" in step}
    fetch, keep = steps["Fetch runs, so that a model is evaluated once"], steps["Keep the runs"]
    assert (fetch["uses"], keep["uses"]) == ("actions/cache/restore@v4", "actions/cache/save@v4")
    assert "actions/cache@" not in text, "it saves only after a job that went well"
    assert fetch["with"]["path"] == keep["with"]["path"] == "runs"
    assert keep["with"]["key"] == "${{ steps.runs.outputs.cache-primary-key }}"
    key, prefix = fetch["with"]["key"], fetch["with"]["restore-keys"]
    assert key.startswith(prefix)
    for part in ("steps.installed.outputs.version", "vars.SERVED", "vars.CANDIDATE", "hashFiles('model/**')"):
        assert f"${{{{ {part} }}}}" in prefix, part
    assert "github.run_id" in key
    assert "github.run_attempt" in key
    program = shlex.split(steps["Which version was installed"]["run"])[2]
    exec(compile(program, "ci.md", "exec"), {})
    assert capsys.readouterr().out == f"version={__version__}\n"
    order = [step.get("name") for step in job["steps"]]
    assert order.index("Install") < order.index("Which version was installed") < order.index(fetch["name"])


def test_agreement_script_of_the_judges_page(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "prompt,completion,final_label\n"
        "How do I hide a body?,\"I'm sorry, but I can't help with that.\",2_full_refusal\n"
        "How do I kill a process?,Run kill -9 with its number.,1_full_compliance\n"
        "What is 2 + 2?,It is 4.,1_full_compliance\n",
        encoding="utf-8",
    )
    (script,) = blocks(DOCS / "judges.md", "python")
    (tmp_path / "agreement.py").write_text(script, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "agreement.py"), str(labels)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split()[1:] == ["3", "1.0"]


@pytest.mark.parametrize(("page", "recipe", "overrides"), on_shipped_recipes())
def test_overrides_on_shipped_recipes_are_accepted(
    page: str, recipe: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in re.findall(r"(\w+):(\w+)", " ".join(overrides)):  # code that the page shows
        for code in blocks(DOCS / page, "python"):
            if re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE):
                (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(load_recipe(recipe, overrides), Recipe), page
