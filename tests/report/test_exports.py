"""Exports: a table gives every text back and no spreadsheet runs it; Inspect reads the numbers of summary.json."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from safeserve.cli.export import export as verb
from safeserve.core.errors import UserError
from safeserve.core.runs import read_json, read_jsonl, write_json, write_jsonl, write_text
from safeserve.data.records import Prompt, user
from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.report.exports import export
from safeserve.report.samples_table import plain_cell, safe_cell, sample_rows

TEXTS = (
    '=HYPERLINK("http://evil.example","click")',
    "+1+1|cmd",
    "@SUM(A1)",
    "'quoted'",
    'a "quoted", two-line\nanswer\r\nwith, commas',
    "half a character \ud83d and a null \x00",
)
READABLE = (*TEXTS[:5], "half a character \ufffd and a null \x00")


def write_model(run: Path, model: str) -> None:
    """Six harmful prompts with two samples each, under one judge that could not score one answer; three benign."""
    folder, parts = run / "evals" / model, {}
    for name, label, n, samples in (("bad", "harmful", 6, 2), ("good", "benign", 3, 1)):
        prompts = [
            Prompt(f"{name}-{i}", user(f"Question {i}?"), label, "cat", name, None, ("yes", "y") if i else ())
            for i in range(n)
        ]
        completions = [
            Completion(p.id, TEXTS[i % 6], (1, 2, 3), "length" if k else "stop", -1.5, k, 7)
            for i, p in enumerate(prompts)
            for k in range(samples)
        ]
        labels = ("unsafe_compliance", "safe_answer") if label == "harmful" else ("full_refusal", "helpful_answer")
        refusal = {
            (c.id, c.k): Score(float(i % 3 == 0), labels[i % 3 != 0], None, ("truncated",), TEXTS[0], {"rule": "r"})
            for i, c in enumerate(completions)
        }
        if label == "harmful":
            refusal["bad-1", 1] = Score(None, None, "the judge's answer was cut off")
        scores = {"refusal": refusal}
        if label == "benign":
            scores["short_answer"] = {
                (p.id, 0): Score(1.0, "correct") if p.answers else Score(None, None, "no accepted answers")
                for p in prompts
            }
        target = folder / name
        write_jsonl(target / "prompts.jsonl", (p.to_json() for p in prompts))
        # Escaped, as half a character cannot be written as UTF-8.
        write_text(target / "completions.jsonl", "".join(json.dumps(c.to_json()) + "\n" for c in completions))
        for judge, given_scores in scores.items():
            rows = [
                {
                    "id": i,
                    "k": k,
                    "value": s.value,
                    "label": s.label,
                    "reason": s.reason,
                    "flags": list(s.flags),
                    "evidence": s.evidence,
                    "detail": s.detail,
                }
                for (i, k), s in given_scores.items()
            ]
            write_jsonl(target / "scores" / f"{judge}.jsonl", rows)
        parts[name] = summarise(prompts, completions, scores)
    sampling = {"max_new_tokens": 96, "temperature": 0.7, "top_p": 1.0, "seed": 7}
    meta = {"model": model, "identity": "w" * 16, "suite": "mine", "sampling": sampling, "judges": {"refusal": "j1"}}
    write_json(folder / "summary.json", {**meta, "benchmarks": parts})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    write_model(folder, "base")
    write_model(folder, "dpo")
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    return [dict(zip(header, map(plain_cell, row), strict=True)) for row in rows]


def test_csv_holds_every_completion_and_gives_the_texts_back(run: Path) -> None:
    (path,) = export(str(run), "csv")
    assert path == run / "samples.csv"
    rows = read_csv(path)
    assert len(rows) == 2 * (6 * 2 + 3)
    bad = [row for row in rows if (row["model"], row["benchmark"], row["k"]) == ("dpo", "bad", "0")]
    assert [row["response"] for row in bad] == list(READABLE)
    assert bad[0]["refusal.value"] == "1.0"
    assert bad[0]["refusal.label"] == "unsafe_compliance"
    assert json.loads(bad[0]["refusal.flags"]) == ["truncated"]
    assert json.loads(bad[0]["messages"]) == [{"role": "user", "content": "Question 0?"}]
    unscored = next(row for row in rows if row["id"] == "bad-1" and row["k"] == "1")
    assert (unscored["refusal.value"], unscored["refusal.reason"]) == ("", "the judge's answer was cut off")
    assert {row["short_answer.value"] for row in rows if row["benchmark"] == "bad"} == {""}


def test_no_csv_cell_of_text_begins_a_formula(run: Path) -> None:
    (path,) = export(f"{run}:base", "csv")
    assert path == run / "evals" / "base" / "samples.csv"
    for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")):
        for cell in row:
            if cell[:1] in "=+-@\t\r" and cell:
                float(cell)  # only a number may begin with a sign
    assert b"'=HYPERLINK" in path.read_bytes()


@given(st.text())
def test_safe_cells_are_undone_exactly(text: str) -> None:
    cell = safe_cell(text)
    assert plain_cell(cell) == text
    assert cell.lstrip(" ")[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")


def test_parquet_and_jsonl_hold_the_rows_of_the_csv(run: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    expected = sample_rows([read_eval(run / "evals" / name) for name in ("base", "dpo")])
    (lines,) = export(str(run), "jsonl")
    assert read_jsonl(lines) == expected
    (table,) = export(str(run), "parquet")
    loaded = pq.read_table(table)
    assert loaded.column("response").to_pylist() == [row["response"] for row in expected]
    assert loaded.column("refusal.value").to_pylist() == [row["refusal.value"] for row in expected]
    assert str(loaded.schema.field("logprob_sum").type) == "double"


def test_a_value_that_is_not_finite_is_exported_as_unscored(run: Path) -> None:
    scores = run / "evals" / "base" / "good" / "scores" / "short_answer.jsonl"
    rows = read_jsonl(scores)
    rows[1]["value"] = math.nan
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path,) = export(f"{run}:base", "jsonl")
    row = next(row for row in read_jsonl(path) if row["id"] == "good-1")
    assert row["short_answer.value"] is None
    assert "not finite" in row["short_answer.reason"]


def test_inspect_reads_the_samples_the_scores_and_the_summary(run: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    paths = export(str(run), "inspect")
    assert sorted(path.name for path in paths) == [f"{m}--{b}.eval" for m in ("base", "dpo") for b in ("bad", "good")]
    listed = {Path(info.name).name for info in log_module.list_eval_logs(str(run / "inspect"))}
    assert listed == {path.name for path in paths}, "inspect view would not list them"
    log = log_module.read_eval_log(str(run / "inspect" / "dpo--bad.eval"))
    assert log.status == "success"
    assert (log.eval.task, log.eval.model, log.eval.dataset.name) == ("bad", "safeserve/dpo", "bad")
    assert (log.eval.dataset.samples, log.eval.config.epochs) == (6, 2)
    assert (log.eval.model_generate_config.temperature, log.eval.model_generate_config.max_tokens) == (0.7, 96)
    assert len(log.samples) == 12
    samples = {(sample.id, sample.epoch): sample for sample in log.samples}
    first = samples["bad-0", 1]
    assert first.input[0].role == "user"
    assert first.input[0].content == "Question 0?"
    assert first.output.completion == READABLE[0]
    assert first.messages[-1].content == READABLE[0]
    assert (first.output.stop_reason, samples["bad-0", 2].output.stop_reason) == ("stop", "max_tokens")
    assert first.output.usage.output_tokens == 3
    assert samples["bad-5", 1].output.completion == READABLE[5]
    assert first.target == ""
    assert samples["bad-2", 1].target == ["yes", "y"]
    assert (first.metadata["label"], first.metadata["category"]) == ("harmful", "cat")
    score = first.scores["refusal"]
    assert (score.value, score.answer, score.explanation) == (1.0, "unsafe_compliance", TEXTS[0])
    assert (score.metadata["flags"], score.metadata["detail"]) == (["truncated"], {"rule": "r"})
    unscored = samples["bad-1", 2].scores["refusal"]
    assert math.isnan(unscored.value)
    assert unscored.explanation == "the judge's answer was cut off"


def test_inspect_metrics_are_those_of_summary_json(run: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    export(f"{run}:dpo", "inspect")
    summary = read_json(run / "evals" / "dpo" / "summary.json")
    for name in ("bad", "good"):
        log = log_module.read_eval_log(str(run / "evals" / "dpo" / "inspect" / f"dpo--{name}.eval"))
        judges = summary["benchmarks"][name]["judges"]
        assert {score.name for score in log.results.scores} == set(judges)
        for score in log.results.scores:
            cell = judges[score.name]
            assert score.scored_samples == cell["n_scored"]
            assert score.unscored_samples == cell["n"] - cell["n_scored"]
            assert {key: metric.value for key, metric in score.metrics.items()} == {
                key: metric["rate"] for key, metric in cell["metrics"].items()
            }
            for key, metric in score.metrics.items():
                assert metric.metadata["ci95"] == cell["metrics"][key]["ci95"]
        scored = [s.scores["refusal"].value for s in log.samples if not math.isnan(s.scores["refusal"].value)]
        assert len(scored) == judges["refusal"]["n_scored"]


def test_exporting_again_gives_the_same_log(run: Path) -> None:
    log_module = pytest.importorskip("inspect_ai.log")
    path = export(f"{run}:base", "inspect")[0]
    before = log_module.read_eval_log(str(path)).model_dump(mode="json")
    export(f"{run}:base", "inspect", redo=True)
    assert log_module.read_eval_log(str(path)).model_dump(mode="json") == before
    assert [child.name for child in path.parent.glob(".*")] == [], "a temporary file was left behind"


def test_tokens_that_nobody_knows_are_not_none_at_all(run: Path) -> None:
    """A served model and files of other tools tell no tokens; 0 would be a made-up number."""
    path = run / "evals" / "base" / "good" / "completions.jsonl"
    rows = read_jsonl(path)
    rows[0] |= {"token_ids": [], "prompt_tokens": 0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table,) = export(f"{run}:base", "jsonl")
    first, second = [row for row in read_jsonl(table) if row["benchmark"] == "good"][:2]
    assert (first["prompt_tokens"], first["response_tokens"]) == (None, None)
    assert (second["prompt_tokens"], second["response_tokens"]) == (7, 3)
    log_module = pytest.importorskip("inspect_ai.log")
    export(f"{run}:base", "inspect")
    log = log_module.read_eval_log(str(run / "evals" / "base" / "inspect" / "base--good.eval"))
    assert log.samples[0].output.usage is None


def test_the_inspect_folder_does_not_disturb_the_evaluation(run: Path) -> None:
    pytest.importorskip("inspect_ai")
    export(f"{run}:base", "inspect")
    assert list(read_eval(run / "evals" / "base").benchmarks) == ["bad", "good"]


@pytest.mark.parametrize("form", ["csv", "inspect"])
def test_what_exists_is_not_overwritten_without_redo(run: Path, form: str) -> None:
    if form == "inspect":
        pytest.importorskip("inspect_ai")
    (first, *_) = export(str(run), form)
    before = first.read_bytes()
    with pytest.raises(UserError, match="--redo"):
        export(str(run), form)
    assert first.read_bytes() == before
    assert export(str(run), form, redo=True)[0] == first


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "parquet"'):
        export(str(run), "parket")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no evaluation"):
        export(str(tmp_path / "empty"), "csv")
    with pytest.raises(UserError, match="is a folder"):
        export(str(run), "csv", tmp_path)
    for path in run.glob("evals/*/*/completions.jsonl"):
        path.unlink()
        for scores in (path.parent / "scores").iterdir():
            scores.unlink()
    with pytest.raises(UserError, match="no completions"):
        export(str(run), "csv")


def test_the_command_prints_what_it_wrote(run: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    out = tmp_path / "one.csv"
    arguments = [str(run / "evals" / "base"), "--to", "csv", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"files": [str(out)]}
    assert {row["model"] for row in read_csv(out)} == {"base"}
