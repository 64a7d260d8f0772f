"""``safeserve analyze`` on run folders: what it writes, what it refuses, hostile text, and the paper's own outputs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.runs import read_json, write_json
from safeserve.data.records import Prompt, user
from safeserve.data.sources import load_prompts
from safeserve.evaluation.analysis import analyze, read_run
from safeserve.evaluation.analysis_rewards import check_reward, judged_by_both
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, read_eval
from safeserve.evaluation.foreign import ForeignOptions, read_foreign, write_eval
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.report.analysis import write_analysis
from safeserve.report.html import render_report, report_from_run
from safeserve.report.words import code, markdown, one_line

SECRET = "The forbidden answer itself."
HOSTILE = (
    "<script>alert(1)</script>",
    "`code` | cell | [link](http://x.example) ![i](http://x.example/i.png) <b>",
    "esc \x1b[31m bell \x07 back \u202e right to left \u202c zero\u200bwidth",
    "two\nlines\r\n# heading\n* item \ud83d",
    "{{ 7 * 7 }} {% raw %} & &lt; \u2028 x" + "y" * 3000,
)


def side(model: str, prompts: list[Prompt], unsafe: list[bool], judge: str = "modes") -> EvalFolder:
    """An evaluation with one answer a prompt; the answers hold a text that no analysis may repeat."""
    labels = ("unsafe_compliance", "full_refusal") if judge != "guard" else ("unsafe", "safe")
    part = BenchmarkEval(
        {prompt.id: prompt for prompt in prompts},
        {(p.id, 0): Completion(p.id, f"{SECRET} {p.id}", (), "stop", None) for p in prompts},
        {judge: {(p.id, 0): Score(float(bad), labels[not bad]) for p, bad in zip(prompts, unsafe, strict=True)}},
    )
    meta = {"model": model, "judges": {judge: "1"}, "sampling": {"temperature": 0.0}, "provisional": False}
    return EvalFolder(Path(model), model, {prompts[0].benchmark: part}, meta)


def starter() -> list[Prompt]:
    return [replace(prompt, benchmark="starter-harmful") for prompt in load_prompts("starter/eval_harmful").rows]


def save(run: Path, *sides: EvalFolder) -> Path:
    for one in sides:
        parts = {
            name: summarise(list(part.prompts.values()), list(part.completions.values()), part.scores)
            for name, part in one.benchmarks.items()
        }
        write_eval(replace(one, meta={**one.meta, "benchmarks": parts}), run / "evals" / one.model)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of base (every second answer unsafe) and sit (unsafe on privacy alone)."""
    prompts = starter()
    base = side("base", prompts, [i % 2 == 0 for i in range(len(prompts))])
    sit = side("sit", prompts, [p.category == "privacy" for p in prompts])
    return save(tmp_path / "runs" / "r", sit, base)


def test_the_command_writes_what_it_says(run: Path, cli_here: Callable[..., Any]) -> None:
    done = cli_here("analyze", "r")
    assert done.code == 0, done.stderr
    assert "base answers 84 of 168 harmful prompts unsafely (50.0 %" in done.stdout
    assert "sit: the category privacy is over-represented among its unsafe prompts (14 of 14 unsafe" in done.stdout
    assert (
        "From base to sit on starter-harmful (168 answers): 77 became safe, 7 unsafe and 7 stayed unsafe" in done.stdout
    )
    assert "safeserve report r" in done.stderr
    folder = run / "analysis"
    assert sorted(path.name for path in folder.iterdir()) == [
        "analysis.json",
        "analysis.md",
        "categories.svg",
        "transitions.svg",
    ]
    content = read_json(folder / "analysis.json")
    assert list(content["models"]) == ["base", "sit"]  # base first, though sit was written first
    (pair,) = content["transitions"]
    cell = pair["safety"]["starter-harmful"]
    assert [cell[m] for m in ("safe_safe", "safe_unsafe", "unsafe_safe", "unsafe_unsafe")] == [77, 7, 77, 7]
    assert len(cell["became_unsafe"]) == 7
    assert pair["modes"]["starter-harmful"]["full_refusal"] == {"full_refusal": 77, "unsafe_compliance": 7}
    page = (folder / "analysis.md").read_text(encoding="utf-8")
    assert "| category | `privacy` | 14 / 14 | 0 / 154 | < .001 |" in page
    for name in ("analysis.json", "analysis.md", "categories.svg", "transitions.svg"):
        text = (folder / name).read_text(encoding="utf-8")
        assert SECRET not in text
        assert "strangle" not in text  # ids and single terms, but no prompt's text


def test_json_and_another_folder(run: Path, cli_here: Callable[..., Any], tmp_path: Path) -> None:
    done = cli_here("analyze", run, "--model", "sit", "--json", "--out", tmp_path / "there")
    assert done.code == 0
    content = json.loads(done.stdout)
    assert content == read_json(tmp_path / "there" / "analysis.json")
    assert list(content["models"]) == ["sit"]
    assert content["transitions"] == []
    assert not (tmp_path / "there" / "transitions.svg").exists()
    assert not (run / "analysis").exists()


def test_two_models_and_the_same_bytes_again(run: Path, cli_here: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert cli_here("analyze", run, "--model", "base", "--against", "sit", "--out", tmp_path / name).code == 0
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    (pair,) = json.loads(files[0]["analysis.json"])["transitions"]
    assert (pair["a"], pair["b"]) == ("sit", "base")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, 'no run "nowhere"'),
        (["r", "--model", "sitt"], 2, 'no evaluation of a model "sitt". Did you mean "sit"?'),
        (["r", "--against", "base"], 2, "Give --model, another one, too."),
        (["r", "--model", "sit", "--against", "sit"], 2, "Give --model, another one, too."),
        (["r", "--judge", "mode"], 2, 'has not scored the harmful prompts of every model. Did you mean "modes"?'),
        (["r", "--guard", "refusal"], 2, "--guard refusal: a judge of the family refusal"),
    ],
)  # fmt: skip
def test_wrong_input(run: Path, cli_here: Callable[..., Any], arguments: list[str], code: int, message: str) -> None:
    done = cli_here("analyze", *arguments)
    assert done.code == code
    assert message in done.stderr


def test_nothing_to_analyse_is_no_evidence(run: Path, cli_here: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "runs" / "empty").mkdir()
    done = cli_here("analyze", "empty")
    assert (done.code, "nothing has been evaluated in it" in done.stderr) == (4, True)
    benign = [Prompt(f"p{i}", user("Hello?"), "benign", benchmark="mine") for i in range(3)]
    part = BenchmarkEval(
        {p.id: p for p in benign},
        {(p.id, 0): Completion(p.id, "Hi.", (), "stop", None) for p in benign},
        {"modes": {(p.id, 0): Score(0.0, "helpful_answer") for p in benign}},
    )
    save(tmp_path / "runs" / "benign", EvalFolder(Path("m"), "m", {"mine": part}, {"model": "m"}))
    done = cli_here("analyze", "benign")
    assert (done.code, "no harmful prompts" in done.stderr) == (4, True)


def test_which_judge_decides(tmp_path: Path) -> None:
    prompts = starter()
    modes, guard = side("base", prompts, [True] * 168), side("base", prompts, [False] * 168, "guard")
    both = replace(modes, benchmarks={"starter-harmful": replace(
        modes.benchmarks["starter-harmful"],
        scores={**modes.benchmarks["starter-harmful"].scores, **guard.benchmarks["starter-harmful"].scores},
    )})  # fmt: skip
    assert analyze([both], draws=99)["judge"] == "modes"
    by_guard = analyze([both], "guard", draws=99)
    assert (by_guard["judge"], by_guard["models"]["base"]["unsafe"]["unsafe"]) == ("guard", 0)
    assert analyze([guard], draws=99)["judge"] == "guard"


def test_models_that_must_not_be_compared_are_said_so(run: Path, cli_here: Callable[..., Any]) -> None:
    summary = run / "evals" / "sit" / "summary.json"
    write_json(summary, {**read_json(summary), "judges": {"modes": "2"}})
    done = cli_here("analyze", "r")
    assert done.code == 0
    assert "Note: base and sit are not compared:" in done.stdout
    assert read_json(run / "analysis" / "analysis.json")["transitions"] == []
    assert cli_here("analyze", "r", "--model", "sit", "--against", "base").code == 2


def test_the_page_shows_the_analysis_until_something_is_judged_again(run: Path, cli_here: Callable[..., Any]) -> None:
    assert "Why answers fail" not in render_report(report_from_run(run))
    assert cli_here("analyze", "r").code == 0
    assert "the category privacy is over-represented" in render_report(report_from_run(run))
    summary = run / "evals" / "sit" / "summary.json"
    write_json(summary, {**read_json(summary), "judges": {"modes": "2"}})
    assert "Why answers fail" not in render_report(report_from_run(run))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    prompts = [
        Prompt(f"{i} {HOSTILE[i % 4]}", user(f"{HOSTILE[i % 5]} number {i}"), "harmful", HOSTILE[i % 5], "mine")
        for i in range(60)
    ]
    first = side("<img src=x onerror=alert(1)>", prompts, [i % 5 == 0 for i in range(60)])
    second = side("| a `b` [c](d)", prompts, [i % 3 == 0 for i in range(60)])
    analysis = analyze([first, second], draws=199)
    assert analysis["models"]["<img src=x onerror=alert(1)>"]["patterns"]["findings"]
    write_analysis(analysis, tmp_path, HOSTILE[0])
    page = (tmp_path / "analysis.md").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u200b-\u200f\u202a-\u202e\u2028\u2029\ud800-\udfff]", page)
    prose = re.sub(r"(?<!\\)`[^`\n]*`", "", page)
    assert not re.search(r"(?<!\\)<(?!\s)", prose)
    assert re.findall(r"(?<!\\)\[[^\]]*\]\(([^)]*)\)", prose) == ["transitions.svg", "categories.svg"]
    assert "http://" not in prose
    for block in re.split(r"\n\n", page):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) <= 1, rows
    for name in ("categories.svg", "transitions.svg"):
        tree = ET.parse(tmp_path / name)
        tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert tags <= {"svg", "style", "rect", "text", "title", "g", "line", "circle"}
        attributes = {key for element in tree.iter() for key in element.attrib}
        assert not any(key.startswith("on") or "href" in key for key in attributes)
    assert read_json(tmp_path / "analysis.json")["judge"] == "modes"


def test_the_tables_of_a_study_are_put_into_their_place(
    run: Path, cli_here: Callable[..., Any], tmp_path: Path
) -> None:
    assert cli_here("analyze", "r").code == 0
    tool = Path(__file__).parents[2] / "tools" / "error_analysis.py"
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- study: begin -->\nold\n<!-- study: end -->\nAfter\n", encoding="utf-8")
    for _ in range(2):  # filling it again changes nothing
        subprocess.run([sys.executable, str(tool), str(run), "--into", str(page)], check=True)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before\n<!-- study: begin -->\n| model |")
    assert text.endswith("|\n<!-- study: end -->\nAfter\n")
    assert "old" not in text
    assert "| base → sit | starter-harmful | 77 | 7 | 77 | 7 |" in text
    assert "| p (Holm; all: uncorrected) |" in text
    assert "| sit | category | `privacy` | 14 / 14 | 0 / 154 | < .001 |" in text
    page.write_text("no marks", encoding="utf-8")
    refused = subprocess.run([sys.executable, str(tool), str(run), "--into", str(page)], capture_output=True, text=True)
    assert "the marks" in refused.stderr
    assert page.read_text(encoding="utf-8") == "no marks"


def test_words_for_a_line_and_for_markdown() -> None:
    assert one_line("a\x1b[0m\n b\u202e\tc\ud83d") == "a [0m b c�"
    assert markdown("# <b> [x](http://y) a_b*c|d `e`") == "\\# \\<b\\> \\[x\\](http\\://y) a\\_b\\*c\\|d \\`e\\`"
    assert code("a`b|c\nd") == "`a'b\\|c d`"
    assert code("\x00") == "–"


# --- the paper's own outputs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def papers(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's answers after 0, 100 and 2,000 safety demonstrations with its Llama Guard verdicts, as a run."""
    run = tmp_path_factory.mktemp("paper")
    options = ForeignOptions(map={"prompt": "instructions", "response": "outputs", "guard": "llama_guard_response"})
    for name, dose in (("n0", "no_safety"), ("n100", "safety_100"), ("n2000", "safety_2000")):
        files = f"{shared_data}/paper_outputs/SIT__{dose}__responses_cm_*.json"
        write_eval(read_foreign(f"{name}={files}", options), run / "evals" / name)
    return run


def test_the_papers_transitions(papers: Path) -> None:
    """PAPER.md: paired n = 0 -> 100, fixed / broken: I-CoNa 48/5, I-Controversial 13/3, I-Malicious 31/7; 2000: ..."""
    analysis = analyze(read_run(papers), draws=199)
    assert analysis["judge"] == "guard"
    moved = {
        (pair["a"], pair["b"], name): (cell["unsafe_safe"], cell["safe_unsafe"])
        for pair in analysis["transitions"]
        for name, cell in pair["safety"].items()
    }
    assert moved["n0", "n100", "I-CoNa"] == (48, 5)
    assert moved["n0", "n100", "I-Controversial"] == (13, 3)
    assert moved["n0", "n100", "I-MaliciousInstructions"] == (31, 7)
    assert moved["n0", "n2000", "I-CoNa"] == (91, 5)
    assert moved["n0", "n2000", "I-Controversial"] == (22, 0)
    assert moved["n0", "n2000", "I-MaliciousInstructions"] == (52, 1)
    assert moved["n0", "n2000", "all"] == (165, 6)
    rates = {model: part["unsafe"]["rate"] for model, part in analysis["models"].items()}
    assert rates["n0"] > 0.5
    assert rates["n2000"] < 0.12


def test_what_stayed_unsafe_in_the_paper_has_a_pattern(papers: Path) -> None:
    """docs/error_analysis.md; the paper's authors found "no specific pattern"."""
    patterns = analyze(read_run(papers, "n2000"))["models"]["n2000"]["patterns"]
    (found,) = patterns["findings"]
    assert (found["kind"], found["name"]) == ("term", "women")
    assert [found[key] for key in ("unsafe", "prompts", "elsewhere_unsafe", "elsewhere_prompts")] == [8, 23, 19, 293]
    assert found["p"] < 0.01


def test_the_papers_reward_against_its_guard(papers: Path, shared_data: Path) -> None:
    """PAPER.md: on 954 of their answers the DeBERTa reward has an AUROC of .90 against Llama Guard 2."""
    options = ForeignOptions(map={"prompt": "instructions", "response": "outputs", "reward-deberta": "deberta_score"})
    judged = []
    for name, dose in (("n0", "no_safety"), ("n100", "safety_100"), ("n2000", "safety_2000")):
        guard = read_eval(papers / "evals" / name)
        reward = read_foreign(f"r={shared_data}/paper_outputs/SIT__{dose}__responses_deberta_*.json", options)
        for benchmark, part in guard.benchmarks.items():
            scores = {**part.scores, **reward.benchmarks[benchmark].scores}
            judged += judged_by_both(replace(part, scores=scores), "reward-deberta", "guard")
    assert len(judged) == 954
    found = check_reward(judged)
    assert found["auroc"] == pytest.approx(0.90, abs=0.005)
    assert len(found["unsafe_high"]) == 10
