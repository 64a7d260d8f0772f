"""Claim recall, on a tiny random BART with NLI labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from safeserve.core.errors import UserError
from safeserve.generation.llm_client import ClientOptions, LlmClient, Reply, Request
from safeserve.judging.claims import ClaimOptions, ClaimRecall, read_claims, sentence_claims

Make = Callable[..., Any]
NLI = ("contradiction", "neutral", "entailment")
REFERENCE = "Cats purr. Dogs bark.\nDo birds sing? Fish swim in the sea."


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Make) -> Path:
    from transformers import BartConfig, BartForSequenceClassification

    folder = tmp_path_factory.mktemp("bart")
    control = ("<s>", "<pad>", "</s>")
    named: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    named["model_input_names"] = ["input_ids", "attention_mask"]
    tokenizer = byte_tokenizer(folder, control, pair="<s> $A </s> </s> $B </s>", limit=128, **named)
    torch.manual_seed(1)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        id2label=dict(enumerate(NLI)),
        label2id={name: number for number, name in enumerate(NLI)},
        init_std=0.5,
    )
    BartForSequenceClassification(config).save_pretrained(folder)
    return folder


def judge(folder: Path, **options: Any) -> ClaimRecall:
    return ClaimRecall("claim_recall-x", ClaimOptions(model=str(folder), dtype="float32", **options))


def by_hand(own: ClaimRecall, answer: str, claims: Sequence[str]) -> list[float]:
    """P(entailment) of each claim, one at a time."""
    found = []
    for claim in claims:
        with torch.no_grad():
            logits = own.hub.model(**own.hub.tokenizer(answer, claim, return_tensors="pt")).logits[0]
        found.append(float(logits.softmax(-1)[NLI.index("entailment")]))
    return found


def test_the_share_of_entailed_sentences(bart: Path, item: Make) -> None:
    own = judge(bart)
    claims = ["Cats purr.", "Dogs bark.", "Fish swim in the sea."]
    expected = by_hand(own, "Cats purr and dogs bark.", claims)
    threshold = (sorted(expected)[0] + sorted(expected)[1]) / 2  # all but one
    own = judge(bart, threshold=threshold)
    (score,) = own.score([item("Q", "Cats purr and dogs bark.", REFERENCE)])
    assert score.value == pytest.approx(2 / 3)
    assert score.detail == {"claims": 3, "entailed": 2}
    assert score.evidence == claims[expected.index(min(expected))]
    (alone,) = judge(bart, threshold=threshold, batch_tokens=1).score(
        [item("Q", "Cats purr and dogs bark.", REFERENCE)]
    )
    assert alone == score


def test_what_cannot_be_scored(bart: Path, item: Make) -> None:
    rows = [item("Q", "A"), item("Q", "", "Cats purr."), item("Q", "A", "Why?"), item("Q", "A" * 200, "Cats purr.")]
    none, empty, no_claim, long = judge(bart).score(rows)
    assert none.reason == "the prompt has no reference answer"
    assert (empty.value, empty.evidence) == (0.0, "Cats purr.")
    assert no_claim.reason == "the reference makes no claim"
    assert "exceed the judge's 128" in long.reason


@pytest.mark.parametrize(
    ("labels", "right"),
    [
        (("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), 0),
        (("not_entailment", "entailment"), 1),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("entailment", "entails", "other"), None),
        (("entailment", "b", "c", "d"), None),
    ],
)
def test_the_label_is_read_from_the_config(bart: Path, labels: tuple[str, ...], right: int | None) -> None:
    own = judge(bart)
    own.hub.model.config.id2label = dict(enumerate(labels))
    if right is not None:
        assert own.entailment == right
        return
    with pytest.raises(UserError, match="one is called entailment"):
        _ = own.entailment


def test_claims_by_a_served_model(bart: Path, item: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def complete(self: LlmClient, requests: Sequence[Request], title: str, quiet: bool = False) -> list[Reply]:
        asked.extend(requests)
        return [Reply(json.dumps(["Cats purr.", "Dogs bark."]), "stop")] * len(requests)

    monkeypatch.setattr(LlmClient, "complete", complete)
    own = judge(bart, llm=ClientOptions(base_url="http://localhost:1/v1", model="m"))
    first, second = own.score([item("Q", "Woof", REFERENCE), item("Q", "Miaow", REFERENCE)])
    assert len(asked) == 1
    assert "Fish swim in the sea." in asked[0].messages[-1]["content"]
    assert first.detail["claims"] == second.detail["claims"] == 2
    assert own.identity != judge(bart).identity


@pytest.mark.parametrize(
    ("reply", "claims"),
    [
        (Reply('["a", " b "]', "stop"), ["a", "b"]),
        (Reply('```json\n["a"]\n```', "stop"), ["a"]),
        (Reply("[]", "stop"), "the reference makes no claim"),
        (Reply('["a"', "length"), "claims: the list was cut off at the length limit"),
        (Reply("", "error", error="HTTP 500"), "claims: HTTP 500"),
        (Reply('{"a": 1}', "stop"), 'claims: the reply is not a JSON array of strings: "{"a": 1}"'),
        (Reply('["a", 3]', "stop"), 'claims: the reply is not a JSON array of strings: "["a", 3]"'),
        (Reply("Here: a", "stop"), 'claims: the reply is not a JSON array of strings: "Here: a"'),
    ],
)
def test_replies_are_read_strictly(reply: Reply, claims: list[str] | str) -> None:
    assert read_claims(reply) == claims


def test_sentences_that_state_something() -> None:
    assert sentence_claims(REFERENCE) == ["Cats purr.", "Dogs bark.", "Fish swim in the sea."]
    assert sentence_claims("Why?\n...") == []
