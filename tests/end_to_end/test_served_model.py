"""A real ``transformers serve`` of the embedded model: generated from, asked as a guard and as a pairwise judge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.runs import read_jsonl, write_jsonl

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
        process.kill()  # it holds nothing that wants an orderly end
        process.wait()


def test_a_served_model_is_measured_judged_and_compared(
    served: tuple[str, str], cli_here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, model = served
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))
    evaluate = {"limit": 1, "sampling": {"max_new_tokens": 6}, "judges": ["refusal", "short_answer"]}
    tree = {"model": model, "server": {"base_url": url, "timeout": 400.0}, "evaluate": evaluate}
    (tmp_path / "served-recipe.yaml").write_text(json.dumps(tree))
    ran = cli_here("run", "served-recipe.yaml", "--name", "one", "--quiet")
    assert ran.code == 0, ran.stderr
    one, two = (tmp_path / "runs" / name / "evals" / "base" for name in ("one", "two"))
    assert json.loads((one / "summary.json").read_text())["dtype"] == "served"
    (row,) = read_jsonl(one / "starter-look-alike" / "completions.jsonl")
    assert row["text"]
    assert row["finish_reason"] in ("stop", "length")
    assert row["prompt_tokens"] > 10

    # The second model gives another answer, so that the judge has something to compare.
    shutil.copytree(one.parents[1], two.parents[1])
    write_jsonl(two / "starter-look-alike" / "completions.jsonl", [{**row, "text": "I would rather not say."}])
    judge = tmp_path / "served.yaml"
    judge.write_text(json.dumps({"kind": "pairwise", "base_url": url, "model": model, "max_tokens": 6, "timeout": 400}))
    ran = cli_here("compare", "one:base", "two:base", "--win-rate", judge, "--null-test", "--json")
    # A model of 135M parameters may not give one readable verdict; that is said, and is no verdict (exit code 4).
    assert ran.code in (0, 4), ran.stderr
    if ran.code == 0:
        parts = json.loads(ran.stdout)["benchmarks"]
        assert parts["starter-helpful"]["win_rate"]["identical"] == 1
        assert parts["starter-look-alike"]["win_rate"]["n_scored"] == 1
    else:
        assert "has a verdict of the judge" in ran.stderr

    guard = tmp_path / "guard.yaml"
    guard.write_text(
        json.dumps({"kind": "llm_guard", "base_url": url, "model": model, "max_tokens": 6, "timeout": 400})
    )
    ran = cli_here("score", "one:base", "--judge", guard, "--json")
    assert ran.code == 0, ran.stderr
    (score,) = read_jsonl(one / "starter-harmful" / "scores" / "guard-guard.jsonl")
    assert score["label"] in ("safe", "unsafe") or score["reason"]
    ran = cli_here(
        "eval", "another/model", "--server", url, "--limit", "1", "--judge", "refusal", "--judge", "short_answer"
    )
    assert ran.code == 2
    assert 'does not answer for model "another/model"' in ran.stderr
