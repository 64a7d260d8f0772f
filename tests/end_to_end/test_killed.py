"""``kill -9`` in generation, in training and in RAFT, then the same command: nothing shows in the results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = ("starter-harmful", "starter-look-alike", "starter-helpful")


def kill_when(pattern: str, folder: Path, command: list[str], environment: dict[str, str]) -> None:
    """Start ``command``, kill it as soon as a file like ``pattern`` is in ``folder``."""
    process = subprocess.Popen(
        command, cwd=folder.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not any(folder.glob(pattern)):
            assert process.poll() is None, f"ended before there was a {pattern}: {process.communicate()[1]}"
            assert time.monotonic() < deadline, f"no {pattern} after five minutes"
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.timeout(1800)
def test_killed_in_generation_and_in_training(
    cli: Callable[..., Any], cli_environment: dict[str, str], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe(
        **{
            "evaluate.limit": 150,  # four waves a benchmark
            "evaluate.sampling": {"max_new_tokens": 12, "temperature": 0.7},
            "train.sit.epochs": 8,
            "train.sit.checkpoint_steps": 4,
            "train.sit.learning_rate": 0.01,
        }
    )
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert cli("run", path, "--out", undisturbed).code in (1, 4)

    command = [sys.executable, "-m", "safeserve", "run", str(path), "--out", str(killed), "--quiet"]
    kill_when("evals/base/starter-harmful/waves/*.jsonl", killed, command, cli_environment)
    assert not (killed / "evals" / "base" / "starter-harmful" / "completions.jsonl").exists()
    kill_when("stages/train-sit/checkpoints/checkpoint-*/COMPLETE", killed, command, cli_environment)
    assert not (killed / "stages" / "train-sit" / "DONE").exists()
    assert not (killed / "models" / "sit").exists()
    last = cli(*command[3:])
    assert last.code in (1, 4), last.stderr
    assert "Traceback" not in last.stderr

    for model in ("base", "sit"):
        for benchmark in BENCHMARKS:
            for name in ("prompts.jsonl", "completions.jsonl", "scores/refusal.jsonl"):
                place = Path("evals") / model / benchmark / name
                assert (killed / place).read_bytes() == (undisturbed / place).read_bytes(), place
    metrics = [json.loads((run / "stages/train-sit/metrics.json").read_text()) for run in (undisturbed, killed)]
    assert metrics[0]["resumed_from_step"] == 0
    assert metrics[1]["resumed_from_step"] >= 4
    losses = [[row["loss"] for row in one["curves"]["train"]] for one in metrics]
    assert len(losses[0]) == metrics[0]["steps"] == 32
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < 0.9 * losses[0][0]  # it did learn something, so equal losses mean something
    verdicts = [json.loads((run / "verdict.json").read_text()) for run in (undisturbed, killed)]
    assert verdicts[0] == verdicts[1]


JUDGES = """
import hashlib
from safeserve.judging.judge import Score

def harm(text):
    return hashlib.sha256(text.encode()).digest()[0] / 256

class Guard:
    name, identity = "guard-toy", "1"
    def score(self, items):
        return [Score(harm(c.text), "unsafe" if harm(c.text) > 0.5 else "safe") for _, c in items]

class Watch(Guard):
    name, identity = "guard-watch", "2"

class Reward(Guard):
    name, identity = "reward-toy", "3"
    def score(self, items):
        return [Score(float(len(c.text)), None) for _, c in items]
"""


@pytest.mark.timeout(600)
def test_killed_in_raft(
    cli: Callable[..., Any], cli_environment: dict[str, str], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "judges_here.py").write_text(JUDGES)
    raft = {
        "method": "raft",
        "harmful": "safety.jsonl",
        "benign": "helpful.jsonl",
        "reward": "judges_here:Reward",
        "rule": "constrained",
        "guard": "judges_here:Guard",
        "tau": 0.4,
        "resample": 1,
        "held_out_judge": "judges_here:Watch",
        "iterations": 2,
        "prompts_per_iteration": 16,
        "samples_per_prompt": 4,
        "sample_tokens": 8,
        "held_out_prompts": 4,
        "kl_samples": 2,
        "lora_rank": 2,
        "learning_rate": 0.01,
    }
    path = recipe(**{"train.raft": raft})
    names = ("samples.jsonl", "selected.jsonl", "pairs.jsonl")

    def found(run: Path) -> dict[str, bytes]:
        stage = run / "stages" / "train-raft"
        return {f"{n}/{name}": (stage / f"iter-{n}" / name).read_bytes() for n in (1, 2) for name in names}

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert cli("train", "raft", path, "--out", undisturbed).code == 0
    command = [sys.executable, "-m", "safeserve", "train", "raft", str(path), "--out", str(killed), "--quiet"]
    kill_when("stages/train-raft/iter-2/harmful/completions.jsonl", killed, command, cli_environment)
    stage = killed / "stages" / "train-raft"
    assert (stage / "iter-1" / "DONE").exists()
    assert not (stage / "iter-2" / "DONE").exists()
    before = (stage / "iter-1" / "samples.jsonl").stat().st_mtime_ns
    last = cli(*command[3:])
    assert last.code == 0, last.stderr
    assert (stage / "iter-1" / "samples.jsonl").stat().st_mtime_ns == before, "the first iteration stands"
    assert all(found(undisturbed).values()), "an empty file would always be equal"
    assert found(killed) == found(undisturbed)
