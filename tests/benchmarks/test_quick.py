"""The benchmarks function: trials on a tiny random model, without any data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY

from safeserve.core.runs import read_json


def quick(module: str, out: Path, *arguments: str) -> None:
    """Run ``python -m benchmarks.MODULE --quick`` once a side and without public data."""
    own = {"OMP_NUM_THREADS": "1", "SAFESERVE_SHARED": str(out.parent / "none")}
    command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--repeats", "1", "--out", str(out), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **own}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compared(result: dict[str, Any]) -> set[str]:
    """The peers of a result, after a look at its numbers."""
    assert result["arguments"]["quick"] is True
    assert all(side["rate"] > 0 for side in result["sides"].values())
    assert set(result["share_of_peak"]) == set(result["sides"])
    peers = set(result["ratios"])
    assert set(result["sides"]) == peers | {"safeserve"}
    return peers


def test_dpo(tmp_path: Path) -> None:
    quick("dpo", tmp_path / "x.json", "--skip-memory")
    result = read_json(tmp_path / "x.json")
    assert compared(result) == {"trl defaults", "trl tuned"}
    assert result["agreement"]["nats_per_token_apart"] < 1e-3


def test_generation(tmp_path: Path) -> None:
    quick("generation", tmp_path / "x.json", "--samples", "2")
    result = read_json(tmp_path / "x.json")
    assert compared(result) == {"generate", "continuous batching"}
    assert {one["answers"] for one in result["agreement"].values()} == {4}


def test_scoring(tmp_path: Path) -> None:
    quick("scoring", tmp_path / "x.json")
    for name in ("guard-k8", "guard", "reward-k8"):
        result = read_json(tmp_path / f"x-{name}.json")
        assert result["benchmark"] == f"scoring-{name}-float32"
        assert compared(result) == {"transformers, padded"}
        assert result["agreement"]["apart"] < 1e-4


def test_gpu_on_a_cpu(tmp_path: Path) -> None:
    quick("gpu", tmp_path / "x.json", "--device", "cpu", "--work", "dpo", "sit")
    result = read_json(tmp_path / "x-dpo-tiny.json")
    assert compared(result) == {"trl tuned"}
    assert result["agreement"]["nats_per_token_apart"] < 1e-3, "the loss of step 0 alone would show nothing"
    result = read_json(tmp_path / "x-sit-tiny.json")
    assert compared(result) == {"trl tuned"}
    assert all(run["own_layers"] for run in result["sides"]["safeserve"]["runs"])
