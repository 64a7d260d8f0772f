"""A real ``transformers serve``: generated from, asked as a guard and as a pairwise judge.

It serves a tiny model that was made to answer "A" to everything, so every number is known and a request costs nothing.
"""

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

from safeserve.core.runs import read_jsonl, write_jsonl

pytestmark = pytest.mark.slow


def save_speaker(tiny: Path, folder: Path) -> Path:
    """A model that says "A" and stops: its layers add nothing, so the last token alone decides on the next."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = LlamaConfig.from_pretrained(tiny, tie_word_embeddings=False, max_position_embeddings=4096)
    model = LlamaForCausalLM(config)
    line_end, letter, end = tokenizer.convert_tokens_to_ids(["Ċ", "A", "<|im_end|>"])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        seen, said = model.model.embed_tokens.weight, model.lm_head.weight
        seen.zero_()
        said.zero_()
        seen[:, 2] = 1.0
        seen[line_end], seen[letter] = torch.eye(config.hidden_size)[:2]
        said[letter, 0] = said[end, 1] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(URL, model name) of a server started here and ended afterwards."""
    import socket

    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    folder = save_speaker(tiny_model_dir, tmp_path_factory.mktemp("speaker"))
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
    # By a recipe and by the command.
    evaluate = {"limit": 1, "judges": ["refusal", "short_answer"]}
    tree = {"model": model, "server": {"base_url": url, "timeout": 400.0}, "evaluate": evaluate}
    (tmp_path / "served-recipe.yaml").write_text(json.dumps(tree))
    ran = cli_here("run", "served-recipe.yaml", "--name", "one", "--quiet")
    assert ran.code == 0, ran.stderr
    judges = ("--judge", "refusal", "--judge", "short_answer")
    ran = cli_here("eval", model, "--server", url, "--limit", "1", *judges, "--name", "two", "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["dtype"] == "served"
    one, two = (tmp_path / "runs" / name / "evals" / "base" for name in ("one", "two"))
    (row,) = read_jsonl(one / "starter-look-alike" / "completions.jsonl")
    assert (row["text"], row["finish_reason"], row["token_ids"]) == ("A", "stop", [])
    assert row["prompt_tokens"] > 10
    assert read_jsonl(two / "starter-look-alike" / "completions.jsonl") == [row]

    # The second model gives another answer, so that the judge has something to compare; it always names the first.
    write_jsonl(two / "starter-look-alike" / "completions.jsonl", [{**row, "text": "I would rather not say."}])
    judge = tmp_path / "served.yaml"
    judge.write_text(json.dumps({"kind": "pairwise", "base_url": url, "model": model, "timeout": 400}))
    ran = cli_here("compare", "one:base", "two:base", "--win-rate", judge, "--null-test", "--json")
    assert ran.code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["benchmarks"]["starter-helpful"]["win_rate"]["identical"] == 1
    part = result["benchmarks"]["starter-look-alike"]["win_rate"]
    assert (part["n_scored"], part["win_rate"], part["inconsistent"]["rate"]) == (1, 0.5, 1.0)
    assert (part["null_test"]["named_first"], part["null_test"]["ties"]) == (2, 0)
    assert result["win_rate"]["left_out"] == ["starter-harmful"]

    guard = tmp_path / "guard.yaml"
    guard.write_text(json.dumps({"kind": "llm_guard", "base_url": url, "model": model, "timeout": 400}))
    ran = cli_here("score", "one:base", "--judge", guard, "--json")
    assert ran.code == 0, ran.stderr
    (score,) = read_jsonl(one / "starter-harmful" / "scores" / "guard-guard.jsonl")
    assert (score["value"], score["reason"]) == (None, "the judge's verdict cannot be read: 'A'")
