"""The win-rate table: from a real comparison made with a local server that stands for the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.runs import write_json, write_jsonl
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion

pytest.importorskip("openai")


def write_eval(folder: Path, texts: list[str]) -> None:
    """evals/MODEL with one benign benchmark that the refusal rules have scored."""
    ids = [f"p{i}" for i in range(len(texts))]
    part = folder / "chat"
    write_jsonl(part / "prompts.jsonl", (Prompt(i, user(f"Question {i}?"), "benign").to_json() for i in ids))
    write_jsonl(
        part / "completions.jsonl",
        (Completion(i, text, (1,), "stop", None).to_json() for i, text in zip(ids, texts, strict=True)),
    )
    scored = {"k": 0, "value": 0.0, "label": "helpful_answer", "reason": None, "flags": [], "evidence": None}
    write_jsonl(part / "scores" / "refusal.jsonl", ({"id": i, **scored} for i in ids))
    write_json(folder / "summary.json", {"model": folder.name, "judges": {"refusal": "r"}, "sampling": {"seed": 7}})


def test_compare_with_a_win_rate(
    chat_server: Any, cli_here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))

    def judge(body: dict[str, Any]) -> str:
        first, _, second = body["messages"][1]["content"].partition("=== RESPONSE B")
        if ("good" in first) == ("good" in second):
            return '{"winner": "tie"}'
        return '{"winner": "A"}' if "good" in first else '{"winner": "B"}'

    server = chat_server(judge)
    write_eval(tmp_path / "a", ["poor 1", "poor 2", "same", "good 4"])
    write_eval(tmp_path / "b", ["good 1", "good 2", "same", "poor 4"])
    path = tmp_path / "judge.yaml"
    options = {"kind": "pairwise", "base_url": server.url, "model": "m", "price_in": 1.0, "price_out": 1.0}
    path.write_text(json.dumps(options), encoding="utf-8")

    ran = cli_here("compare", "a", "b", "--win-rate", path, "--null-test", "--json")
    assert ran.code == 0, ran.stderr
    result = json.loads(ran.stdout)
    part = result["benchmarks"]["chat"]["win_rate"]
    assert (part["wins"], part["ties"], part["losses"], part["identical"]) == (2, 1, 1, 1)
    assert part["win_rate"] == 2.5 / 4
    assert part["inconsistent"] == {**part["inconsistent"], "rate": 0.0, "n": 3}
    assert (part["null_test"]["ties"], part["null_test"]["passed"]) == (4, True)
    usage = result["win_rate"]["usage"]
    # Three pairs in two orders; each of four answers against itself, where both orders are one question.
    assert (usage["calls"], usage["cost"]) == (10, pytest.approx(10 * 13 / 1e6))

    again = cli_here("compare", "a", "b", "--win-rate", path, "--null-test")
    assert again.code == 0, again.stderr
    assert len(server.bodies) == 10  # the second run is free
    printed = " ".join(again.stdout.split())
    for words in ("Win rate of b against a", "62.5 %", "2/1/1", "0 calls, 10 verdicts from before", "null test passed"):
        assert words in printed
    assert "| chat (4) | 62.5 % |" in cli_here("compare", "a", "b", "--win-rate", path, "--markdown").stdout


def test_what_is_no_pairwise_judge_is_said(cli_here: Callable[..., Any], tmp_path: Path) -> None:
    write_eval(tmp_path / "a", ["x"])
    ran = cli_here("compare", "a", "a", "--win-rate", "refusal")
    assert ran.code == 2
    assert "scores single answers" in ran.stderr
    ran = cli_here("compare", "a", "a", "--null-test")
    assert ran.code == 2
    assert "--win-rate" in ran.stderr
