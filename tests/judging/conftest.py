"""Tiny models of the architectures that judge, with byte tokenizers made here; nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion


def _byte_tokenizer(
    folder: Path,
    control: Sequence[str],
    words: Sequence[str] = (),
    template: str | None = None,
    pair: str | None = None,
    limit: int = 4096,
    **named: Any,
) -> Any:
    """Save a tokenizer of bytes, with ``words`` as whole tokens; ``pair`` joins two segments .

    Args:
        named: bos_token=..., pad_token=... and so on.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*control, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(control))
    raw.add_tokens([AddedToken(word, normalized=False) for word in words])
    if pair:
        single = pair.partition(" $B")[0]
        used = [(token, vocabulary[token]) for token in control if token in pair]
        raw.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=limit, **named)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def _tiny_sizes(**changes: Any) -> dict[str, Any]:
    """Sizes of a decoder that runs in milliseconds."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    return {**sizes, **changes}


def _item(question: str, answer: str, reference: str | None = None, **changes: Any) -> tuple[Prompt, Completion]:
    """A prompt with its answer."""
    prompt = Prompt(changes.pop("id", "p"), user(question), "harmful", reference=reference)
    return prompt, Completion(prompt.id, answer, (), changes.pop("finish_reason", "stop"), None, **changes)


@pytest.fixture(scope="session")
def item() -> Callable[..., tuple[Prompt, Completion]]:
    """``item(question, answer, reference=None)`` makes what a judge scores."""
    return _item


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., Any]:
    """``byte_tokenizer(folder, control, ...)`` saves a tokenizer, see :func:`_byte_tokenizer`."""
    return _byte_tokenizer


@pytest.fixture(scope="session")
def tiny_sizes() -> Callable[..., dict[str, Any]]:
    """``tiny_sizes(**changes)``: sizes of a decoder for its config."""
    return _tiny_sizes
