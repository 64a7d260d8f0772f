"""The runs in a browser: what the list shows, what a request may name, and text that stays text."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import read_json, write_json, write_text
from safeserve.report.view import index_page, respond, runs_in, serve


@pytest.fixture
def runs(make_run: Callable[..., Path]) -> Path:
    """A folder with one run of base and dpo."""
    return make_run().parent


def test_the_list_has_both_sides_of_every_model(runs: Path) -> None:
    (run,) = runs_in(runs)
    assert (run.name, run.outcome, run.candidate) == ("demo", "pass", "dpo")
    assert dict(run.models)["dpo"] == (
        ("94.0 %", "starter-harmful, by modes"),
        ("7.1 %", "starter-look-alike, by modes"),
        ("100.0 %", "starter-helpful, by short_answer"),
    )
    page = index_page(runs)
    assert '94.0 %<br><span class="hint">starter-harmful, by modes</span>' in page
    assert 'href="/run/demo"' in page
    assert "<option selected>demo:base</option>" in page
    assert "<option selected>demo:dpo</option>" in page


def test_rates_of_other_prompts_or_another_judge_are_told_apart(runs: Path, make_run: Callable[..., Path]) -> None:
    """Two runs in one column: the same number would mean two things."""
    (runs / "demo").rename(runs / "first")
    make_run(judge="refusal")
    path = runs / "demo" / "evals" / "dpo" / "summary.json"
    summary = read_json(path)
    parts = {"XSTest-safe" if name == "starter-look-alike" else name: p for name, p in summary["benchmarks"].items()}
    write_json(path, {**summary, "benchmarks": parts})
    rates = {run.name: dict(run.models)["dpo"] for run in runs_in(runs)}
    assert [rate.value for rate in rates["demo"]] == [rate.value for rate in rates["first"]]
    assert rates["demo"][0].source == "starter-harmful, by refusal"
    assert rates["demo"][1].source == "XSTest-safe, by refusal"
    assert rates["first"][1].source == "starter-look-alike, by modes"


def test_one_page_does_not_read_the_other_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_everything(folder: Path) -> None:
        raise AssertionError("the whole folder was read")

    monkeypatch.setattr("safeserve.report.view.runs_in", reads_everything)
    assert respond(runs, "/run/demo")[0] == HTTPStatus.OK
    assert respond(runs, "/compare?a=demo:base&b=demo:dpo")[0] == HTTPStatus.OK


def test_pages_of_runs_and_of_any_two_models(runs: Path) -> None:
    status, page = respond(runs, "/run/demo")
    assert status == HTTPStatus.OK
    assert "<h1>Pass" in page
    status, page = respond(runs, "/compare?a=demo%3Abase&b=demo%3Adpo")
    assert status == HTTPStatus.OK
    assert "What changed" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/run/..%2F..%2Fetc", HTTPStatus.BAD_REQUEST),
        ("/run/<script>alert(1)<%2Fscript>", HTTPStatus.BAD_REQUEST),
        ("/compare?a=demo:base&b=..%2Fx:dpo", HTTPStatus.BAD_REQUEST),
        ("/compare", HTTPStatus.BAD_REQUEST),
        ("/compare?a=demo:base&b=demo:base", HTTPStatus.OK),
        ("/elsewhere", HTTPStatus.NOT_FOUND),
    ],
)
def test_what_is_not_in_the_list_is_not_served(runs: Path, target: str, status: HTTPStatus) -> None:
    found, page = respond(runs, target)
    assert found == status
    assert "<script>alert" not in page


def test_a_broken_run_stays_in_the_list(runs: Path) -> None:
    write_text(runs / "demo" / "verdict.json", "{")
    (run,) = runs_in(runs)
    assert run.outcome == ""
    assert respond(runs, "/run/demo")[0] == HTTPStatus.BAD_REQUEST


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "No run here" in index_page(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        serve(tmp_path / "none", 0, print)


@pytest.fixture
def address(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's address while the test runs."""
    servers, there = [], threading.Event()
    found: list[str] = []
    real = __import__("http.server", fromlist=["x"]).ThreadingHTTPServer.serve_forever
    monkeypatch.setattr(
        "safeserve.report.view.ThreadingHTTPServer.serve_forever", lambda self: (servers.append(self), real(self))
    )
    ready = lambda text: (found.append(text), there.set())  # noqa: E731
    thread = threading.Thread(target=serve, args=(runs, 0, ready), daemon=True)
    thread.start()
    assert there.wait(10)
    yield found[0]
    servers[0].shutdown()
    thread.join(10)


def test_it_is_served_here_and_to_nobody_elses_page(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        assert b"demo" in answer.read()
        assert answer.headers["Cache-Control"] == "no-store"
    request = urllib.request.Request(address, headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(address, data=b"x"))


def test_a_port_that_is_taken(address: str, runs: Path) -> None:
    with pytest.raises(EnvironmentFault, match="Choose another with --port"):
        serve(runs, int(address.rsplit(":", 1)[1].strip("/")), print)
