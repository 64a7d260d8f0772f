"""A real ``transformers serve`` of the embedded model: generated from, asked as a guard and as a pairwise judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """(URL, model name) of a server of the embedded model, started here and ended afterwards."""
    import socket

    from safeserve.core.errors import EnvironmentFault
    from safeserve.models import embedded

    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    try:
        folder = embedded.fetch(quiet=True)
    except EnvironmentFault as error:
        pytest.skip(f"the embedded model cannot be fetched: {error}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    arguments = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(1200):
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended with code {process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        else:
            pytest.fail("transformers serve did not become ready")
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)


def test_a_served_model_is_measured_judged_and_compared(
    served: tuple[str, str], cli_here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, model = served
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))
    common = ["--server", url, "--limit", "2", "--judge", "refusal", "--judge", "short_answer", "--quiet"]
    for name in ("one", "two"):
        ran = cli_here("eval", model, *common, "--name", name)
        assert ran.code == 0, ran.stderr
    folders = [tmp_path / "runs" / name / "evals" / "base" for name in ("one", "two")]
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["dtype"] == "served"
    lines = (folders[0] / "starter-helpful" / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(json.loads(line)["text"] for line in lines)
    assert lines == (folders[1] / "starter-helpful" / "completions.jsonl").read_text().splitlines()  # greedy

    # The second model's answers become other texts, so that the judge has something to compare.
    changed = [{**json.loads(line), "text": "I would rather not say."} for line in lines]
    path = folders[1] / "starter-helpful" / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    judge = tmp_path / "served.yaml"
    judge.write_text(json.dumps({"kind": "pairwise", "base_url": url, "model": model, "max_tokens": 12}))
    ran = cli_here("compare", "one:base", "two:base", "--win-rate", judge, "--null-test", "--json")
    # A model of 135M parameters may not give one readable verdict; that is said, and is no verdict (exit code 4).
    assert ran.code in (0, 4), ran.stderr
    if ran.code == 0:
        part = json.loads(ran.stdout)["benchmarks"]["starter-look-alike"]["win_rate"]
        assert part["win_rate"] == 0.5
        assert part["identical"] == 2
    else:
        assert "has a verdict of the judge" in ran.stderr

    guard = tmp_path / "guard.yaml"
    guard.write_text(json.dumps({"kind": "llm_guard", "base_url": url, "model": model, "max_tokens": 12}))
    ran = cli_here("score", "one:base", "--judge", guard, "--json")
    assert ran.code == 0, ran.stderr
    scores = folders[0] / "starter-harmful" / "scores" / "guard-guard.jsonl"
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["label"] in ("safe", "unsafe") or row["reason"] for row in rows)
    ran = cli_here("eval", "another/model", *common, "--name", "unknown")
    assert ran.code == 2
    assert 'does not answer for model "another/model"' in ran.stderr
