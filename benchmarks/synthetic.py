"""Llama-like models made from a config with random weights and a byte tokenizer: no download, real arithmetic."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeserve.data.records import Demonstration, PreferencePair, Prompt, user
from safeserve.models.chat import CHATML


@dataclass(frozen=True)
class Size:
    """Shape of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    positions: int = 4096


SIZES = {
    "tiny": Size(32, 64, 2, 4, 2, 259, True),
    "1.5B": Size(1536, 8960, 28, 12, 2, 151936, True),
    "3B": Size(3072, 8192, 28, 24, 8, 128256, True),
    "8B": Size(4096, 14336, 32, 32, 8, 128256, False),
}
WORDS = ("sun", "moon", "tree", "river", "stone", "bread", "light", "song", "answer", "question", "because", "always")


def save_model(size: str, folder: Path, dtype: str = "float32", device: str = "cpu", layers: int | None = None) -> Path:
    """Save a random model of one of :data:`SIZES` with its tokenizer to ``folder``, made on ``device``.

    Args:
        layers: instead of the size's own.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        # Wide enough in a tiny model that its distributions are not all flat.
        initializer_range=0.3 if size == "tiny" else 0.02,
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """A token a byte, chatml as the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=specials,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def text(chance: random.Random, low: int, high: int) -> str:
    """Words of ``low`` to ``high`` bytes together, short ones more often than long ones."""
    length = round(low * (high / low) ** chance.random())
    words = ""
    while len(words) < length:
        words += " " + chance.choice(WORDS)
    return words[1 : length + 1].strip() or WORDS[0]


def pairs(count: int, prompt: tuple[int, int], answer: tuple[int, int], seed: int = 0) -> list[PreferencePair]:
    """Preference pairs of random words; ranges are bytes, which are tokens here."""
    chance = random.Random(seed)
    return [
        PreferencePair(f"p{n}", user(text(chance, *prompt)), text(chance, *answer), text(chance, *answer))
        for n in range(count)
    ]


def demonstrations(count: int, prompt: tuple[int, int], answer: tuple[int, int], seed: int = 0) -> list[Demonstration]:
    """Demonstrations of random words."""
    chance = random.Random(seed)
    return [Demonstration(f"d{n}", user(text(chance, *prompt)), text(chance, *answer), "helpful") for n in range(count)]


def prompts(count: int, length: tuple[int, int], seed: int = 0) -> list[Prompt]:
    """Prompts of random words."""
    chance = random.Random(seed)
    return [Prompt(f"q{n}", user(text(chance, *length)), "benign") for n in range(count)]
