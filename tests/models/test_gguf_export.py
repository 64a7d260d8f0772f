"""GGUF files: read back by transformers' own reader, and what cannot be written is refused."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from safeserve.core.errors import UserError
from safeserve.models import embedded
from safeserve.models.gguf_export import _interleaved, _word_cut, export_gguf
from safeserve.models.loading import LoadedModel, load


@pytest.fixture
def tiny(tmp_path: Path) -> LoadedModel:
    """A small random Llama with the embedded model's tokenizer, tied to nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    source = embedded.fetch(quiet=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    return load(folder, dtype="float32", quiet=True)


def test_rows_are_interleaved_head_by_head() -> None:
    weight = np.arange(8.0)[:, None] * np.ones(3)
    assert _interleaved(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert _interleaved(np.arange(4.0), 1).tolist() == [0, 2, 1, 3]


def test_transformers_reads_the_same_model_back(tiny: LoadedModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_gguf(tiny, tmp_path / "out" / "m.gguf", "f32")
    folder = str(tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")
    text = "<|im_start|>user\nHow do 12 people say café?<|im_end|>\n"
    ids = tiny.tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer(text).input_ids == ids[0].tolist()
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.eos_token_id == tiny.chat.end_id
    with torch.no_grad():
        assert torch.allclose(back(ids).logits, tiny.model(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("kind", "close"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2)])
def test_kinds_of_numbers(tiny: LoadedModel, tmp_path: Path, kind: Any, close: float) -> None:
    path = export_gguf(tiny, tmp_path / "m.gguf", kind)
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    up = stored["blk.0.ffn_up.weight"]
    assert up.tensor_type.name == kind.upper()
    assert stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    weight = tiny.model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.abs(gguf.quants.dequantize(up.data, up.tensor_type) - weight).max() <= close * np.abs(weight).max()
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"


def test_what_cannot_be_written_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        export_gguf(tiny, tmp_path / "there.gguf")
    tiny.model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1.0}
    with pytest.raises(UserError, match="yarn"):
        export_gguf(tiny, tmp_path / "a.gguf")
    tiny.model.config.model_type = "gpt2"
    with pytest.raises(UserError, match="gpt2 cannot be written"):
        export_gguf(tiny, tmp_path / "a.gguf")
    assert list(tmp_path.glob("*a.gguf*")) == [], "no half file is left"


def test_known_ways_to_cut_words() -> None:
    byte_level = {"type": "ByteLevel", "use_regex": True}
    assert _word_cut(byte_level) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    assert _word_cut({"type": "Sequence", "pretokenizers": [digits, byte_level]}) == "smollm"
    assert _word_cut({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}) is None
    plain = {"type": "ByteLevel", "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}}
    assert _word_cut({"type": "Sequence", "pretokenizers": [split, plain]}) is None


def test_the_commands_that_serve_name_what_was_written(
    tiny: LoadedModel, cli_here: Callable[..., Any], tmp_path: Path
) -> None:
    """With a space in the path, so that a command that is pasted unquoted would fail."""

    def serving(*arguments: str | Path) -> list[str]:
        ran = cli_here(*arguments)
        assert ran.code == 0, ran.stderr
        return [line.strip() for line in ran.stderr.partition("Next:\n")[2].splitlines()]

    folder, file = Path("my models/merged"), Path("my models/merged.gguf")
    (tmp_path / "my models").mkdir()
    vllm, transformers, export, measure = serving("models", "merge", tmp_path / "tiny", folder, "--dtype", "float32")
    assert shlex.split(vllm) == ["vllm", "serve", str(folder)]
    assert shlex.split(transformers) == ["transformers", "serve", str(folder)]
    assert shlex.split(measure)[:3] == ["safeserve", "eval", str(folder)]
    assert (tmp_path / folder / "model.safetensors").is_file()

    program, *arguments = shlex.split(export)
    assert program == "safeserve"
    llama, ollama = serving(*arguments)  # the printed command, as it is
    assert (tmp_path / file).read_bytes()[:4] == b"GGUF"
    assert shlex.split(llama) == ["llama-server", "-m", str(file), "--jinja"]
    make, create = ollama.split(" && ")
    subprocess.run(["sh", "-c", make], cwd=tmp_path, check=True)
    assert (tmp_path / "Modelfile").read_text() == f"FROM {tmp_path / file}\n"
    assert shlex.split(create) == ["ollama", "create", "merged", "-f", "Modelfile"]
