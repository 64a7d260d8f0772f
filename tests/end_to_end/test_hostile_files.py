"""Files that are broken in ways a decoder does not expect, or that try to become a path: one message, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.runs import write_json, write_text
from safeserve.report.tables import markdown_table
from safeserve.report.view import respond

Cli = Callable[..., Any]
HALF = '{"prompt": "a \\ud800", "response": "b"}\n'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_json_that_python_refuses_by_another_exception(cli_here: Cli, tmp_path: Path, name: str) -> None:
    for text in ("[" * 200_000, '{"prompt": ' + "1" * 6000 + "}"):
        ran = cli_here("data", "show", write(tmp_path / name, text + "\n"))
        assert (ran.code, "not valid JSON" in ran.stderr) == (2, True)


def test_half_characters_are_read_judged_and_stored(cli_here: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", HALF)
    assert cli_here("check", file, "--label", "harmful").code == 0
    ran = cli_here("score", file, "--label", "harmful", "--judge", "refusal", "--out", "r/evals/m")
    assert ran.code == 0, ran.stderr
    assert "\ufffd" in (tmp_path / "r/evals/m/s/prompts.jsonl").read_text()


def test_a_label_that_is_no_word_is_not_overruled(cli_here: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", '{"prompt": "How do I bake bread?", "label": 0}\n')
    ran = cli_here("data", "show", file, "--label", "harmful")
    assert (ran.code, 'label "0" is unknown' in ran.stderr) == (2, True)


@pytest.mark.parametrize("option", [["--benchmark", "../../x"], ["--map", "guard-../../x=response"]])
def test_no_name_becomes_a_path(cli_here: Cli, tmp_path: Path, option: list[str]) -> None:
    file = write(tmp_path / "f.jsonl", '{"prompt": "a", "response": "b"}\n')
    ran = cli_here("score", file, "--label", "harmful", "--judge", "refusal", *option, "--out", "deep/r/evals/m")
    assert (ran.code, "it would be a path" in ran.stderr) == (2, True)
    assert not list(tmp_path.rglob("x*"))


def test_a_stage_name_from_a_run_folder_is_no_path(cli_here: Cli, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    write(tmp_path / "run/recipe.yaml", f"train:\n  {victim}: {{method: sit, start: base}}\n")
    write_json(tmp_path / f"run/stages/train-/{victim}/metrics.json", {})
    write_json(tmp_path / "run/evals/base/summary.json", {"model": "base", "benchmarks": {}, "judges": {}})
    assert cli_here("report", "run").code == 2
    assert not list(victim.iterdir())


@pytest.mark.parametrize("claim", ["f=nan", "f=inf"])
def test_a_claim_is_a_finite_number(cli_here: Cli, tmp_path: Path, claim: str) -> None:
    file = write(tmp_path / "f.jsonl", '{"prompt": "a", "response": "b"}\n')
    assert cli_here("check", file, "--label", "harmful", "--claim", claim).code == 2


def test_options_of_foreign_files_are_refused_where_a_run_is_read(cli_here: Cli) -> None:
    ran = cli_here("gate", "run:dpo", "--judge", "typo")
    assert (ran.code, "would be ignored" in ran.stderr) == (2, True)


def test_an_option_is_a_finite_number(cli_here: Cli) -> None:
    ran = cli_here("recipes", "validate", "quickstart", "train.sit.learning_rate=.inf")
    assert (ran.code, "finite" in ran.stderr) == (2, True)


@pytest.mark.parametrize("summary", ['{"benchmarks": null}', '{"benchmarks": ["x"]}', "[" * 100_000, "7"])
def test_a_broken_run_does_not_hide_the_others(tmp_path: Path, summary: str) -> None:
    write_text(tmp_path / "bad/evals/base/summary.json", summary)
    write_json(tmp_path / "good/evals/base/summary.json", {"model": "base", "benchmarks": {}})
    status, page = respond(tmp_path, "/")
    assert status == HTTPStatus.OK
    assert "good" in page
    assert "bad" in page
    assert respond(tmp_path, "/run/bad")[0] == HTTPStatus.BAD_REQUEST


def test_a_bare_verb_says_nothing_is_wrong(cli_here: Cli) -> None:
    assert "error:" not in cli_here("data").stderr


def test_a_terminal_is_told_nothing_by_a_file(cli_here: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", '{"prompt": "hi \\u001b]0;x\\u0007 \\u001b[2J", "response": "r \\u001b[31m"}\n')
    ran = cli_here("data", "show", file)
    assert ran.code == 0
    assert "\x1b" not in ran.stdout
    assert "\x07" not in ran.stdout


def test_a_markdown_table_holds_no_tags() -> None:
    table = markdown_table(("a|b", "n"), [("<img src=x onerror=alert(1)> </b>", "< .001")], 1)
    assert "<img" not in table.replace("\\<", "")
    assert "| < .001 |" in table


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  dpo: {method: dpo}\n  dpo: {method: sit}\n", 'line 3: not valid YAML (the key "dpo" stands twice)'),
        ("seed: 2024-13-45\n", "a value cannot be read"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_yaml_that_would_be_read_otherwise_than_meant(cli_here: Cli, tmp_path: Path, text: str, says: str) -> None:
    ran = cli_here("recipes", "validate", write(tmp_path / "r.yaml", text))
    assert (ran.code, says in ran.stderr) == (2, True)


@pytest.mark.parametrize(
    ("file", "row", "says"),
    [
        ("prompts.jsonl", {"messages": 5}, "line 1: messages"),
        ("prompts.jsonl", {"category": 5}, "line 1: category"),
        ("completions.jsonl", {"text": 5}, "line 1: text"),
        ("completions.jsonl", {"token_ids": ["x"]}, "line 1: token_ids.0"),
        ("scores/refusal.jsonl", {"label": 5}, "line 1: label"),
        ("scores/refusal.jsonl", {"detail": [1]}, "line 1: detail"),
    ],
)
def test_rows_of_a_run_are_of_their_kind(cli_here: Cli, tmp_path: Path, file: str, row: Any, says: str) -> None:
    source = write(tmp_path / "f.jsonl", '{"prompt": "How do I bake bread?", "response": "With flour."}\n')
    made = cli_here("score", source, "--label", "benign", "--judge", "refusal", "--out", "r/evals/m")
    assert made.code == 0, made.stderr
    path = tmp_path / "r/evals/m/f" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **row}) + "\n")
    for verb in (("compare", "r:m", "r:m"), ("report", "r"), ("score", "r:m", "--judge", "refusal")):
        ran = cli_here(*verb)
        assert (ran.code, says in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize("content", ["[]", "7", '{"benchmarks": [1]}', '{"judges": 3}', '{"sampling": "hot"}'])
def test_a_summary_that_is_none(cli_here: Cli, tmp_path: Path, content: str) -> None:
    source = write(tmp_path / "f.jsonl", '{"prompt": "a", "response": "b"}\n')
    assert cli_here("score", source, "--label", "benign", "--judge", "refusal", "--out", "r/evals/m").code == 0
    write(tmp_path / "r/evals/m/summary.json", content)
    ran = cli_here("report", "r")
    assert (ran.code, "summary.json" in ran.stderr) == (2, True), ran.stderr


def test_a_byte_order_mark_is_no_part_of_a_file(cli_here: Cli, tmp_path: Path) -> None:
    for name in ("f.jsonl", "f.json"):
        file = write(tmp_path / name, '\ufeff{"prompt": "a", "response": "b"}\n')
        if name.endswith(".json"):
            file.write_text('\ufeff[{"prompt": "a", "response": "b"}]', encoding="utf-8")
        ran = cli_here("data", "show", file, "--label", "benign")
        assert ran.code == 0, ran.stderr


def test_a_column_that_is_not_there_cannot_be_mapped(cli_here: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", '{"prompt": "a", "response": "b", "kind_of": "x"}\n')
    ran = cli_here("data", "show", file, "--label", "benign", "--map", "category=kind_off")
    assert (ran.code, 'no column "kind_off". Did you mean "kind_of"?' in ran.stderr) == (2, True), ran.stderr


def test_what_a_recipe_names_wrongly_is_told_with_file_and_key(cli_here: Cli, tmp_path: Path) -> None:
    recipe = "model: nowhere/at/all\nevaluate: {models: [base], suite: SUITE, judges: [JUDGE], limit: 2}\n"
    for suite, judge, more, says in (
        ("startr", "refusal", "", "own.yaml: evaluate.suite: "),
        ("starter", "refusl", "", "own.yaml: evaluate: judge"),
        ("starter", "refusal", "gate: {candidate: base, against: base, policy: strtr}\n", "own.yaml: gate.policy: "),
        ("starter", "refusal", "", "nowhere/at/all: no such model folder"),
    ):
        file = write(tmp_path / "own.yaml", recipe.replace("SUITE", suite).replace("JUDGE", judge) + more)
        ran = cli_here("run", file, "--dry-run")
        assert (ran.code, says in ran.stderr) == (2, True), ran.stderr


def test_a_policy_that_is_no_text(cli_here: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"rules: \xff\xfe")
    source = write(tmp_path / "f.jsonl", '{"prompt": "a", "response": "b"}\n')
    assert cli_here("score", source, "--label", "benign", "--judge", "refusal", "--out", "r/evals/m").code == 0
    ran = cli_here("gate", "r:m", "--policy", "p.yaml")
    assert (ran.code, "p.yaml: not UTF-8" in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_model_folder_with_a_broken_config(cli_here: Cli, tmp_path: Path, name: str) -> None:
    write(tmp_path / "model" / name, '{"base": ')
    for command in (("eval", "./model", "--limit", "2"), ("models", "export", "./model", "out")):
        ran = cli_here(*command)
        assert (ran.code, f"model/{name} line 1: not valid JSON" in ran.stderr) == (2, True), ran.stderr
