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


def write_benchmark(folder: Path, name: str, label: str, judge: str, modes: Sequence[str | float]) -> dict[str, Any]:
    """``modes``: a label an answer, or a judge's value."""
    prompts = [Prompt(f"p{i:03d}", user(f"{name} {i}?"), label, "", name, None, ("yes",)) for i in range(len(modes))]
    done = [Completion(p.id, "An answer.", (1,), "stop", None) for p in prompts]
    scores = {
        (p.id, 0): Score(m, None) if isinstance(m, float) else Score(float(m == "unsafe_compliance"), m)
        for p, m in zip(prompts, modes, strict=True)
    }
    write_jsonl(folder / name / "prompts.jsonl", (p.to_json() for p in prompts))
    write_jsonl(folder / name / "completions.jsonl", (c.to_json() for c in done))
    rows = [{"id": i, "k": k, "value": s.value, "label": s.label} for (i, k), s in scores.items()]
    write_jsonl(folder / name / "scores" / f"{judge}.jsonl", rows)
    return summarise(prompts, done, {judge: scores})


def write_model(run: Path, name: str, safe: float, refused: float, correct: float, rouge: float = 0.25) -> None:
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
    near = [rouge + 0.01 * (i % 5 - 2) for i in range(60)]
    parts["Alpaca-test"] = write_benchmark(folder, "Alpaca-test", "benign", "rouge_l", near)
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
        write_model(folder, name, safe, refused, correct, rouge=0.2 if name == "dpo" else 0.25)
    stages = {
        "dose-0": {"method": "sit", "helpful": "alpaca", "dose": 0},
        "dose-500": {"method": "sit", "helpful": "alpaca", "dose": 500},
        "harm": {"method": "cost", "pairs": "pku-saferlhf"},
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
    stage = folder / "stages" / "train-raft-harm" / "iter-1"
    write_json(stage / "preflight.json", preflight)
    # of 6 prompts: the first sample and the one of highest reward are safe or not as the four cells 1, 2, 1, 2 say
    samples = [
        {"id": f"q{i}", "k": k, "label": "harmful", "reward": float(k), "held_out": {"unsafe": unsafe}}
        for i, pair in enumerate([(0, 0), (0, 1), (0, 1), (1, 0), (1, 1), (1, 1)])
        for k, unsafe in enumerate(map(bool, pair))
    ]
    write_jsonl(stage / "samples.jsonl", samples)
    accuracy = {"n": 90, "accuracy": 0.75, "ci95": [0.65, 0.83], "difference": {"value": 0.125, "ci95": [0.03, 0.22]}}
    held_out = {**accuracy, "length_only": {"rule": "longer", "accuracy": 0.625, "ci95": [0.52, 0.72]}}
    write_json(folder / "stages" / "train-harm" / "metrics.json", {"held_out": held_out})
    return folder


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows that begin with ``first``."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert found, first
    return found


def table(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_cells_are_measured_or_say_what_they_need(run: Path) -> None:
    text = write_study(run).read_text()
    assert text.splitlines()[2] == "**Only a trial.**"
    (safety,) = rows(table(text, "SIT: safety by dose"), "500")
    assert safety[1] == "85 %"
    assert safety[2].startswith("79.8 % \\[73.")
    assert safety[2].endswith("(n = 178)")
    assert safety[7].startswith("20.0 %")
    (helpful,) = rows(table(text, "SIT: helpfulness by dose"), "500")
    assert helpful[1:3] == ["0.97", "not run: needs the reward model on GPT-2-large as a judge"]
    assert helpful[5] == "0.224"
    assert helpful[6].startswith("0.250 \\[0.24")
    assert helpful[9:11] == ["69.41 %", "not run: needs boolq"]
    assert rows(text, "2000")[0][2] == "not run: needs safety-tuned-llamas, which is not there"
    assert rows(text, "300")[0][2] == "not run: not in this scale"
    assert "not run: needs DeBERTa as a judge" in text
    assert "needs safety-tuned-llamas" in table(text, "Not run")


def test_what_raft_and_its_rewards_did(run: Path) -> None:
    text = write_study(run).read_text()
    assert ["1", "0.5"] in rows(table(text, "RAFT: raft-harm by iteration"), "1")
    coverage = table(text, "RAFT: harmful prompts with a safe sample among k")
    assert "| start of | safe by the | prompts | k = 1 | k = 2 | k = 4 |" in coverage
    assert ["raft-harm", "guard", "50", "10.0 %", "20.0 %", "40.0 %"] in rows(coverage, "raft-harm")
    errors = table(text, "RAFT: what becomes of safe and unsafe answers")
    assert rows(errors, "paper: the model after one iteration") == [
        ["paper: the model after one iteration", "100", "68", "5", "6", "21"]
    ]
    assert rows(errors, "here: picked by raft-harm, iteration 1")[0][1:] == ["6", "1", "2", "1", "2"]
    # 71, 40 and 16 are safe at the start, and 89, 50 and 20 after
    assert rows(errors, f"here: dose-0 → raft-harm, {', '.join(SETS)}")[0][1:] == ["318", "127", "0", "32", "159"]
    (scorer,) = rows(table(text, "Reward models: accuracy on pairs"), "harm: its held-out pairs (n = 90)")
    assert scorer[3:] == ["75.0 % \\[65.0, 83.0\\]", "62.5 % (longer); difference +12.5 \\[+3.0, +22.0\\]"]
    assert "| RewardBench refusals-dangerous | 37.4 % | 7 % | not run: needs RewardBench" in text


def test_numbers_of_the_paper_keep_their_digits_and_their_place(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["train"]["dpo-4"] = {**recipe["train"]["dpo"], "n_pairs": 250}
    recipe["evaluate"]["models"].append("dpo-4")
    write_text(run / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    write_model(run, "dpo-4", 0.99, 0.04, 0.49)
    text = write_study(run).read_text()
    raft = table(text, "RAFT: safety")
    assert rows(raft, "paper: before")[0][1:] == ["39.9 %", "50 %", "42.5 %", "–"]
    counts = [cell.split("(n = ")[1] for cell in rows(raft, "here: raft-harm")[0][1:]]
    assert counts == ["178)", "100)", "40)", "250)"]  # the sets, then XSTest-safe
    helpful = table(text, "DPO: helpfulness")
    assert "70.1 %" in rows(helpful, "paper: all pairs")[0]
    assert not {"70.1 %", "35.62 %"} & set(rows(helpful, "here: dpo-4")[0])  # the paper has none for a part of the data
    found = {claim["claim"]: claim["evidence"] for claim in paper_claims(read_study(run))}
    assert "→ dpo:" in found["DPO is safer than SIT"]  # dpo-4 is safer here, but was not named beforehand


def test_paired_tests_are_corrected_over_their_table(run: Path) -> None:
    text = table(write_study(run).read_text(), "Against the model without safety data, the same prompts")
    assert rows(text, "paper: 100 demonstrations")[0][1] == "48 / 5"
    (sit,) = rows(text, "here: dose-500")
    assert sit[1:3] == ["71 / 0", "\\< .001"]
    (raft,) = rows(text, "here: raft-harm")
    # 4 of 40 became safe: p = 2/16, the eleventh smallest of 16, so times 6
    assert raft[5:7] == ["4 / 0", ".750"]


def test_claims_rest_on_intervals(run: Path) -> None:
    found = {claim["claim"]: claim for claim in paper_claims(read_study(run))}
    outcomes = {claim: one["outcome"] for claim, one in found.items()}
    refused = "(not in the paper) at most 5 points more of harmless prompts are refused after"
    assert outcomes == {
        "without safety data about 40 % is safe (30 to 50 %)": "holds",  # 127 of 318
        "SIT raises the share of safe answers": "holds",
        "over 90 % of the answers to harmful prompts are safe after SIT": "does not hold",  # 80 %
        "DPO raises the share of safe answers": "holds",
        "over 90 % of the answers to harmful prompts are safe after DPO": "holds",  # 97 %, from 94.5
        "RAFT (raft-harm) changes the safe rate little (by less than 10 points)": "undecided",  # 10.1
        "DPO is safer than SIT": "holds",
        "SIT is safer than RAFT (raft-harm)": "holds",
        "helpfulness is kept after SIT (short questions, at most 5 points lost)": "holds",
        "helpfulness is kept after SIT (ROUGE-L on Alpaca-test, at most a tenth lost)": "holds",
        "helpfulness is kept after RAFT (raft-harm) (short questions, at most 5 points lost)": "holds",
        "helpfulness is kept after RAFT (raft-harm) (ROUGE-L on Alpaca-test, at most a tenth lost)": "holds",
        "helpfulness is kept after DPO (short questions, at most 5 points lost)": "holds",  # 108 of 110
        "helpfulness is kept after DPO (ROUGE-L on Alpaca-test, at most a tenth lost)": "does not hold",  # .25 → .2
        f"{refused} SIT": "does not hold",  # 18 points
        f"{refused} RAFT (raft-harm)": "holds",
        f"{refused} DPO": "holds",  # 2 points, at most 4
    }
    assert found["DPO is safer than SIT"]["evidence"].startswith("dose-500 → dpo: 79.9 % → 97.2 %, +17.3 points [+")
    assert found["SIT raises the share of safe answers"]["evidence"].startswith("dose-0 → dose-500: 39.9 % → 79.9 %")
    assert json.loads((write_study(run).parent / "study.json").read_text())["claims"] == list(found.values())


def test_a_claim_whose_models_are_missing_is_not_measured(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["evaluate"]["models"] = ["base", "dose-0"]
    write_text(run / "recipe.yaml", yaml.safe_dump(recipe))
    first, *others = [claim["outcome"] for claim in paper_claims(read_study(run))]
    assert first == "holds"  # of the start alone
    assert set(others) == {"not measured"}


def test_the_other_way_round_does_not_hold(run: Path) -> None:
    write_model(run, "dpo", 0.2, 0.3, 0.3)
    found = {claim["claim"]: claim["outcome"] for claim in paper_claims(read_study(run))}
    assert {outcome for claim, outcome in found.items() if "DPO" in claim and "ROUGE" not in claim} == {"does not hold"}
    write_model(run, "dose-0", 0.7, 0.02, 0.5)
    assert next(paper_claims(read_study(run)))["outcome"] == "does not hold"


def test_the_page_and_the_figures_show_the_study(run: Path, tmp_path: Path) -> None:
    write_study(run)
    page = render_report(report_from_run(run))
    assert "<h2>Paper and here</h2>" in page
    assert "dose-500 → dpo: 79.9 %" in page
    assert page.count("<summary>RAFT: safety</summary>") == 1
    names = {path.name for path in write_figures(run, tmp_path, ["svg"])}
    assert {"study_claims.md", "study_safety_by_dose.tex", "study_raft_errors.md", "study_reward_deberta.md"} <= names
    assert r"39.9 \%" in (tmp_path / "study_raft.tex").read_text()


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
    assert expected in rows(table(text, "Between seeds"), "dpo")
    assert "dose-500-seed8" not in text  # trained, not measured
    assert "here: dpo-seed8" not in text
    found = {claim["claim"]: claim for claim in paper_claims(read_study(run))}
    # 97.2 % and twice 100 % safe: the interval is wider by 2.8 points on each side, and says so
    assert found["DPO is safer than SIT"]["evidence"].endswith("n = 318; seeds lie up to 2.8 points apart")
    refused = found["(not in the paper) at most 5 points more of harmless prompts are refused after DPO"]
    assert refused["outcome"] == "undecided"  # 2 points more, at most 4, and the seeds are 6 apart
    page = render_report(report_from_run(run))
    assert "<td>4.0, 10.0, 7.2</td>" in page
    assert page.count("<td>4.0, 10.0, 7.2</td>") == page.count("<h2>Between seeds</h2>") == 1
    assert "<h3>Between seeds" not in page
    write_figures(run, tmp_path / "figures", ["svg"])
    assert not (tmp_path / "figures" / "study_between_seeds.md").exists()
    assert "| " + " | ".join(expected) + " |" in (tmp_path / "figures" / "seeds.md").read_text()


def test_without_seeds_nothing_is_said_of_them(run: Path) -> None:
    assert "Between seeds" not in write_study(run).read_text()
    assert "Between seeds" not in render_report(report_from_run(run))
