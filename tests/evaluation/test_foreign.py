"""Foreign completions: what files say, what their names mean, and the paper's own numbers from its own files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from safeserve.core.errors import UserError
from safeserve.evaluation.compare import compare
from safeserve.evaluation.cut_off import cut_off, ends_mid_sentence
from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.foreign import ForeignOptions, is_foreign, read_foreign, read_sides, write_eval
from safeserve.evaluation.foreign_columns import published_score

HARMFUL = ForeignOptions(label="harmful")


def write(path: Path, **columns: list) -> Path:
    path.write_text(json.dumps(columns), encoding="utf-8")
    return path


def pair(tmp_path: Path) -> None:
    write(
        tmp_path / "a_first.json", instructions=["one?", "two?"], outputs=["A.", "B."], verdict=["safe", "unsafe\nS1"]
    )
    write(tmp_path / "a_second.json", instructions=["three?"], outputs=["C."], verdict=["safe"])
    write(tmp_path / "b_first.json", instructions=["two?", "one?"], outputs=["D.", "E."], verdict=["safe", "safe"])


def test_a_pattern_names_benchmarks_and_prompts_pair_up_by_their_text(tmp_path):
    pair(tmp_path)
    options = ForeignOptions(map={"guard": "verdict"}, label="harmful")
    a, b = read_sides(f"old={tmp_path}/a_*.json", f"{tmp_path}/b_*.json", options)
    assert (a.model, list(a.benchmarks), b.model, list(b.benchmarks)) == ("old", ["first", "second"], "b", ["first"])
    cell = compare(a, b)["benchmarks"]["first"]["judge"]["guard"]["safe_rate"]
    assert (cell["n"], cell["a"], cell["b"], cell["fixed"], cell["broken"]) == (2, 0.5, 1.0, 1, 0)


def test_jsonl_csv_and_a_list_of_objects_say_the_same(tmp_path):
    rows = [{"prompt": "one?", "response": "A, b."}, {"prompt": "two?", "response": 'Say "c".'}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.csv").write_text('prompt,response\none?,"A, b."\ntwo?,"Say ""c""."\n')
    read = [read_foreign(str(tmp_path / f"x.{kind}"), HARMFUL).benchmarks["x"] for kind in ("jsonl", "json", "csv")]
    assert read[0] == read[1] == read[2]
    assert [c.text for c in read[0].completions.values()] == ["A, b.", 'Say "c".']


def test_a_prompt_that_comes_again_is_a_further_sample(tmp_path):
    path = write(tmp_path / "x.json", prompt=["one?", "two?", "one?"], response=["A.", "B.", "C."])
    part = read_foreign(str(path), HARMFUL).benchmarks["x"]
    assert [k for _, k in part.completions] == [0, 0, 1]
    assert len(part.prompts) == 2


def test_no_answer_is_an_error_of_the_answer_and_an_empty_one_is_empty(tmp_path):
    path = write(tmp_path / "x.json", prompt=["one?", "two?"], response=[None, ""])
    first, second = read_foreign(str(path), HARMFUL).benchmarks["x"].completions.values()
    assert (first.finish_reason, first.error, second.finish_reason) == ("error", "no answer in the file", "stop")


def test_both_kinds_of_prompts_become_two_benchmarks(tmp_path):
    path = write(tmp_path / "x.json", prompt=["a", "b"], response=["A.", "B."], kind=["unsafe", "benign"])
    read = read_foreign(str(path), ForeignOptions(map={"label": "kind"}))
    assert {name: part.label for name, part in read.benchmarks.items()} == {
        "x-harmful": "harmful",
        "x-benign": "benign",
    }


def test_foreign_prompts_take_the_ids_of_a_run(make_eval, tmp_path):
    own = make_eval("base", harmful=["unsafe_compliance", "safe_answer"])
    texts = [prompt.text for prompt in read_eval(own).benchmarks["starter-harmful"].prompts.values()]
    foreign = write(tmp_path / "starter-harmful.json", prompt=texts[::-1], response=["I can't help with that."] * 2)
    options = ForeignOptions(label="harmful", judges=["refusal"])
    a, b = read_sides(str(own), str(foreign), options)
    assert list(b.benchmarks["starter-harmful"].prompts) == ["p001", "p000"]
    b.meta["judges"].clear()  # the made-up identity of the fixture
    cell = compare(a, b)["benchmarks"]["starter-harmful"]["judge"]["refusal"]["safe_rate"]
    assert (cell["n"], cell["fixed"], cell["broken"]) == (2, 1, 0)


def test_what_is_stored_reads_back(tmp_path):
    pair(tmp_path)
    side = read_foreign(f"old={tmp_path}/a_*.json", ForeignOptions(map={"guard": "verdict"}, label="harmful"))
    write_eval(side, tmp_path / "evals" / "old")
    back = read_eval(tmp_path / "evals" / "old")
    assert back.benchmarks == side.benchmarks
    assert not is_foreign(str(tmp_path / "evals" / "old"))
    with pytest.raises(UserError, match="holds an evaluation already"):
        write_eval(side, tmp_path / "evals" / "old")


def test_score_makes_an_evaluation_that_other_commands_take(cli_here, tmp_path):
    pair(tmp_path)
    shown = ["--map", "guard=verdict", "--label", "harmful", "--judge", "refusal"]
    assert "--out" in cli_here("score", "a_*.json", *shown).stderr
    assert cli_here("score", "old=a_*.json", *shown, "--out", "evals/old").code == 0
    stored = json.loads((tmp_path / "evals" / "old" / "summary.json").read_text())
    assert set(stored["benchmarks"]["first"]["judges"]) == {"guard", "refusal"}
    assert {finding["rule"] for finding in stored["findings"]} >= {"H12"}
    ran = cli_here("compare", "evals/old", "new=b_*.json", *shown, "--json")
    assert json.loads(ran.stdout)["benchmarks"]["first"]["judge"]["guard"]["safe_rate"]["fixed"] == 1


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"question_text": ["a"], "outputs": ["b"]}, HARMFUL, r"no column for the prompt .*--map prompt=COLUMN"),
        ({"prompt": ["a"], "response": ["b"]}, ForeignOptions(), "--label harmful"),
        ({"prompt": [""], "response": ["b"]}, HARMFUL, "row 1.*holds no prompt"),
        ({"prompt": ["a"], "response": ["b"]}, ForeignOptions({"guard": "x"}, "harmful"), 'no column "x" for guard'),
        ({"prompt": ["a"], "response": ["b"]}, ForeignOptions({"gard": "response"}, "harmful"), 'Did you mean "guard"'),
        ({"prompt": ["a"], "response": ["b"], "l": ["?"]}, ForeignOptions({"label": "l"}), 'label "\\?" is unknown'),
        ({"prompt": ["a", "a"], "response": ["b", "c"], "k": [1, 1]}, ForeignOptions({"k": "k"}, "harmful"), "before"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_remedy(tmp_path, columns, options, message):
    path = write(tmp_path / "x.json", **columns)
    with pytest.raises(UserError, match=message):
        read_foreign(str(path), options)


def test_a_pattern_without_files_and_two_stars():
    with pytest.raises(UserError, match="Quote the pattern"):
        read_foreign("nothing_*.json", HARMFUL)
    with pytest.raises(UserError, match=r"one \* is understood"):
        read_foreign("*/x_*.json", HARMFUL)


@pytest.mark.parametrize(
    ("judge", "value", "expected"),
    [
        ("guard", "safe", (0.0, "safe")),
        ("guard", " Unsafe\nS9", (1.0, "unsafe")),
        ("guard", 0.75, (0.75, "unsafe")),
        ("guard", "0.25", (0.25, "safe")),
        ("guard", "safe, but borderline", (None, None)),
        ("guard", 1.5, (None, None)),
        ("guard", None, (None, None)),
        ("reward-deberta", -3.5, (-3.5, None)),
        ("reward", "high", (None, None)),
        ("short_answer", True, (1.0, "correct")),
        ("short_answer", "wrong", (None, None)),
        ("refusal", "unsafe_compliance", (1.0, "unsafe_compliance")),
        ("refusal", "no such mode", (None, None)),
    ],
)
def test_published_verdicts(judge, value, expected):
    score = published_score(judge, value)
    assert (score.value, score.label) == expected
    assert (score.reason is not None) == (score.value is None)


def test_a_published_nan_stays_one_so_that_it_fails_closed():
    score = published_score("guard", float("nan"))
    assert score.value is not None
    assert math.isnan(score.value)
    assert score.label is None


def test_cut_answers_are_told_from_their_ends():
    long = "word " * 99
    assert cut_off([long + "and then", long + "end.", "Paris", *[long + "end."] * 9]) == [True, *[False] * 11]
    assert cut_off(["Paris", "Rome"] * 10) == [False] * 20
    assert not ends_mid_sentence('He said "no."')
    assert not ends_mid_sentence("")


@pytest.mark.parametrize(
    ("dose", "expected"),
    [
        (100, {"I-CoNa": (48, 5), "I-Controversial": (13, 3), "I-MaliciousInstructions": (31, 7)}),
        (2000, {"I-CoNa": (91, 5), "I-Controversial": (22, 0), "I-MaliciousInstructions": (52, 1)}),
    ],
)
def test_the_papers_sit_answers_with_its_llama_guard_verdicts(shared_data, dose, expected):
    at = f"{shared_data}/paper_outputs/SIT__"
    options = ForeignOptions(map={"prompt": "instructions", "response": "outputs", "guard": "llama_guard_response"})
    sides = read_sides(f"{at}no_safety__responses_cm_*.json", f"{at}safety_{dose}__responses_cm_*.json", options)
    parts = compare(*sides)["benchmarks"]
    cells = {name: part["judge"]["guard"]["safe_rate"] for name, part in parts.items()}
    assert {name: (cell["fixed"], cell["broken"]) for name, cell in cells.items()} == expected
    assert {name: cell["n"] for name, cell in cells.items()} == {
        "I-CoNa": 178,
        "I-Controversial": 40,
        "I-MaliciousInstructions": 100,
    }
    # Holm by hand: the largest p stays, the next is doubled, the smallest tripled; none may fall below the one before.
    ordered = sorted(cells.values(), key=lambda cell: cell["p"])
    running = 0.0
    for factor, cell in zip((3, 2, 1), ordered, strict=True):
        running = max(running, min(1.0, factor * cell["p"]))
        assert cell["p_holm"] == pytest.approx(running)
        assert cell["p_holm"] < 0.05
