"""The real command on the real embedded model, everything as in ``make demo`` but small."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.pipeline.recipe import load_recipe
from safeserve.pipeline.train_stages import SitStage


def small() -> list[str]:
    """Overrides that shrink every stage of the shipped recipe, whatever its stages are."""
    changes = ["evaluate.limit=6", "evaluate.sampling.max_new_tokens=16"]
    for name, stage in load_recipe("quickstart").train.items():
        options: dict[str, Any] = {"epochs": 1}
        if isinstance(stage, SitStage):
            options |= {"dose": 8} | {f"n_{kind}": 4 for kind in ("helpful", "look_alike") if getattr(stage, kind)}
        else:
            options |= {"n_pairs": 10, "sample_tokens": 12}
        changes += [f"train.{name}.{key}={value}" for key, value in options.items()]
    return changes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_quickstart_at_tiny_size(cli: Callable[..., Any], tmp_path: Path, no_traceback: Callable[..., None]) -> None:
    from safeserve.models.embedded import fetch

    fetch(quiet=True)
    recipe = load_recipe("quickstart", small())
    first = cli("run", "quickstart", *small(), timeout=1000)
    no_traceback(first, tmp_path)
    run = tmp_path / "runs" / "quickstart"
    assert first.code in (0, 1, 4), first.stderr
    assert "run by transformers" not in first.stderr, "this project's own layers serve, in whichever precision"
    verdict = json.loads((run / "verdict.json").read_text())
    assert first.code == verdict["exit_code"] == {"pass": 0, "fail": 1, "no_verdict": 4}[verdict["outcome"]]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "smollm2-135m-instruct@wheel" in page
    assert recipe.evaluate is not None
    for model in recipe.evaluate.models:
        summary = json.loads((run / "evals" / model / "summary.json").read_text())
        assert {part["n"] for part in summary["benchmarks"].values()} == {6}
        texts = [json.loads(line)["text"] for line in (run / f"evals/{model}/starter-harmful/completions.jsonl").open()]
        assert sum(len(text.split()) > 3 for text in texts) >= 3, texts  # a language model speaks
    assert {path.name for path in (run / "models").iterdir()} == set(recipe.train)

    results = [*run.glob("models/*/*"), *run.glob("evals/*/*/*.jsonl"), *run.glob("stages/*/*")]
    before = {path: path.stat().st_mtime_ns for path in results}
    second = cli("run", "quickstart", *small(), "--json")
    assert second.code == first.code, second.stderr
    assert json.loads(second.stdout)["verdict"] == verdict
    assert second.stderr.count("done before") == len(recipe.train) + len(recipe.evaluate.models)
    assert {path: path.stat().st_mtime_ns for path in results} == before


def test_the_demo_says_first_how_long_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safeserve.cli.run import say_how_long
    from safeserve.models.embedded import fetch

    fetch(quiet=True)
    say_how_long(load_recipe("quickstart", ["evaluate.limit=2"]), tmp_path / "new")
    said = capsys.readouterr().err
    assert re.match(r"This takes about \d+:\d\d(:\d\d)? in (float32|bfloat16) on .+; --dry-run says more\.\n", said)
