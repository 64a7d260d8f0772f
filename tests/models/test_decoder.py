"""Our decoder against transformers' own layers on tiny random models: states, and gradients of all that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from safeserve.models.decoder import Decoder, Unsupported
from safeserve.models.packed import fill
from safeserve.models.prefix import SharedRow, lay_out

ROWS = [SharedRow((5, 6, 7, 2), ((8, 2, 10), (11,), (12, 13, 14, 15, 2))), SharedRow((0, 17), ((18, 19),))]
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 2,  # also an ordinary token of the rows: its embedding is read, but transformers never trains it
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None, "head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}


def make(family: str, **changes: Any) -> Any:
    """A random model of ``family`` in which every parameter counts, biases and norms included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, **MODELS.get(family, {}), **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name else 0.0
        parameter.data = centre + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def adapted(model: Any, **options: Any) -> Any:
    """``model`` with a LoRA adapter whose B is not zero."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **options}
    with_adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in with_adapter.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return with_adapter.eval()


def inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def ours(model: Any, rows: Sequence[SharedRow] = ROWS, recompute: bool = False) -> Tensor:
    """States that predict the answers' tokens, [answer tokens, hidden]."""
    decoder, layout = Decoder(inner(model)), lay_out(rows, "cpu")
    decoder.recompute = recompute
    return decoder.shared(layout)[layout.predictors]


def theirs(model: Any, rows: Sequence[SharedRow] = ROWS) -> Tensor:
    """The same by transformers, each answer with its prompt as a row of its own."""
    body = inner(model).get_decoder()
    states = []
    for row in rows:
        for answer in row.answers:
            ids = torch.tensor([[*row.prompt, *answer[:-1]]])
            states.append(body(input_ids=ids, use_cache=False).last_hidden_state[0, len(row.prompt) - 1 :])
    return torch.cat(states)


def assert_same(model: Any, recompute: bool = False) -> None:
    """States and gradients of all trained parameters, within float32 rounding."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad and "lm_head" not in name}
    outputs = ours(model, recompute=recompute), theirs(model)
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-5 * outputs[1].abs().max()
    slope = torch.randn(outputs[1].shape, generator=torch.Generator().manual_seed(4))
    found = [torch.autograd.grad((out * slope).sum(), list(parameters.values())) for out in outputs]
    for name, a, b in zip(parameters, *found, strict=True):
        assert b.norm() > 0, name
        assert (a - b).norm() <= 1e-4 * b.norm(), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_adapter_training(family: str, recompute: bool) -> None:
    model = adapted(make(family))
    trained = sum(p.requires_grad for p in model.parameters())
    assert trained == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    assert_same(model, recompute)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_full_training(family: str, recompute: bool) -> None:
    model = make(family)
    assert all(p.requires_grad for p in model.parameters())
    assert_same(model, recompute)


def test_recompute_keeps_less() -> None:
    model = adapted(make("llama"))
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            ours(model, recompute=recompute)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 2


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_query_heads_that_share_key_heads(heads: int) -> None:
    assert_same(adapted(make("llama", num_key_value_heads=heads)))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], ["o_proj", "up_proj"]])
def test_adapter_on_some_layers(targets: list[str]) -> None:
    assert_same(adapted(make("llama"), target_modules=targets))


def test_adapter_on_the_embedding() -> None:
    assert_same(adapted(make("llama"), target_modules=["embed_tokens", "q_proj"]))


def test_scales_of_the_adapter() -> None:
    assert_same(adapted(make("llama"), use_rslora=True, alpha_pattern={"q_proj": 1}, rank_pattern={"k_proj": 5}))


def test_adapter_switched_off_and_merged() -> None:
    base = make("llama")
    before = theirs(base).detach()
    model = adapted(base)
    on = ours(model).detach()
    assert not torch.allclose(on, before, atol=1e-2)
    with model.disable_adapter():
        assert torch.allclose(ours(model), before, atol=1e-5)
    assert torch.equal(ours(model), on)
    model.merge_adapter()
    assert torch.allclose(ours(model), on, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(ours(model.unload()), before, atol=1e-5)


def test_the_adapter_in_use_is_the_one_computed() -> None:
    from peft import LoraConfig

    model = adapted(make("llama"))
    first = ours(model).detach()
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.set_adapter("second")
    assert not torch.allclose(ours(model), first, atol=1e-2)
    assert_same(model)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 8},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotations(rope: dict[str, Any]) -> None:
    model = make("llama", rope_parameters={"rope_theta": 10000.0, **rope})
    plain = make("llama")
    assert not torch.allclose(theirs(model), theirs(plain), atol=1e-3), "the scaling does not act in this test"
    assert_same(adapted(model))


def test_bfloat16_is_as_near_to_the_truth_as_transformers() -> None:
    """With the adapter in float32, as it is trained."""
    model = adapted(make("llama"))
    truth = theirs(model).detach()
    for name, module in model.named_modules():
        if not name.endswith(("lora_A.default", "lora_B.default")):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.bfloat16()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    apart, usual = ((form(model).float() - truth).norm() for form in (ours, theirs))
    assert apart <= 1.5 * usual + 1e-3 * truth.norm()


LONG = [
    SharedRow(tuple(range(5, 25)), (tuple(range(3, 30)), tuple(range(8, 20)))),
    SharedRow((4, 9), (tuple(range(2, 31)),)),
]


def test_added_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU, oneDNN keeps code for every number of rows, so there are few different ones."""
    model = adapted(make("llama", max_position_embeddings=64).bfloat16())
    layout = lay_out(LONG, "cpu")
    decoder = Decoder(inner(model))
    assert len(layout.ids) == 87
    assert len(decoder.filled(layout.ids, layout.positions)[0]) == len(decoder.shared(layout)) == 88
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for steps in (32, 2):  # 88 rows and 96
        monkeypatch.setattr("safeserve.models.decoder.fill", lambda rows, _, steps=steps: fill(rows, steps))
        states = ours(model, LONG)
        found.append((states, torch.autograd.grad(states.float().square().sum(), parameters)))
    monkeypatch.setattr(Decoder, "filled", lambda _, ids, positions: (ids, positions))
    states = ours(model, LONG)
    slopes = torch.autograd.grad(states.float().square().sum(), parameters)
    for other, others in found:
        assert torch.allclose(other.float(), states.float(), rtol=1e-2, atol=1e-2)
        for a, b in zip(others, slopes, strict=True):
            assert (a - b).norm() <= 2e-2 * b.norm()


def test_numbers_of_rows_in_bfloat16_are_few() -> None:
    decoder = Decoder(make("llama").bfloat16())
    plain = Decoder(make("llama"))
    sizes = set()
    for count in range(1, 2049):
        ids = torch.zeros(count, dtype=torch.long)
        filled, positions = decoder.filled(ids, ids)
        assert count <= len(filled) <= 1.04 * count
        assert len(filled) == len(positions)
        assert plain.filled(ids, ids)[0] is ids, "float32 is multiplied by another library"
        sizes.add(len(filled))
    assert len(sizes) <= 64 + 5 * 32 + 1


SMALL_GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma2", {"head_dim": 8}, "model type gemma2"),
        ("gpt2", SMALL_GPT2, "model type gpt2"),
        ("mistral", {"sliding_window": 8}, "sliding window attention"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("llama", {"attention_dropout": 0.1}, "attention dropout"),
    ],
)
def test_models_that_are_left_to_transformers(family: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        Decoder(make(family, **changes))


def test_a_window_that_is_switched_off_is_none() -> None:
    """Qwen2's configs name a window that its models do not use."""
    assert_same(make("qwen2", use_sliding_window=False, sliding_window=8))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_dropout": 0.1}, "LoRA with dropout, DoRA"),
        ({"use_dora": True}, "LoRA with dropout, DoRA"),
        ({"lora_bias": True}, "LoRA with a bias"),
    ],
)
def test_adapters_that_are_left_to_transformers(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        Decoder(inner(adapted(make("llama"), **options)))


def test_other_methods_and_two_adapters_are_left_to_transformers() -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    other = get_peft_model(
        make("llama"), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    )
    with pytest.raises(Unsupported, match="not one plain LoRA"):
        Decoder(inner(other))
    model = adapted(make("llama"))
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(Unsupported, match="not one plain LoRA"):
        Decoder(inner(model))


@pytest.mark.parametrize("name", ["q_proj", "o_proj", "down_proj"])
def test_quantised_layers_are_left_to_transformers(name: str) -> None:
    class Linear8bit(torch.nn.Linear):
        """Stands for a quantiser's layer, which is a subclass of Linear whose weight is something else."""

    model = make("llama")
    last = model.model.layers[1]
    block = last.mlp if name == "down_proj" else last.self_attn
    old = getattr(block, name)
    setattr(block, name, Linear8bit(old.in_features, old.out_features))
    with pytest.raises(Unsupported, match="layers of class Linear8bit"):
        Decoder(model)
    with pytest.raises(Unsupported, match="layers of class Linear8bit"):
        Decoder(inner(adapted(model)))
