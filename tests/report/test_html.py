"""The page: self-contained, complete, and deaf to anything a model writes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from safeserve.core.errors import EvidenceError
from safeserve.core.runs import readable, write_json
from safeserve.report.calibration import ROWS
from safeserve.report.html import ReportInput, embed_json, render_report, report_from_run


class Page(HTMLParser):
    """Counts elements and attributes, keeps what is inside scripts, and all visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def unpacked(text: str):
    """What :func:`embed_json` has packed."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def run(make_run) -> ReportInput:
    return report_from_run(make_run(judge="refusal"))


def test_the_run_directory_is_read_whole(run):
    assert run.title == "demo"
    assert list(run.summaries) == ["base", "dpo"]
    assert (run.comparison["a"], run.comparison["b"]) == ("base", "dpo")
    assert len(run.samples) == 168 + 168 + 220
    assert list(run.curves) == ["train-dpo"]
    assert run.command == "safeserve quickstart --seed 7"


def test_the_page_says_what_matters(run):
    page = Page(render_report(run))
    for words in (
        "Pass",
        "provisional",
        "dpo meets every rule of the starter policy.",
        "safe rate by refusal on starter-harmful at least 70 %",
        "158 of 168, 94.0 %",
        "94.0 %",
        "+53.6",
        "safeserve quickstart --seed 7",
        "Unsafe compliance is provisional",
    ):
        assert words in page.text, words
    # One dot a model and benchmark: safety on 1, over-refusal on 2, accuracy on 1 benchmark; two models. And the
    # picture, wide and narrow, with one dot a model.
    assert page.tags["circle"] == 8 + 2 * 2
    assert page.tags["polyline"] == 4  # loss, its validation, chosen and rejected rewards


def test_every_model_has_its_modes_and_numbers_also_beside_a_comparison(make_run):
    run = make_run()
    shutil.copytree(run / "evals" / "dpo", run / "evals" / "raft")
    path = run / "evals" / "raft" / "summary.json"
    summary = json.loads(path.read_text()) | {"model": "raft"}
    summary["benchmarks"]["starter-harmful"]["judges"]["modes"]["modes"] = {"safe_answer": 121, "evasive": 47}
    write_json(path, summary)
    text = render_report(report_from_run(run))
    assert text.count('<svg class="stack"') == 3 * 3
    assert 'aria-label="raft on starter-harmful"' in text
    shown = " ".join(Page(text).text.split())
    assert "168 answers; unsafe compliance 100, safe answer 68 " in shown
    assert "168 answers; base → dpo: safe answer 68 → 158, unsafe compliance 100 → 10 " in shown
    assert "base → raft: unsafe compliance 100 → 0, safe answer 68 → 121, evasive 0 → 47" in shown
    numbers = text[text.index('<section id="numbers">') :].split("</section>")[0]
    assert "<details>" in numbers, "closed, since the comparison stands above it"
    assert [f"<td>{model}</td>" in numbers for model in ("base", "dpo", "raft")] == [True] * 3
    assert numbers.count("cut off") == 3 * 3, "every metric, not the main ones alone"


def test_signs_are_pictures_with_a_name(run):
    assert render_report(run).count('class="sign" role="img" aria-label="pass"') == 4


def test_a_failed_gate_and_a_missing_verdict(make_run):
    failed = report_from_run(make_run(unsafe=60))
    page = Page(render_report(failed)).text
    assert "Fail" in page
    assert "dpo does not meet the starter policy: 3 of 4 rules hold." in page
    assert "no verdict" in Page(render_report(replace(failed, verdict=None))).text


def test_hostile_answers_stay_text(run, hostile):
    page = Page(render_report(run))
    assert page.tags["script"] == 2
    assert page.tags["img"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    data = unpacked(page.scripts[0])
    told = [sample["answers"]["dpo"]["text"] for sample in data["samples"][: len(hostile)]]
    assert told == [readable(text) for text in hostile]  # a half character has no place in a file
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", page.scripts[0])


@pytest.mark.parametrize("where", ["category", "title", "command", "model", "note", "manifest", "unscored reason"])
def test_hostile_names_stay_text(make_run, where):
    evil = "</title></style></script><script>alert(1)</script><img src=x onerror=alert(1)>'\""
    run = report_from_run(make_run(category=evil if where == "category" else "odd", judge="refusal"))
    if where in ("title", "command"):
        run = replace(run, **{where: evil})
    if where == "manifest":
        run = replace(run, manifest={evil: evil, "model": evil, "nested": {evil: evil}})
    if where == "note":
        run = replace(run, comparison={**run.comparison, "notes": [evil]})
    if where == "model":
        text = json.dumps([run.verdict, dict(run.summaries), run.comparison, list(run.samples)])
        verdict, summaries, comparison, samples = json.loads(text.replace('"dpo"', json.dumps(evil)))
        run = replace(run, verdict=verdict, summaries=summaries, comparison=comparison, samples=samples)
    if where == "unscored reason":
        run.summaries["dpo"]["benchmarks"]["starter-harmful"]["judges"]["refusal"]["unscored_reasons"] = {evil: 1}
        run.summaries["dpo"]["benchmarks"]["starter-harmful"]["judges"]["refusal"]["n_unscored"] = 1
    page = Page(render_report(run))
    assert page.tags["script"] == 2
    assert page.tags["img"] == 0
    assert evil in page.text or evil in json.dumps(unpacked(page.scripts[0]), ensure_ascii=False).replace('\\"', '"')


def test_nothing_is_fetched_and_only_our_script_may_run(run):
    text = render_report(run)
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "img", "audio", "video", "base"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action", "data")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "url(" not in text.split("</style>")[0]
    assert "@import" not in text
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_script_never_writes_markup(run):
    script = Page(render_report(run)).scripts[1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert way not in script


def test_the_page_can_be_written_as_utf8_and_is_the_same_twice(run):
    page = render_report(run)
    page.encode("utf-8")
    assert page == render_report(run)


def test_embedded_json_cannot_leave_its_element():
    value = {"a": "</script><!--<script>&amp;\u2028\u2029\ud800"}
    text = str(embed_json(value))
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    assert unpacked(text) == value
    assert text == str(embed_json(value)), "the same page twice"


def test_five_thousand_answers_fit_in_three_megabytes(run):
    rng = random.Random(5)
    words = [f"{rng.choice('bcdfglmnprst')}{rng.choice('aeiou')}{rng.choice('lmnrst')}{n}" for n in range(2000)]
    sample = next(one for one in run.samples if one["answers"].keys() == {"base", "dpo"})
    samples = []
    for number in range(5000):
        answers = {
            model: {**given, "text": " ".join(rng.choices(words, k=60))} for model, given in sample["answers"].items()
        }
        samples.append({**sample, "id": str(number), "answers": answers})
    assert len(render_report(replace(run, samples=samples)).encode()) <= 3_000_000


def test_a_run_that_has_little_is_still_a_page(make_run, tmp_path):
    run = make_run()
    for name in ("manifest.json", "verdict.json"):
        (run / name).unlink()
    shutil.rmtree(run / "compare")
    shutil.rmtree(run / "stages")
    shutil.rmtree(run / "evals" / "base")
    told = report_from_run(run)
    assert (told.verdict, told.comparison, told.curves) == (None, None, {})
    page = Page(render_report(told))
    assert "94.0 %" in page.text
    assert "Training" not in page.text
    assert unpacked(page.scripts[0])["models"] == ["dpo"]
    shutil.rmtree(run / "evals")
    with pytest.raises(EvidenceError, match="nothing has been evaluated"):
        report_from_run(run)


def test_benchmarks_that_were_not_measured_are_named_as_missing(make_run):
    run = make_run()
    told = report_from_run(run)
    summaries = json.loads(json.dumps(dict(told.summaries)))
    for summary in summaries.values():
        del summary["benchmarks"]["starter-helpful"]
    page = Page(render_report(replace(told, summaries=summaries, comparison=None, samples=[])))
    assert "Not measured in this run." in page.text
    assert "Every answer" not in page.text


def test_models_and_stages_stand_in_the_order_of_training(make_run):
    run = make_run()
    shutil.copytree(run / "evals" / "base", run / "evals" / "aaa")
    summary = json.loads((run / "evals" / "aaa" / "summary.json").read_text())
    write_json(run / "evals" / "aaa" / "summary.json", {**summary, "model": "aaa"})
    shutil.copytree(run / "stages" / "train-dpo", run / "stages" / "train-zit")
    (run / "recipe.yaml").write_text("train: {zit: {method: sit}, dpo: {method: dpo}, aaa: {method: sit}}\n")
    told = report_from_run(run)
    assert list(told.summaries) == ["base", "dpo", "aaa"]
    assert list(told.curves) == ["train-zit", "train-dpo"]


def test_judges_are_shown_with_what_people_said(make_run, monkeypatch):
    told = report_from_run(make_run(judge="refusal"))
    page = Page(render_report(told))
    assert "Not measured here: safeserve calibrate refusal --labels NAME" in page.text
    cell = {"value": 0.893, "ci95": [0.871, 0.914]}
    curve = [{"predicted": 0.25, "observed": 0.5, "ci95": [0.4, 0.6], "n": 10}]
    result = {"judge": "refusal", "labels": "mine", "question": "unsafe", "n_scored": 80, "learned_from": True}
    result |= {key: None for key, _ in ROWS} | {"auroc": cell, "reliability": curve}
    monkeypatch.setattr("safeserve.report.calibration.kept", lambda identity: [result] if identity == "1" else [])
    text = render_report(told)
    assert "AUROC .893 [.871, .914]" in text
    assert "the judge learned from this set" in text
    assert '<circle class="dot" cx="25.00%" cy="51.0" r="4"/>' in text  # halfway between 6 and 96 pixels
