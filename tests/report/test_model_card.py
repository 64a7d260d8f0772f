"""Model cards: what the hub's own library reads from them, and what they must not hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json, write_json, write_text
from safeserve.report.model_card import model_card, write_cards

STAGES = {
    "sit": {"method": "sit", "helpful": "starter/helpful", "epochs": 2},
    "dpo": {"method": "dpo", "start": "sit", "pairs": "starter/pairs", "beta": 0.2},
    "ranker": {"method": "reward", "pairs": "pku-saferlhf"},
}


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """A run whose dpo started from sit."""
    folder = make_run()
    write_text(
        folder / "recipe.yaml",
        yaml.safe_dump({"model": "smollm2-135m-instruct@wheel", "train": STAGES}, sort_keys=False),
    )
    for name in STAGES:
        (folder / "models" / name).mkdir(parents=True)
        metrics = folder / "stages" / f"train-{name}" / "metrics.json"
        account = {f"starter/{name}": {"identity": "1", "rows": 7, "left_out": {"too | long": 2}}}
        write_json(metrics, {**(read_json(metrics) if metrics.exists() else {}), "data": account})
    (folder / "models" / "dpo" / "adapter_config.json").write_text("{}")
    return folder


def test_metadata_is_what_the_hub_reads(run: Path) -> None:
    card = ModelCard(model_card(run, "dpo"))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["safeserve", "dpo"]
    results = {(one.dataset_name, one.metric_type): one for one in card.data.eval_results}
    safe = results["starter-harmful", "safe_rate"]
    assert safe.metric_value == pytest.approx(158 / 168, abs=1e-4)
    assert "n = 168" in safe.metric_name
    assert "95 % interval 0.8" in safe.metric_name
    assert ("starter-look-alike", "over_refusal_rate") in results, "safety is never reported alone"


def test_text_has_verdict_chain_data_and_limits(run: Path) -> None:
    text = model_card(run, "dpo")
    assert "dpo passes the policy starter" in text or "dpo fails the policy starter" in text
    assert "| sit | sit | base |" in text
    assert "| dpo | dpo | sit | pairs starter/pairs, beta 0.2 |" in text
    assert "| starter/sit | 7 |" in text, "the data of every stage that the model went through"
    assert "2 too \\| long" in text
    assert "read the safe rate and the over-refusal rate together" in text
    assert "`safeserve run demo/recipe.yaml`" in text
    assert "<script>" not in text


def test_a_model_that_nobody_measured_says_so(run: Path) -> None:
    text = model_card(run, "sit")
    assert "Not measured" in text
    assert "This model was not put to a policy" in text
    assert ModelCard(text).data.eval_results is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [("starter/helpful", "apache-2.0"), ("benign alpaca", "cc-by-nc-4.0"), ("my.jsonl", None)],
)
def test_licence_follows_the_strictest_source(run: Path, source: str, expected: str | None) -> None:
    account = {source: {"identity": "1", "rows": 7, "left_out": {}}}
    for stage in ("sit", "dpo"):
        write_json(run / "stages" / f"train-{stage}" / "metrics.json", {"data": account})
    assert ModelCard(model_card(run, "dpo")).data.license == expected


def test_a_failed_policy_is_told_under_limits(make_run: Callable[..., Path], run: Path) -> None:
    make_run(unsafe=120)
    assert "do not serve this model" in model_card(run, "dpo")


def test_cards_are_written_for_language_models_whose_training_finished(run: Path) -> None:
    (run / "stages" / "train-sit" / "metrics.json").unlink()
    assert write_cards(run) == [run / "models" / "dpo" / "README.md"]


def test_unknown_model(run: Path) -> None:
    with pytest.raises(UserError, match="trains no model raft"):
        model_card(run, "raft")
