"""Model cards: what the hub's own library reads from them, and what they must not hide."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json, write_json, write_text
from safeserve.report.card_training import effective, opening
from safeserve.report.model_card import model_card, write_cards
from safeserve.training.options import DpoOptions, SitOptions

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
    assert "| dpo | dpo | sit | pairs starter/pairs |" in text
    assert "| starter/sit | 7 |" in text, "the data of every stage that the model went through"
    assert "2 too \\| long" in text
    assert "read the safe rate and the over-refusal rate together" in text
    assert f"`safeserve run {run}/recipe.yaml --out {run}-again`" in text
    assert "<script>" not in text


def test_options_are_told_whichever_way_they_came(run: Path) -> None:
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", model_card(run, "dpo"), re.MULTILINE))
    assert rows["option"] == "sit | dpo"
    assert rows["epochs"] == "2 | 1", "one set by the recipe, one by default"
    assert rows["learning rate"] == f"{SitOptions().learning_rate:g} | {DpoOptions().learning_rate:g}"
    assert rows["batch size"] == f"{SitOptions().batch_size} | {DpoOptions().batch_size}"
    assert (rows["lora rank"], rows["lora alpha"]) == ("16 | 16", "32 | 32")
    assert rows["beta"] == "– | 0.2", "SIT has none"
    assert rows["sample temperature"] == "– | 0.8", "the pairs are built from samples"
    assert rows["seed"] == "7 | 7", "the run's"


def test_options_of_one_way_to_learn_in_rounds() -> None:
    stage = {"method": "raft", "reward": "rouge_l", "harmful": "a", "benign": "b", "full": True, "save": "merged"}
    told = effective("raft", stage)
    assert (told["reward"], told["iterations"], told["learning_rate"]) == ("rouge_l", 5, 2e-4)
    assert told["full"] is True
    assert not {"beta", "tau", "lora_rank", "guard", "harmful"} & set(told), (
        "update: sit, no guard, no adapter, no data"
    )
    assert effective("raft", {**stage, "update": "dpo", "guard": "guard", "beta": 0.3})["beta"] == 0.3


MIXED = {"method": "sit", "helpful": "alpaca", "n_helpful": 20, "safety": "s", "dose": 5}
ROUNDS = {"method": "raft", "reward": "rouge_l"}


@pytest.mark.parametrize(
    ("stage", "says", "about_safety"),
    [
        (MIXED, "on 20 helpful answers (alpaca) and 5 safe answers to harmful prompts (s).", True),
        ({**MIXED, "dose": 0}, "20 helpful answers (alpaca) and no safe answers to harmful prompts.", False),
        ({"method": "sit", "safety": "s"}, "on all safe answers to harmful prompts (s).", True),
        ({"method": "dpo", "pairs": "starter/pairs"}, "pairs built from the start model's own samples", True),
        ({"method": "dpo", "pairs": "mine.jsonl", "n_pairs": 9}, "9 pairs of mine.jsonl", True),
        ({"method": "dpo", "pairs": "pku", "pairs_share": 0.0625}, "training on 6.25 % of the pairs of pku.", True),
        ({"method": "dpo", "pairs": "raft:r"}, "the best and worst samples of r", True),
        ({**ROUNDS, "rule": "constrained", "guard": "guard"}, "(rule constrained, scored by rouge_l and guard)", True),
        ({**ROUNDS, "harmful_share": 0}, "its own picked samples (rule top1, scored by rouge_l)", False),
    ],
)
def test_the_opening_says_what_was_done_and_no_more(stage: dict[str, object], says: str, about_safety: bool) -> None:
    text = opening("base", ["one"], {"one": stage}).replace("\\", "")
    assert says in text
    assert ("None of its training was about safety" in text) == (not about_safety)
    assert "Trained to decline" not in text


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
