"""GGUF, the file of llama.cpp and Ollama, from a loaded model: Llama, Mistral, Qwen2 and Qwen3 with byte-level BPE.

The file is written with the ``gguf`` library, whose tables name the tensors. What is not known to come out right
(another architecture, tokenizer or rotary embedding) is refused: a file that answers wrongly is worse than none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safeserve.core.errors import UserError
from safeserve.core.runs import disk_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from safeserve.models.loading import LoadedModel

Kind = Literal["f32", "f16", "bf16", "q8_0"]
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""transformers' model type to llama.cpp's architecture."""
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_WORD % "{1,3}": "llama-bpe", _WORD % "": "qwen2"}
"""Pattern by which a tokenizer cuts text into words, to llama.cpp's name of it."""
CONVERTER = "convert_hf_to_gguf.py of llama.cpp (github.com/ggml-org/llama.cpp) may know it: merge, then run that on it"


def export_gguf(loaded: LoadedModel, out: Path, kind: Kind = "f16") -> Path:
    """Write ``loaded`` with its tokenizer and chat template as one GGUF file; returns its path.

    Args:
        kind: of the matrices; vectors (norms, biases) stay in float32.

    Raises:
        UserError: a model or tokenizer that cannot be written, or a file that exists.
        EnvironmentFault: the disk.
    """
    import gguf

    if out.exists():
        raise UserError(f"{out}: exists already. Give another file.")
    config = loaded.model.config
    name = ARCHITECTURES.get(config.model_type)
    if name is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{loaded.name}: model type {config.model_type} cannot be written ({known} can); {CONVERTER}.")
    vocabulary = _vocabulary(loaded)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[name]])
        try:
            _add_shape(writer, config, Path(loaded.name).name, kind)
            _add_vocabulary(writer, vocabulary, loaded)
            _add_tensors(writer, loaded.model, gguf.MODEL_ARCH[name], kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    return out


def _add_shape(writer: Any, config: Any, name: str, kind: Kind) -> None:
    import gguf

    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{name}: its rotary embedding is of type {rope['rope_type']}, not written here; {CONVERTER}.")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _vocabulary(loaded: LoadedModel) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE tokenizer, with llama.cpp's name of how it cuts words as ``cut``."""
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{loaded.name}: its tokenizer has no tokenizer.json, so it cannot be written; {CONVERTER}.")
    content: dict[str, Any] = json.loads(backend.to_str())
    cut = _word_cut(content.get("pre_tokenizer") or {})
    if content["model"].get("type") != "BPE" or cut is None:
        raise UserError(f"{loaded.name}: its tokenizer is not one that is written here; {CONVERTER}.")
    return {**content, "cut": cut}


def _word_cut(pre: dict[str, Any]) -> str | None:
    """llama.cpp's name of a pre-tokenizer; None for one that is not known."""
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        return _SPLITS.get(parts[0]["pattern"].get("Regex", ""))
    return None


def _add_vocabulary(writer: Any, content: dict[str, Any], loaded: LoadedModel) -> None:
    import gguf

    size = loaded.model.config.vocab_size
    tokens = [f"[PAD{number}]" for number in range(size)]  # rows of the embedding that no token has
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for text, number in content["model"]["vocab"].items():
        tokens[number], kinds[number] = text, int(gguf.TokenType.NORMAL)
    for added in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(content["cut"])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    tokenizer = loaded.tokenizer
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, loaded.chat.end_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)  # the template writes what it wants
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: Any, model: Any, arch: Any, kind: Kind) -> None:
    import gguf
    import torch

    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for source, tensor in model.state_dict().items():
        if tied and source == "lm_head.weight":
            continue  # llama.cpp takes the embedding where there is no head
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UserError(f"{source}: a tensor that GGUF has no name for, so the model cannot be written.")
        array = tensor.detach().to(torch.float32).cpu().numpy()
        if arch == gguf.MODEL_ARCH.LLAMA:
            for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                array = _interleaved(array, heads) if f".{part}." in source else array
        stored = "f32" if array.ndim == 1 else kind
        if stored == "q8_0" and array.shape[-1] % 32:
            stored = "f16"  # blocks of 32 along the row
        quantised = gguf.GGMLQuantizationType[stored.upper()]
        writer.add_tensor(target, gguf.quants.quantize(array, quantised), raw_dtype=quantised)


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [heads · 2 halves · n] as [heads · n · 2]: llama.cpp rotates neighbours, transformers the two halves."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
