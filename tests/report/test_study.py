"""The paper's study: cells that are measured or say what they need, and claims decided on paired intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from safeserve.core.runs import write_json, write_jsonl, write_text
from safeserve.data.records import Prompt, user
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.report.figures import write_figures
from safeserve.report.html import render_report, report_from_run
from safeserve.report.study import paper_claims, read_study, write_study

SETS = {"I-CoNa": 178, "I-MaliciousInstructions": 100, "I-Controversial": 40}


def write_benchmark(folder: Path, name: str, label: str, judge: str, modes: Sequence[str]) -> dict[str, Any]:
    prompts = [Prompt(f"p{i:03d}", user(f"{name} {i}?"), label, "", name, None, ("yes",)) for i in range(len(modes))]
    done = [Completion(p.id, "An answer.", (1,), "stop", None) for p in prompts]
    scores = {(p.id, 0): Score(float(m == "unsafe_compliance"), m) for p, m in zip(prompts, modes, strict=True)}
    write_jsonl(folder / name / "prompts.jsonl", (p.to_json() for p in prompts))
    write_jsonl(folder / name / "completions.jsonl", (c.to_json() for c in done))
    rows = [{"id": i, "k": k, "value": s.value, "label": s.label} for (i, k), s in scores.items()]
    write_jsonl(folder / name / "scores" / f"{judge}.jsonl", rows)
    return summarise(prompts, done, {judge: scores})


def write_model(run: Path, name: str, safe: float, refused: float, correct: float) -> None:
    folder = run / "evals" / name
    parts = {}
    for benchmark, n in SETS.items():
        good = round(safe * n)
        modes = ["safe_answer"] * good + ["unsafe_compliance"] * (n - good)
        parts[benchmark] = write_benchmark(folder, benchmark, "harmful", "modes", modes)
    bad = round(250 * refused)
    modes = ["full_refusal"] * bad + ["helpful_answer"] * (250 - bad)
    parts["XSTest-safe"] = write_benchmark(folder, "XSTest-safe", "benign", "modes", modes)
    right = round(220 * correct)
    words = ["correct"] * right + ["incorrect"] * (220 - right)
    parts["starter-helpful"] = write_benchmark(folder, "starter-helpful", "benign", "short_answer", words)
    left_out = [{"benchmark": "BoolQ", "source": "boolq", "reason": "not there"}]
    meta = {"model": name, "suite": "paper", "judges": {"modes": "1", "short_answer": "1"}, "left_out": left_out}
    write_json(folder / "summary.json", {**meta, "provisional": False, "benchmarks": parts})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """base, two doses, a RAFT model and DPO; a third dose was not run."""
    folder = tmp_path / "runs" / "paper"
    rates = {
        "base": (0.4, 0.02, 0.5),
        "dose-0": (0.4, 0.02, 0.5),
        "dose-500": (0.8, 0.2, 0.5),
        "raft-harm": (0.5, 0.02, 0.5),
        "dpo": (0.97, 0.04, 0.49),
    }
    for name, (safe, refused, correct) in rates.items():
        write_model(folder, name, safe, refused, correct)
    stages = {
        "dose-0": {"method": "sit", "helpful": "alpaca", "dose": 0},
        "dose-500": {"method": "sit", "helpful": "alpaca", "dose": 500},
        "raft-harm": {"method": "raft", "start": "dose-0"},
        "dpo": {"method": "dpo", "start": "dose-0", "pairs": "paper-dpo-pairs"},
    }
    recipe = {"study": "paper", "note": "Only a trial.", "train": stages, "evaluate": {"models": list(rates)}}
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    gone = {"dose-2000": "needs safety-tuned-llamas, which is not there"}
    write_json(folder / "manifest.json", {"note": "Only a trial.", "not_run": gone})
    curves = {"train": [], "validation": [{"step": 0, "safe_rate": 0.4}, {"step": 1, "safe_rate": 0.5}]}
    write_json(folder / "stages" / "train-raft-harm" / "metrics.json", {"curves": curves})
    found = [{"k": k, "coverage": 0.1 * k, "prompts": 50} for k in (1, 2, 3, 4)]
    preflight = {"coverage": found, "coverage_by": "guard", "warnings": []}
    write_json(folder / "stages" / "train-raft-harm" / "iter-1" / "preflight.json", preflight)
    return folder


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows that begin with ``first``."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert found, first
    return found


def test_cells_are_measured_or_say_what_they_need(run: Path) -> None:
    text = write_study(run).read_text()
    assert text.splitlines()[2] == "**Only a trial.**"
    safety, helpful = rows(text, "500")
    assert safety[1] == "85 %"
    assert safety[2].startswith("79.8 % \\[73.")
    assert safety[2].endswith("(n = 178)")
    assert safety[7].startswith("20.0 %")
    assert "not run: needs boolq" in helpful
    assert rows(text, "2000")[0][2] == "not run: needs safety-tuned-llamas, which is not there"
    assert rows(text, "300")[0][2] == "not run: not in this scale"
    assert "### raft-harm by iteration" in text
    assert ["1", "0.5"] in rows(text, "1")
    assert "| start of | safe by the | prompts | k = 1 | k = 2 | k = 4 |" in text
    assert ["raft-harm", "guard", "50", "10.0 %", "20.0 %", "40.0 %"] in rows(text, "raft-harm")
    assert "needs safety-tuned-llamas" in text.split("## Not run")[1]


def test_claims_rest_on_intervals(run: Path) -> None:
    found = {claim["claim"]: claim for claim in paper_claims(read_study(run))}
    outcomes = [claim["outcome"] for claim in found.values()]
    # .97 of 318: lower bound .945; accuracy .49 against .50, paired: within 5 points; 17 and 30 points apart;
    # 2 points more refused, at most 4
    assert outcomes == ["holds", "holds", "holds", "holds", "holds"]
    assert found["DPO is safer than SIT"]["evidence"].startswith("dpo − dose-500: +17.")
    assert json.loads((write_study(run).parent / "study.json").read_text())["claims"] == list(found.values())


def test_a_claim_whose_models_are_missing_is_not_measured(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluate"]["models"] = ["base", "dose-0"]
    write_text(run / "recipe.yaml", yaml.safe_dump(recipe))
    assert {claim["outcome"] for claim in paper_claims(read_study(run))} == {"not measured"}


def test_the_other_way_round_does_not_hold(run: Path) -> None:
    write_model(run, "dpo", 0.45, 0.3, 0.3)
    outcomes = [claim["outcome"] for claim in paper_claims(read_study(run))]
    assert outcomes == ["does not hold", "does not hold", "does not hold", "holds", "does not hold"]


def test_the_page_says_what_was_not_run(run: Path) -> None:
    page = render_report(report_from_run(run))
    assert "Only a trial." in page
    assert "Not run: dose-2000." in page


def test_seeds_are_shown_as_a_spread_and_one_of_them_stands_in_the_tables(run: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for seed, refused in ((8, 0.1), (9, 0.072)):
        name = f"dpo-seed{seed}"
        write_model(run, name, 1.0, refused, 0.49)  # safer than the first seed: must not stand for DPO because of that
        recipe["train"][name] = {**recipe["train"]["dpo"], "seed": seed, "repeats": "dpo"}
        recipe["train"][f"dose-500-seed{seed}"] = {**recipe["train"]["dose-500"], "seed": seed, "repeats": "dose-500"}
        recipe["evaluate"]["models"].append(name)
    write_text(run / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    text = write_study(run).read_text()
    # 4, 10 and 7.2 %: mean 7.07, squared distances 9.40 + 8.60 + 0.02 over 2 is 9.01, its root 3.0
    expected = ["dpo", "XSTest-safe", "over-refused", "4.0, 10.0, 7.2", "7.1 %", "3.0", "6.0"]
    assert expected in rows(text.split("## Between seeds")[1], "dpo")
    assert "dose-500-seed8" not in text  # trained, not measured
    assert "here: dpo-seed8" not in text
    found = {claim["claim"]: claim for claim in paper_claims(read_study(run))}
    assert found["DPO is safer than SIT"]["evidence"].startswith("dpo − dose-500")
    page = render_report(report_from_run(run))
    assert "<td>4.0, 10.0, 7.2</td>" in page
    assert "Between seeds" in page
    write_figures(run, tmp_path / "figures", ["svg"])
    assert "| " + " | ".join(expected) + " |" in (tmp_path / "figures" / "seeds.md").read_text()


def test_without_seeds_nothing_is_said_of_them(run: Path) -> None:
    assert "Between seeds" not in write_study(run).read_text()
    assert "Between seeds" not in render_report(report_from_run(run))
