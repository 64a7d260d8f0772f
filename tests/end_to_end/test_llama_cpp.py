"""The exported GGUF in llama.cpp itself: the same tokens and the same greedy text as here."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Sampling
from safeserve.generation.local import LocalEngine
from safeserve.models.loading import load

QUESTIONS = [
    "What is the capital of France?",
    "Count from 7 to 12, please.",
    "How do you say 'good evening' in French? Use the word café.",
    "Name three colours.",
]
TOKENS = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """llama.cpp with the embedded model as ``safeserve models export`` writes it in float32."""
    llama = pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    from safeserve.models.gguf_export import export_gguf

    path = export_gguf(_embedded(), tmp_path_factory.mktemp("gguf") / "model.gguf", "f32")
    params = llama.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 1024
    return llama.Server(params)


def _embedded() -> Any:
    from safeserve.models import embedded

    return load(embedded.NAME, dtype="float32", quiet=True)


def test_llama_cpp_writes_the_same_text(server: Any) -> None:
    engine = LocalEngine(_embedded())
    prompts = [Prompt(str(n), user(text), "benign") for n, text in enumerate(QUESTIONS)]
    mine = {done.id: done.text for done in engine.generate(prompts, Sampling(max_new_tokens=TOKENS))}
    same = 0
    for prompt in prompts:
        request = {"messages": list(prompt.messages), "max_tokens": TOKENS, "temperature": 0.0, "top_k": 1}
        said = server.handle_chat_completions(request)["choices"][0]["message"]["content"]
        same += said.strip() == mine[prompt.id].strip()
    # Two engines add in another order, so one near-tie may fall the other way; a wrong file agrees on nothing.
    assert same >= len(prompts) - 1


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
            urllib.request.Request(f"{server.listening_address}/tokenize", body, headers)
        ) as said:
            found = json.load(said)["tokens"]
        assert found == tokenizer(text, add_special_tokens=False).input_ids, text
