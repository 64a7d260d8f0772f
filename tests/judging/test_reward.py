"""Reward models, on tiny random models of the architectures that people use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safeserve.core.errors import UserError
from safeserve.judging.hub_models import length_batches
from safeserve.judging.reward import RewardJudge, RewardOptions

Make = Callable[..., Any]
BERT = ("[CLS]", "[SEP]", "[PAD]")
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}[SEP]"


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Make) -> Path:
    """A DeBERTa v2 that reads prompt and answer as a pair, of at most 256 tokens."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    folder = tmp_path_factory.mktemp("deberta")
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = byte_tokenizer(folder, BERT, pair=pair, limit=256, **named)
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        type_vocab_size=2,
        relative_attention=True,
        pad_token_id=2,
        num_labels=1,
        initializer_range=0.3,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_llama(folder: Path, make_tokenizer: Make, sizes: Make, pad: str | None, labels: int = 1) -> Path:
    """A Llama with a chat template and a head, with or without a pad token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    named = {"eos_token": "[SEP]", **({"pad_token": pad} if pad else {})}
    tokenizer = make_tokenizer(folder, BERT, template=CHAT, **named)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes(num_labels=labels, initializer_range=0.3))
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Make, tiny_sizes: Make) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), byte_tokenizer, tiny_sizes, "[PAD]")


def judge(folder: Path, **options: Any) -> RewardJudge:
    return RewardJudge("reward-x", RewardOptions(model=str(folder), dtype="float32", **options))


def test_a_pair_model_gives_its_logit(deberta: Path, item: Make) -> None:
    own = judge(deberta)
    (score,) = own.score([item("How are you?", "Fine.")])
    tokenizer = own.hub.tokenizer
    encoded = tokenizer("How are you?", "Fine.", return_tensors="pt")
    assert tokenizer.decode(encoded["input_ids"][0]).replace(" ", "") == "[CLS]Howareyou?[SEP]Fine.[SEP]"
    with torch.no_grad():
        expected = float(own.hub.model(**encoded).logits[0, 0])
    assert score.value == pytest.approx(expected, abs=1e-5)
    assert score.label is None
    (inverted,) = judge(deberta, invert=True).score([item("How are you?", "Fine.")])
    assert inverted.value == pytest.approx(-expected, abs=1e-5)


def test_a_chat_model_reads_its_template(llama: Path, item: Make) -> None:
    own = judge(llama)
    (score,) = own.score([item("Hm?", "Yes.")])
    ids = own.hub.tokenizer("<user>Hm?<assistant>Yes.[SEP]", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert score.value == pytest.approx(float(own.hub.model(input_ids=ids).logits[0, 0]), abs=1e-5)


def test_a_dialogue_is_written_out(deberta: Path, item: Make) -> None:
    own = judge(deberta, format="dialogue")
    (score,) = own.score([item("Hm?", "Yes.")])
    encoded = own.hub.tokenizer("\n\nHuman: Hm?\n\nAssistant: Yes.", return_tensors="pt")
    with torch.no_grad():
        assert score.value == pytest.approx(float(own.hub.model(**encoded).logits[0, 0]), abs=1e-5)


@pytest.mark.parametrize("pad", ["[PAD]", "[SEP]", None])
def test_padding_order_and_batches_change_nothing(
    tmp_path: Path, deberta: Path, byte_tokenizer: Make, tiny_sizes: Make, item: Make, pad: str | None
) -> None:
    rows = [item("Q" * n, "A" * (40 - n)) for n in (1, 30, 7)] + [item("Hm?", "Yes " * n) for n in (1, 2, 30, 9)]
    for folder in (save_llama(tmp_path / "m", byte_tokenizer, tiny_sizes, pad), deberta):
        together = [score.value for score in judge(folder).score(rows)]
        alone = [score.value for score in judge(folder, batch_tokens=1).score(rows[::-1])][::-1]
        assert together == pytest.approx(alone, abs=2e-5)
        assert len(set(together)) == len(rows)


def test_what_cannot_be_read_is_unscored(deberta: Path, item: Make) -> None:
    rows = [
        item("Q", "", finish_reason="error", error="boom"),
        item("Q", "A" * 300),
        item("Q", "[SEP] A <|im_end|>"),
    ]
    failed, long, fine = judge(deberta).score(rows)
    assert failed.reason == "generation failed: boom"
    assert long.reason == "prompt and answer of 304 tokens exceed the judge's 256"
    assert fine.value is not None
    row = judge(deberta).encoded([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    assert row["input_ids"].count(1) == 2


def test_models_with_another_head_are_refused(
    tmp_path: Path, byte_tokenizer: Make, tiny_sizes: Make, item: Make
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    two = save_llama(tmp_path / "two", byte_tokenizer, tiny_sizes, "[PAD]", labels=2)
    with pytest.raises(UserError, match="has 2 outputs"):
        judge(two).score([item("Q", "A")])
    (two / "chat_template.jinja").unlink()
    LlamaForSequenceClassification(LlamaConfig(vocab_size=259, **tiny_sizes(num_labels=1))).save_pretrained(two)
    with pytest.raises(UserError, match="has no chat template"):
        judge(two, format="chat").score([item("Q", "A")])


def test_a_base_model_is_no_reward_model(tiny_folder: Path, item: Make) -> None:
    with pytest.raises(UserError, match=r"weights lack score\.weight"):
        judge(tiny_folder).score([item("Q", "A")])


def test_batches_hold_their_tokens() -> None:
    assert length_batches([3, 9, 4, 8, 1], 18) == [[1, 3], [2, 0, 4]]
    assert length_batches([3, 9], 1) == [[1], [0]]
    assert length_batches([2, 2], 100, alone=True) == [[0], [1]]
    assert length_batches([], 10) == []
