"""Each kernel against numerical differentiation in float64, and against its plain formula in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import linear, silu

from safeserve.models.kernels import LowRank, gated_mlp, project, rms_norm, rotate


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer_tensors(out: int, width: int, bias: bool, rank: int, seed: int, trained: bool = True) -> list[Tensor | None]:
    """Weight, bias, A, B; the first two want a gradient only if ``trained``."""
    weight = random(out, width, seed=seed).requires_grad_(trained)
    offset = random(out, seed=seed + 1).requires_grad_(trained) if bias else None
    if not rank:
        return [weight, offset, None, None]
    a, b = random(rank, width, seed=seed + 2), random(out, rank, seed=seed + 3)
    return [weight, offset, a.requires_grad_(), b.requires_grad_()]


def plain_linear(x: Tensor, layer: LowRank) -> Tensor:
    y = linear(x, layer.weight, layer.bias)
    if layer.a is None or layer.b is None:
        return y
    return y + layer.scale * linear(linear(x, layer.a.to(x.dtype)), layer.b.to(x.dtype))


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def plain_mlp(x: Tensor, gate: LowRank, up: LowRank, down: LowRank) -> Tensor:
    return plain_linear(silu(plain_linear(x, gate)) * plain_linear(x, up), down)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ranks", [(0,), (2,), (2, 0), (1, 0, 3), (2, 2, 2)])
def test_project_has_the_gradients_of_its_formula(ranks: tuple[int, ...], bias: bool, trained: bool) -> None:
    layers = [layer_tensors(n + 2, 4, bias, rank, 10 * n, trained) for n, rank in enumerate(ranks)]
    scales = [0.5 + n for n in range(len(ranks))]

    def outputs(x: Tensor, *flat: Tensor | None) -> tuple[Tensor, ...]:
        cut = [flat[at : at + 4] for at in range(0, len(flat), 4)]
        return project(x, tuple(LowRank(*four, scale) for four, scale in zip(cut, scales, strict=True)))  # type: ignore[arg-type]

    assert gradcheck(outputs, (random(3, 4, seed=90).requires_grad_(), *[t for four in layers for t in four]))


def test_project_leaves_out_the_gradient_of_an_input_that_needs_none() -> None:
    layer = layer_tensors(3, 4, True, 2, 1)
    (y,) = project(random(5, 4), (LowRank(*layer, 2.0),))  # type: ignore[arg-type]
    found = torch.autograd.grad(y.sum(), [t for t in layer if t is not None])
    (plain,) = (plain_linear(random(5, 4), LowRank(*layer, 2.0)),)  # type: ignore[arg-type]
    for ours, theirs in zip(found, torch.autograd.grad(plain.sum(), [t for t in layer if t is not None]), strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("unused", [0, 1])
def test_an_output_that_nobody_reads_adds_nothing(unused: int) -> None:
    layers = tuple(LowRank(*layer_tensors(3, 4, False, 2, 10 * n)) for n in range(2))  # type: ignore[arg-type]
    x = random(5, 4, seed=50).requires_grad_()
    used = layers[1 - unused]
    ours = torch.autograd.grad(project(x, layers)[1 - unused].square().sum(), x)
    theirs = torch.autograd.grad(plain_linear(x, used).square().sum(), x)
    assert torch.allclose(ours[0], theirs[0])


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])  # Qwen3's norms of heads see three dimensions
def test_rms_norm_has_the_gradients_of_its_formula(shape: tuple[int, ...], trained: bool) -> None:
    weight = random(5, seed=2).requires_grad_(trained)
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (random(*shape).requires_grad_(), weight))


def test_rms_norm_of_an_input_that_needs_no_gradient() -> None:
    x, weight = random(6, 5), random(5, seed=2).requires_grad_()
    ours = torch.autograd.grad((rms_norm(x, weight, 1e-3) * random(6, 5, seed=3)).sum(), weight)[0]
    theirs = torch.autograd.grad((plain_norm(x, weight, 1e-3) * random(6, 5, seed=3)).sum(), weight)[0]
    assert torch.allclose(ours, theirs)


def test_the_eps_of_rms_norm_counts() -> None:
    assert torch.allclose(rms_norm(torch.zeros(2, 4), torch.ones(4), 1e-5), torch.zeros(2, 4))
    assert rms_norm(torch.full((1, 4), 1e-3), torch.ones(4), 1e-6).tolist()[0] == pytest.approx([0.5**0.5] * 4)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ranks", [(0, 0, 0), (2, 2, 2), (0, 2, 0), (2, 0, 1), (0, 0, 2)])
def test_gated_mlp_has_the_gradients_of_its_formula(ranks: tuple[int, int, int], bias: bool, trained: bool) -> None:
    width, inner = 4, 5
    gate, up = (layer_tensors(inner, width, bias, rank, 10 * n, trained) for n, rank in enumerate(ranks[:2]))
    down = layer_tensors(width, inner, bias, ranks[2], 40, trained)

    def output(x: Tensor, *flat: Tensor | None) -> Tensor:
        gate, up, down = (LowRank(*flat[at : at + 4], scale) for at, scale in ((0, 0.5), (4, 2.0), (8, 1.5)))  # type: ignore[arg-type]
        return gated_mlp(x, gate, up, down)

    assert gradcheck(output, (random(3, width, seed=90).requires_grad_(), *gate, *up, *down))


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_gated_mlp_when_one_matrix_of_the_last_update_is_frozen(wanted: int) -> None:
    """The backward pass makes the inner product only for who asks: bias, A and B alone, the weight frozen."""
    gate, up = (LowRank(*layer_tensors(5, 4, False, 0, n, trained=False)) for n in (0, 10))  # type: ignore[arg-type]
    down = [t.detach() for t in layer_tensors(4, 5, True, 2, 20) if t is not None]
    down[wanted].requires_grad_()
    x, last = random(3, 4, seed=90).requires_grad_(), LowRank(*down, 1.5)
    slope = random(3, 4, seed=91)
    ours = torch.autograd.grad((gated_mlp(x, gate, up, last) * slope).sum(), [x, down[wanted]])
    theirs = torch.autograd.grad((plain_mlp(x, gate, up, last) * slope).sum(), [x, down[wanted]])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b)


def test_rotation_has_the_gradients_of_its_formula_and_turns_back() -> None:
    angle = random(3, 1, 4, seed=5)
    x = random(3, 2, 8).requires_grad_()
    assert gradcheck(lambda x: rotate(x, angle.cos(), angle.sin()), (x,))
    assert torch.allclose(rotate(rotate(x, angle.cos(), angle.sin()), angle.cos(), -angle.sin()), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_that_of_transformers(dtype: torch.dtype) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    positions = torch.tensor([[0, 1, 2, 17, 40, 2, 3]])
    q, k = random(7, 4, 8, dtype=dtype), random(7, 2, 8, dtype=dtype, seed=1)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions)
    theirs = apply_rotary_pos_emb(q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1).unsqueeze(0), cos, sin)
    for x, expected in zip((q, k), theirs, strict=True):
        ours = rotate(x, cos[0, :, None, :4], sin[0, :, None, :4])
        assert torch.allclose(ours, expected[0].transpose(0, 1), atol=1e-6 if dtype == torch.float32 else 0.05)


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of all ``tensors`` for a fixed slope."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    slope = random(*out.shape, seed=77).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * slope).sum(), leaves)]


CASES: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
    "project": (
        lambda x, w, c, a, b: project(x, (LowRank(w, c, a, b, 0.5),))[0],
        lambda x, w, c, a, b: plain_linear(x, LowRank(w, c, a, b, 0.5)),
        [(40, 32), (24, 32), (24,), (4, 32), (24, 4)],
    ),
    "norm": (lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: plain_norm(x, w, 1e-5), [(40, 32), (32,)]),
    "mlp": (
        lambda x, g, u, d, a, b: gated_mlp(x, LowRank(g), LowRank(u), LowRank(d, None, a, b, 0.5)),
        lambda x, g, u, d, a, b: plain_mlp(x, LowRank(g), LowRank(u), LowRank(d, None, a, b, 0.5)),
        [(40, 16), (24, 16), (24, 16), (16, 24), (4, 24), (16, 4)],
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_plain_formula_s(name: str, dtype: torch.dtype) -> None:
    """In bfloat16 both are judged by the float64 result: ours may be off by twice what the plain formula is."""
    ours_form, plain_form, shapes = CASES[name]
    # scaled as weights are, so that nothing saturates
    tensors = [random(*shape, seed=n) * (1 if n == 0 else shape[-1] ** -0.5) for n, shape in enumerate(shapes)]
    tensors = [t.to(dtype) for t in tensors]
    exact = run(plain_form, [t.double() for t in tensors])
    ours, plain = run(ours_form, tensors), run(plain_form, tensors)
    for a, b, truth in zip(ours, plain, exact, strict=True):
        assert a.dtype == b.dtype == dtype
        size = truth.norm()
        bound = 1e-6 * size if dtype == torch.float32 else 2 * (b.double() - truth).norm() + 1e-3 * size
        assert (a.double() - truth).norm() <= bound


def test_a_float32_update_on_a_bfloat16_layer_keeps_its_dtype() -> None:
    x = random(40, 32, dtype=torch.bfloat16)
    weight = random(24, 32, dtype=torch.bfloat16, seed=1) * 32**-0.5
    a, b = (random(*shape, dtype=torch.float32, seed=2).requires_grad_() for shape in ((4, 32), (24, 4)))
    (y,) = project(x, (LowRank(weight, None, a, b, 0.5),))
    da, db = torch.autograd.grad(y.float().square().sum(), (a, b))
    assert (y.dtype, da.dtype, db.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    exact = plain_linear(x.double(), LowRank(weight.double(), None, a.double(), b.double(), 0.5))
    for ours, truth in zip((da, db), torch.autograd.grad(exact.square().sum(), (a, b)), strict=True):
        assert (ours - truth).norm() <= 0.02 * truth.norm()
