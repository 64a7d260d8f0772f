"""The exported GGUF in llama.cpp: the same tokens and the same greedy text as here, of a base and of an adapter."""

from __future__ import annotations

import json
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Sampling
from safeserve.generation.local import LocalEngine
from safeserve.models.loading import LoadedModel, load, save_info

QUESTIONS = [
    "What is the capital of France?",
    "Count from 7 to 12, please.",
    "How do you say 'good evening' in French? Use the word café.",
    "Name three colours.",
]
TOKENS = 24

pytestmark = pytest.mark.slow


def _embedded() -> LoadedModel:
    from safeserve.models import embedded

    return load(embedded.NAME, dtype="float32", quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``model("base")`` is the embedded model, ``model("adapter")`` the same with a small adapter merged into it."""

    @cache
    def make(name: str) -> LoadedModel:
        loaded = _embedded()
        if name == "base":
            return loaded
        import torch
        from peft import LoraConfig, get_peft_model

        folder = tmp_path_factory.mktemp("adapter")
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
        adapted = get_peft_model(loaded.model, config)
        torch.manual_seed(3)
        for parameter, weight in adapted.named_parameters():
            if "lora_B" in parameter:  # zero at first, which would change nothing
                weight.data.normal_(0, 0.06)
        adapted.save_pretrained(folder)
        save_info(folder, {"method": "sit", "base": loaded.name})
        return load(folder, dtype="float32", quiet=True)

    return make


@pytest.fixture(scope="module")
def answers(model: Any) -> Any:
    """``answers("base")``: what the engine here writes to each question, greedily."""

    @cache
    def write(name: str) -> tuple[str, ...]:
        done = LocalEngine(model(name)).generate(_prompts(), Sampling(max_new_tokens=TOKENS))
        return tuple(row.text.strip() for row in sorted(done, key=lambda row: row.id))

    return write


@pytest.fixture(scope="module")
def server(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``server("base", "f32")``: llama.cpp with a model as ``safeserve models export`` writes it."""
    llama = pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    from safeserve.models.gguf_export import export_gguf

    @cache
    def start(name: str, kind: Any) -> Any:
        path: Path = export_gguf(model(name), tmp_path_factory.mktemp("gguf") / "model.gguf", kind)
        params = llama.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        return llama.Server(params)

    return start


def _prompts() -> list[Prompt]:
    return [Prompt(str(n), user(text), "benign") for n, text in enumerate(QUESTIONS)]


def _said(server: Any) -> list[str]:
    """llama.cpp's greedy answers."""
    common = {"max_tokens": TOKENS, "temperature": 0.0, "top_k": 1}
    requests = ({"messages": list(prompt.messages), **common} for prompt in _prompts())
    replies = (server.handle_chat_completions(request) for request in requests)
    return [reply["choices"][0]["message"]["content"].strip() for reply in replies]


@pytest.mark.parametrize(("name", "kind"), [("base", "f32"), ("adapter", "f32"), ("adapter", "f16")])
def test_llama_cpp_writes_the_same_text(server: Any, answers: Any, name: str, kind: str) -> None:
    mine, theirs = answers(name), _said(server(name, kind))
    # Two engines add in another order, so one near-tie may fall the other way; a wrong file agrees on nothing.
    assert sum(a == b for a, b in zip(mine, theirs, strict=True)) >= len(mine) - 1, (mine, theirs)


def test_the_adapter_is_in_the_answers(answers: Any) -> None:
    """Else the test above would pass with a file that lacks it."""
    same = sum(a == b for a, b in zip(answers("base"), answers("adapter"), strict=True))
    assert same < len(QUESTIONS) - 1, (answers("base"), answers("adapter"))


def test_llama_cpp_begins_the_same_way_with_eight_bits(server: Any, answers: Any) -> None:
    """Weights in 8 bits decide a near-tie otherwise, and then the rest differs; the first words hold."""
    said = _said(server("base", "q8_0"))
    first = [(a.split()[:3], b.split()[:3]) for a, b in zip(answers("base"), said, strict=True)]
    assert sum(a == b for a, b in first) >= len(first) - 1, first


def test_llama_cpp_cuts_words_the_same_way(server: Any) -> None:
    tokenizer = _embedded().tokenizer
    for text in (
        "12345 and 6 café\n\n  naïve — “quoted”",
        "def f(x):\n    return x**2  # ½",
        "<|im_start|>user\nHi<|im_end|>",
    ):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        headers = {"content-type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{server('base', 'f32').listening_address}/tokenize", body, headers)
        ) as said:
            found = json.load(said)["tokens"]
        assert found == tokenizer(text, add_special_tokens=False).input_ids, text
