"""A small recipe file on the tiny model, and processes to kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """``recipe(seed=3, **{"train.sit.dose": 8})`` writes ``own.yaml`` into ``tmp_path`` and returns its path.

    SIT on rows of its own and a few starter prompts; changes are dotted keys.
    """

    def write(**changes: Any) -> Path:
        for kind in ("helpful", "safety"):
            rows = [
                {"prompt": f"{kind} number {n}: zebra {n * 7}, yak {n * 3}", "response": f"{kind} {n}.", "kind": kind}
                for n in range(40)
            ]
            (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sit = {"method": "sit", "helpful": "helpful.jsonl", "n_helpful": 8, "safety": "safety.jsonl", "dose": 8}
        tree: dict[str, Any] = {
            "model": str(tiny_model_dir),
            "dtype": "float32",
            "train": {"sit": {**sit, "batch_size": 4, "lora_rank": 2}},
            "evaluate": {
                "models": ["base", "sit"],
                "limit": 3,
                "judges": ["refusal", "short_answer"],  # the guard would need the embedded model
                "sampling": {"max_new_tokens": 4},
            },
            "gate": {"candidate": "sit", "against": "base", "policy": "starter"},
        }
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node[parent]
            node[last] = value
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def no_traceback() -> Callable[[Any, Path], None]:
    """Check that a command ended in a message: no traceback, no note of an unexpected error."""

    def check(ran: Any, folder: Path) -> None:
        assert "Traceback" not in ran.stderr
        assert "Traceback" not in ran.stdout
        assert not (folder / "safeserve-error.log").exists(), (folder / "safeserve-error.log").read_text()

    return check
