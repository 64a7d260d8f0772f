"""Predictions by a model's sizes: against counted weights, known operations of a model, and limits that must show."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import UserError
from safeserve.models import embedded
from safeserve.pipeline import forecast
from safeserve.pipeline.forecast import GenerationWork, Machine, ModelSize, TrainingWork, tensor_shapes
from safeserve.pipeline.probe import Rates
from safeserve.training.options import DpoOptions, SitOptions, default_token_budget

CPU = Machine("cpu", "float32", Rates(gemm=1e11, bandwidth=1e10))
WORK = TrainingWork(items=100, tokens=10_000, responses=5_000, context=30, longest=200)
ANSWERS = GenerationWork(prompts=5_000, written=10_000, longest_prompt=60, longest_answer=100, rows=120)
SMOL = ModelSize(
    layers=30,
    hidden=576,
    inner=1536,
    heads=9,
    query_width=576,
    key_width=192,
    vocabulary=49152,
    body=106_168_320,
    sides=305_280,
    head=28_311_552,
    weights=134_515_008,
)
"""SmolLM2-135M, by its published config."""
MEASURED = 2285 << 20
"""Most resident memory in the first 15 steps of SIT of ``quickstart``, after an evaluation in the same process."""


def test_sizes_are_those_of_the_loaded_model(tiny_folder: Path, tiny: Callable[..., Any]) -> None:
    model, size = tiny().model, ModelSize.of(tiny_folder)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    assert size.weights == sum(p.numel() for p in model.parameters())
    assert size.body == sum(p.numel() for p in matrices)
    assert size.sides == sum(sum(p.shape) for p in matrices)
    assert size.head == model.lm_head.weight.numel()
    assert (size.layers, size.hidden, size.inner, size.query_width, size.key_width) == (2, 32, 64, 32, 16)
    assert size.heads == 4


def test_the_adapters_weights_are_those_that_training_adds(tiny_folder: Path, tiny: Callable[..., Any]) -> None:
    from safeserve.training.policy import Policy

    options = SitOptions(lora_rank=3)
    policy = Policy(tiny(), options, seed=1)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert ModelSize.of(tiny_folder).adapter(options) == trained
    assert ModelSize.of(tiny_folder).adapter(SitOptions(full=True)) == 0


def test_bfloat16_takes_twice_the_tokens_in_the_same_memory() -> None:
    sizes = [(default_token_budget("cpu", dtype), forecast.BYTES[dtype]) for dtype in ("float32", "bfloat16")]
    assert sizes == [(1024, 4), (2048, 2)]


def test_training_takes_the_budget_of_its_dtype(tiny: Callable[..., Any], tiny_folder: Path) -> None:
    from safeserve.models.loading import load
    from safeserve.training.policy import Policy

    assert Policy(tiny(), SitOptions(), seed=1).token_budget == 1024
    half = load(tiny_folder, dtype="bfloat16", device="cpu")
    assert Policy(half, SitOptions(), seed=1).token_budget == 2048
    assert Policy(half, SitOptions(token_budget=300), seed=1).token_budget == 300


def test_as_many_answers_at_once_as_the_engine_and_the_guard_take() -> None:
    from safeserve.generation import local, slots
    from safeserve.judging.guard_network import GuardNetwork
    from safeserve.models import prefix

    assert forecast.SLOTS == local.SLOTS
    assert forecast.PREFILL_TOKENS == slots.PREFILL_TOKENS
    assert forecast.KEPT_KEYS == prefix.KEPT_WIDTH
    assert inspect.signature(GuardNetwork.logits).parameters["token_budget"].default == forecast.GUARD_BATCH


def test_the_embedded_models_operations() -> None:
    """212 and 57 MFLOP a token are what two operations a weight come to."""
    if not embedded.is_sound(embedded.model_folder()):
        pytest.skip("the embedded model is not in the cache")
    assert ModelSize.of(embedded.model_folder()) == SMOL
    assert SMOL.forward(1, 0) == pytest.approx(212.3e6, rel=1e-3)
    assert SMOL.through_head(1) == pytest.approx(56.6e6, rel=1e-3)


def test_an_own_head_and_several_files_are_counted(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    table, matrix = torch.zeros(50, 8), torch.zeros(8, 32)
    save_file({"embed": table.clone(), "norm": torch.zeros(8)}, tmp_path / "model-1.safetensors")
    save_file({"head": table.clone(), "up": matrix}, tmp_path / "model-2.safetensors")
    size = ModelSize.of(tmp_path)
    assert (size.body, size.head, size.weights) == (256, 400, 2 * 400 + 256 + 8)
    assert size.inner == 32  # four widths where the config does not say
    assert tensor_shapes(tmp_path / "model-2.safetensors") == {"head": (50, 8), "up": (8, 32)}


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        ({"vocab_size": 5}, b"", "num_hidden_layers"),
        ({"vocab_size": 5, "n_layer": 1, "n_embd": 4, "n_head": 1}, None, "no \\*.safetensors"),
        ({"vocab_size": 5, "n_layer": 1, "n_embd": 4, "n_head": 1}, b"none", "not a readable safetensors"),
    ],
)
def test_what_has_no_known_size_is_said(
    tmp_path: Path, config: dict[str, Any], weights: bytes | None, says: str
) -> None:
    from safetensors.torch import save

    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights is not None:
        (tmp_path / "model.safetensors").write_bytes(weights or save({}))
    with pytest.raises(UserError, match=says):
        ModelSize.of(tmp_path)


def test_training_costs_what_its_passes_cost() -> None:
    once = SMOL.forward(WORK.tokens, WORK.context)
    head = SMOL.through_head(WORK.responses)
    adapter = 6 * 16 * SMOL.sides * WORK.tokens
    rate = CPU.rates.gemm * CPU.shares.train
    options = DpoOptions(epochs=1)
    assert forecast.training_seconds(SMOL, CPU, WORK, options) == pytest.approx((2 * once + adapter + 2 * head) / rate)
    twice = forecast.training_seconds(SMOL, CPU, WORK, DpoOptions(epochs=2))
    assert twice == pytest.approx(2 * forecast.training_seconds(SMOL, CPU, WORK, options))
    full = forecast.training_seconds(SMOL, CPU, WORK, DpoOptions(full=True))
    assert full == pytest.approx((3 * once + 4 * head) / rate)
    recomputed = forecast.training_seconds(SMOL, CPU, WORK, DpoOptions(gradient_checkpointing=True))
    assert recomputed - forecast.training_seconds(SMOL, CPU, WORK, options) == pytest.approx(once / rate)
    reference = forecast.reference_seconds(SMOL, CPU, WORK)
    assert reference == pytest.approx((once + head) / (CPU.rates.gemm * CPU.shares.reference))


def test_faster_products_leave_the_rest_as_slow_as_it_was() -> None:
    """Shares are given in float32: at twice the rate, bfloat16 halves the products alone; at half, it doubles them."""
    share = CPU.shares.train
    whole = CPU.seconds(1e12, "train")
    products = 1e12 / CPU.rates.gemm
    assert (CPU.shares.dtype, CPU.share("train")) == ("float32", pytest.approx(share))
    fast = Machine("cpu", "bfloat16", Rates(2e11, 1e10), base_gemm=1e11)
    slow = Machine("cpu", "bfloat16", Rates(5e10, 1e10), base_gemm=1e11)
    assert fast.seconds(1e12, "train") == pytest.approx(whole - products / 2)
    assert slow.seconds(1e12, "train") == pytest.approx(whole + products)
    assert fast.share("train") == pytest.approx(1 / (1 + 2 * (1 / share - 1)))


@pytest.mark.parametrize("machine", [CPU, Machine("cpu", "bfloat16", Rates(2e11, 1e10), base_gemm=1e11)])
def test_the_share_that_a_run_implies_predicts_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.seconds(1e12, "decode")
    implied = machine.implied_share("decode", 1.3)
    assert machine.implied_share("decode", 1.0) == pytest.approx(machine.shares.decode)
    monkeypatch.setitem(forecast.SHARES, "cpu", replace(machine.shares, decode=implied))
    assert machine.seconds(1e12, "decode") == pytest.approx(1.3 * before)


def test_decoding_is_bound_by_arithmetic_or_by_memory() -> None:
    quick = replace(CPU, rates=Rates(gemm=1e11, bandwidth=1e15))
    by_arithmetic = forecast.generation_seconds(SMOL, quick, ANSWERS)
    assert forecast.generation_seconds(SMOL, replace(quick, rates=Rates(2e11, 1e15)), ANSWERS) < by_arithmetic
    slow = replace(CPU, rates=Rates(gemm=1e15, bandwidth=1e9))
    steps = ANSWERS.written / forecast.SLOTS["cpu"]
    moved = steps * 4 * (SMOL.body + SMOL.head) / 1e9
    known = forecast.generation_seconds(SMOL, slow, ANSWERS) - steps * slow.shares.step_seconds
    assert known == pytest.approx(moved, rel=1e-2)
    half = replace(slow, dtype="bfloat16", base_gemm=slow.rates.gemm)
    assert forecast.generation_seconds(SMOL, half, ANSWERS) < 0.6 * forecast.generation_seconds(SMOL, slow, ANSWERS)


def test_memory_follows_what_decides_it() -> None:
    of = forecast.training_bytes
    small = of(SMOL, CPU, WORK, SitOptions(token_budget=512))
    large = of(SMOL, CPU, WORK, SitOptions(token_budget=1024, batch_size=64))
    assert large - small == pytest.approx(512 * 4 * 30 * (7 * 576 + 4 * 1536 + 9 * 60), rel=1e-6)
    assert of(SMOL, CPU, WORK, SitOptions(batch_size=64, gradient_checkpointing=True)) < large
    full = of(SMOL, CPU, WORK, SitOptions(full=True, batch_size=64))
    assert full - large == pytest.approx(12 * SMOL.weights - 16 * 16 * SMOL.sides)
    answers = forecast.generation_bytes
    longer = answers(SMOL, CPU, replace(ANSWERS, longest_answer=200))
    cache = 100 * forecast.SLOTS["cpu"] * 2 * 30 * 192 * 4
    assert longer - answers(SMOL, CPU, ANSWERS) == pytest.approx(cache)
    assert answers(SMOL, replace(CPU, dtype="bfloat16"), ANSWERS) < answers(SMOL, CPU, ANSWERS)


def test_on_a_cpu_weights_are_there_twice_and_the_cache_is_bounded() -> None:
    gpu = Machine("cuda", "float32", CPU.rates)
    apart = forecast.engine_bytes(SMOL, CPU) - forecast.engine_bytes(SMOL, gpu)
    assert apart == 4 * (SMOL.body + SMOL.head)
    long, longer = (replace(ANSWERS, rows=64, longest_prompt=2048, longest_answer=n) for n in (1000, 4000))
    answers = forecast.generation_bytes
    assert answers(SMOL, CPU, long) == answers(SMOL, CPU, longer), "no more than the engine takes"
    assert answers(SMOL, gpu, long) < answers(SMOL, gpu, longer)


def test_what_is_compiled_in_bfloat16_is_counted() -> None:
    """A training of the embedded model on short rows in bfloat16, as it was measured: within a factor of 1.2."""
    half = Machine("cpu", "bfloat16", Rates(2e11, 1e10), base_gemm=1e11)
    work = TrainingWork(items=908, tokens=908 * 93.0, responses=908 * 40.0, context=47, longest=200)
    predicted = forecast.training_bytes(SMOL, half, work, SitOptions())
    assert predicted == pytest.approx(MEASURED, rel=0.2)


def test_the_guards_cost_is_that_of_its_layers() -> None:
    half = forecast.guard_seconds(SMOL, CPU, 1000, depth=15)
    assert forecast.guard_seconds(SMOL, CPU, 1000, depth=30) == pytest.approx(2 * half)
    assert forecast.guard_bytes(SMOL, CPU) > 4 * SMOL.weights
