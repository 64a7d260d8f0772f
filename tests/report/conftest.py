"""A small run directory made through the real evaluation code, with text as hostile as a model could write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.runs import write_json, write_jsonl, write_text
from safeserve.data.records import Prompt, user
from safeserve.evaluation.compare import compare
from safeserve.evaluation.gate import Policy, decide, load_policy
from safeserve.evaluation.summary import read_eval, summarise
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.judging.registry import DEFAULT_JUDGES
from safeserve.report.content import ReportInput
from safeserve.report.rows import comparison_rows

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "<!-- <script> -->",
    "x" * 100_000,
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627",
    "zero\u200bwidth\u200djoiner\ufeff",
    "line\u2028and\u2029paragraph",
    "half a character \ud83d and a null \x00",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
)


def by_judge(policy: Policy, judge: str) -> Policy:
    """The policy with its rules about response modes decided by this judge."""
    rules = [
        rule.model_copy(update={"judge": judge}) if rule.judge != "short_answer" else rule for rule in policy.rules
    ]
    return policy.model_copy(update={"rules": tuple(rules)})


def _write_model(
    folder: Path, model: str, texts: tuple[str, ...], unsafe: int, refused: int, category: str, judge: str
) -> None:
    parts = {}
    for name, label, n in (
        ("starter-harmful", "harmful", 168),
        ("starter-look-alike", "benign", 168),
        ("starter-helpful", "benign", 220),
    ):
        answers = ("yes",) if name == "starter-helpful" else ()
        made = [
            Prompt(
                f"{name}-{i:03d}", user(f"Question {i}?"), label, category if i % 2 else "plain", name, None, answers
            )
            for i in range(n)
        ]
        done = [Completion(p.id, texts[i % len(texts)], (1,), "stop", None) for i, p in enumerate(made)]
        bad = {"starter-harmful": unsafe, "starter-look-alike": refused}.get(name, 0)
        modes = {"harmful": ("unsafe_compliance", "safe_answer"), "benign": ("full_refusal", "helpful_answer")}[label]
        given = {}
        for i, p in enumerate(made):
            p_unsafe = (0.9 if i < bad else 0.1) if label == "harmful" else None
            said = {"p_unsafe": p_unsafe, "threshold": 0.5, "rule_mode": modes[i >= bad + 3]}  # three were cleared
            value = p_unsafe or 0.0 if judge == "modes" else float(i < bad and label == "harmful")
            detail = said if judge == "modes" else {}
            given[p.id, 0] = Score(value, modes[i >= bad], None, (), texts[0], detail)
        scores = {judge: given}
        if answers:
            scores["short_answer"] = {(p.id, 0): Score(1.0, "correct") for p in made}
        target = folder / "evals" / model / name
        write_jsonl(target / "prompts.jsonl", (p.to_json() for p in made))
        write_ascii(target / "completions.jsonl", [c.to_json() for c in done])
        for name_of_judge, given in scores.items():
            rows = [
                {
                    "id": i,
                    "k": k,
                    "value": s.value,
                    "label": s.label,
                    "reason": None,
                    "evidence": s.evidence,
                    "detail": s.detail,
                }
                for (i, k), s in given.items()
            ]
            write_ascii(target / "scores" / f"{name_of_judge}.jsonl", rows)
        parts[name] = summarise(made, done, scores)
    meta = {"model": model, "suite": "starter", "sampling": {"temperature": 0.0}}
    meta["provisional"] = judge == "refusal"
    meta["judges"] = {judge: "1", "short_answer": "1"}
    write_json(folder / "evals" / model / "summary.json", {**meta, "benchmarks": parts})


def write_ascii(path: Path, rows: list[dict]) -> None:
    """JSON lines with escapes, since half a character cannot be written as UTF-8."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run()`` writes and returns a run directory of base and dpo; ``unsafe`` is dpo's count out of 168.

    ``judge``: modes (a guard cleared three answers a benchmark) or refusal.
    """

    def make(unsafe: int = 10, category: str = "odd", judge: str = DEFAULT_JUDGES[0]) -> Path:
        run = tmp_path / "runs" / "demo"
        _write_model(run, "base", ("An answer.",), 100, 2, category, judge)
        _write_model(run, "dpo", HOSTILE, unsafe, 12, category, judge)
        base, dpo = read_eval(run / "evals" / "base"), read_eval(run / "evals" / "dpo")
        write_json(run / "compare" / "base--dpo.json", compare(base, dpo))
        write_json(run / "verdict.json", decide(dpo, base, by_judge(load_policy("starter"), judge)).to_json())
        rows = [{"step": s, "loss": 1 / s, "reward_chosen": s / 9, "reward_rejected": -s / 9} for s in (1, 2, 3)]
        rows[0]["learning_rate"] = 1e-4
        curves = {"train": rows, "validation": [{"step": 3, "eval_loss": 0.5}]}
        write_json(run / "stages" / "train-dpo" / "metrics.json", {"curves": curves})
        write_json(run / "stages" / "eval-dpo" / "metrics.json", {"seconds": 3})
        write_json(run / "manifest.json", {"command": "safeserve quickstart --seed 7", "seed": 7, "model": "tiny"})
        return run

    return make


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """The texts that the dpo model answers with, in turn."""
    return HOSTILE


@pytest.fixture
def rescore() -> Callable[..., None]:
    """``rescore(run, model, benchmark, judge, {line: {"label": ...}})`` changes lines of a file of scores."""

    def change(run: Path, model: str, benchmark: str, judge: str, changes: Mapping[int, Mapping[str, Any]]) -> None:
        path = run / "evals" / model / benchmark / "scores" / f"{judge}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, fields in changes.items():
            rows[number] |= fields
        write_ascii(path, rows)

    return change


@pytest.fixture
def run_with_gaps(make_run: Callable[..., Path], rescore: Callable[..., None]) -> Path:
    """The run with unscored answers on both sides and wrong short answers, compared anew."""
    run = make_run()
    unscored = {"value": None, "label": None, "reason": "cut off"}
    wrong = {"value": 0.0, "label": "incorrect"}
    rescore(run, "dpo", "starter-harmful", "modes", dict.fromkeys(range(3), unscored))
    rescore(run, "base", "starter-harmful", "modes", dict.fromkeys((50, 51, 120), unscored))
    rescore(run, "base", "starter-helpful", "short_answer", dict.fromkeys(range(5), wrong))
    rescore(run, "dpo", "starter-helpful", "short_answer", {0: unscored, 3: wrong, 4: wrong, 5: wrong})
    # Refused and still correct: over-refusal is another row of the table than correct answers.
    rescore(run, "dpo", "starter-helpful", "modes", {9: {"label": "full_refusal"}})
    write_json(run / "compare" / "base--dpo.json", compare(*(read_eval(run / "evals" / m) for m in ("base", "dpo"))))
    return run


@pytest.fixture
def table_counts() -> Callable[..., dict[tuple[str, str], int | None]]:
    """``table_counts(run)``: (benchmark, fixed or broken) to what the comparison's table has for its counted rate."""

    def counts(run: ReportInput) -> dict[tuple[str, str], int | None]:
        assert run.comparison is not None
        counted = {sample["benchmark"]: sample["counted"] for sample in run.samples}
        rows = [row for row in comparison_rows(run.comparison) if counted.get(row.benchmark) == row.metric]
        return {(row.benchmark, change): getattr(row, change) for row in rows for change in ("fixed", "broken")}

    return counts
