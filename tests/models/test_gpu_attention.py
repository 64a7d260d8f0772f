"""The kernels that run on a GPU against the one that runs here, on the CPU as far as they have one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from safeserve.models import gpu_attention
from safeserve.models.gpu_attention import attend_flat, flex, sdpa
from safeserve.models.kernels import rotate
from safeserve.models.prefix import Layout, SharedRow, attend, lay_out

SHAPES: dict[str, list[tuple[int, list[int]]]] = {
    "ragged": [(3, [4, 2]), (1, [1, 6, 1]), (7, [2])],
    "equally long": [(3, [4, 2]), (2, [3, 4])],
    "longer than a block": [(60, [50, 90, 1]), (3, [2])],
}


def layout_of(name: str) -> Layout:
    return lay_out([SharedRow((1,) * p, tuple((2,) * n for n in lengths)) for p, lengths in SHAPES[name]], "cpu")


def inputs(layout: Layout, query_heads: int = 4, key_heads: int = 2, dim: int = 16) -> list[Tensor]:
    """q, k, v, cos, sin."""
    generator = torch.Generator().manual_seed(0)
    sizes = (query_heads, key_heads, key_heads)
    q, k, v = (torch.randn(len(layout.ids), n, dim, generator=generator) for n in sizes)
    angle = layout.positions.view(-1, 1, 1) * torch.linspace(1, 0.01, dim // 2)
    return [q, k, v, angle.cos(), angle.sin()]


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_masked_sdpa_has_the_values_and_gradients_of_the_cpu_s_kernel(name: str, heads: tuple[int, int]) -> None:
    layout = layout_of(name)
    q, k, v, cos, sin = inputs(layout, *heads)
    for x in (q, k, v):
        x.requires_grad_()
    outputs = sdpa(rotate(q, cos, sin), rotate(k, cos, sin), v, layout), attend(q, k, v, cos, sin, layout)
    assert torch.allclose(*outputs, atol=1e-5)
    slope = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad((out * slope).sum(), (q, k, v)) for out in outputs), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_flex_s_mask_is_the_layout_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function given to FlexAttention, for all pairs of flat tokens, against ``blocked`` of the padded rows."""
    from torch.nn.attention import flex_attention

    seen: list[Any] = []
    monkeypatch.setattr(flex_attention, "create_block_mask", lambda mask, *_, **__: seen.append(mask))
    layout = layout_of(name)
    gpu_attention._block_mask(layout)
    at = torch.arange(len(layout.ids))
    nothing = torch.tensor(0)
    found = seen[0](nothing, nothing, at.unsqueeze(1), at.unsqueeze(0))
    slots = at if layout.slots is None else layout.slots
    expected = torch.zeros(layout.rows * layout.width, layout.rows * layout.width, dtype=torch.bool)
    for row in range(layout.rows):
        part = slice(row * layout.width, (row + 1) * layout.width)
        expected[part, part] = ~layout.blocked[row]
    assert torch.equal(found, expected[slots][:, slots])


def test_flex_has_the_values_of_the_cpu_s_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler, which takes minutes on a CPU: the same function, its blocks computed plainly."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(gpu_attention, "_compiled", lambda: flex_attention)
    for name in sorted(SHAPES):
        layout = layout_of(name)
        q, k, v, cos, sin = inputs(layout)
        with torch.no_grad():
            ours = flex(rotate(q, cos, sin), rotate(k, cos, sin), v, layout)
        assert torch.allclose(ours, attend(q, k, v, cos, sin, layout), atol=1e-5), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled FlexAttention is only used on a CUDA GPU")
def test_compiled_flex_has_the_values_of_the_cpu_s_kernel() -> None:
    for name in sorted(SHAPES):
        shapes = [SharedRow((1,) * p, tuple((2,) * n for n in lengths)) for p, lengths in SHAPES[name]]
        layout, on_gpu = lay_out(shapes, "cpu"), lay_out(shapes, "cuda")
        q, k, v, cos, sin = inputs(layout)
        with torch.no_grad():
            ours = flex(*(x.cuda() for x in (rotate(q, cos, sin), rotate(k, cos, sin), v)), on_gpu)
        assert torch.allclose(ours.cpu(), attend(q, k, v, cos, sin, layout), atol=1e-3), name


def test_the_mask_is_made_once_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Layout] = []
    monkeypatch.setattr(gpu_attention, "_block_mask", lambda layout: made.append(layout) or "mask")
    monkeypatch.setattr(gpu_attention, "_compiled", lambda: lambda q, k, v, **_: q)
    layout = layout_of("ragged")
    q, k, v, _, _ = inputs(layout)
    for _ in range(2):
        assert torch.equal(flex(q, k, v, layout), q.flatten(1))
    assert made == [layout]


def test_flex_that_fails_gives_way_once_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def broken(*_: Any) -> Tensor:
        calls.append(1)
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(gpu_attention, "flex", broken)
    monkeypatch.setattr(gpu_attention, "_flex_works", True)
    layout = layout_of("ragged")
    q, k, v, _, _ = inputs(layout)
    for _ in range(3):
        assert torch.equal(attend_flat(q, k, v, layout), sdpa(q, k, v, layout))
    assert calls == [1]
    captured = capsys.readouterr()
    assert captured.err == "FlexAttention is not used here (NotImplementedError); masked SDPA is.\n"
    assert captured.out == ""


def test_a_full_memory_is_not_the_kernel_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(gpu_attention, "flex", full)
    monkeypatch.setattr(gpu_attention, "_flex_works", True)
    layout = layout_of("ragged")
    q, k, v, _, _ = inputs(layout)
    with pytest.raises(torch.OutOfMemoryError):
        attend_flat(q, k, v, layout)
    assert gpu_attention.flex_in_use()


def test_flex_is_taken_where_it_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_attention, "flex", lambda q, k, v, layout: q.flatten(1) + 1)
    monkeypatch.setattr(gpu_attention, "_flex_works", True)
    layout = layout_of("ragged")
    q, k, v, _, _ = inputs(layout)
    assert torch.equal(attend_flat(q, k, v, layout), q.flatten(1) + 1)
    assert capsys.readouterr().err == ""
