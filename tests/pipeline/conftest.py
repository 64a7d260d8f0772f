"""Small data files and a small recipe on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOUNS = [
    "apple",
    "bridge",
    "candle",
    "drum",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "lantern",
]
VERBS = ["polish", "repair", "paint", "weigh", "carry"]


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    """Demonstrations whose prompts are far from each other and from any evaluation prompt."""
    made = []
    for number in range(count):
        noun, verb = NOUNS[number % len(NOUNS)], VERBS[number // len(NOUNS) % len(VERBS)]
        made.append(
            {
                "id": f"{kind}-{number:03d}",
                "prompt": f"{kind}: {verb} the {noun} of {kind} {number}",
                "response": f"Take the {noun} and {verb} it.",
                "kind": kind,
                "category": f"c{number % 3}",
            }
        )
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of demonstrations, and of preference pairs."""
    folder = tmp_path_factory.mktemp("data")
    files = {kind: write(folder / f"{kind}.jsonl", rows(kind, 24)) for kind in ("helpful", "look_alike", "safety")}
    pairs = [
        {"id": row["id"], "prompt": row["prompt"], "chosen": row["response"], "rejected": "No idea at all."}
        for row in rows("pair", 12)
    ]
    files["pairs"] = write(folder / "pairs.jsonl", pairs)
    return files


@pytest.fixture
def tree(tiny_model_dir: Path, data: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """``tree()`` is a recipe as a mapping: SIT on the tiny model, evaluated on a few starter prompts."""

    def make(**sit: Any) -> dict[str, Any]:
        stage = {"method": "sit", "helpful": str(data["helpful"]), "n_helpful": 4, "safety": str(data["safety"])}
        options = {"dose": 4, "batch_size": 4, "lora_rank": 2}
        return {
            "model": str(tiny_model_dir),
            "dtype": "float32",
            "seed": 3,
            "train": {"sit": {**stage, **options, **sit}},
            "evaluate": {
                "models": ["base", "sit"],
                "limit": 2,
                "judges": ["refusal", "short_answer"],  # the guard would need the embedded model
                "sampling": {"max_new_tokens": 4},
            },
            "gate": {"candidate": "sit", "against": "base", "policy": "starter"},
        }

    return make
