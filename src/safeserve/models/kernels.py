"""The pieces of a decoder layer with hand-written backward passes: fewer passes over memory, and far less kept.

Each reads flat tokens [tokens, width] (rows are told apart by the attention alone), so nothing is computed on padding.
Autograd would keep every intermediate result; these keep their inputs and compute the cheap parts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


@dataclass(frozen=True)
class LowRank:
    """A linear layer x W^T + bias, with the update scale · B A added to W (Hu et al. 2021) where there is one.

    Attributes:
        weight: [out, in].
        a, b: [rank, in] and [out, rank], in any floating dtype.
    """

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0


def project(x: Tensor, layers: tuple[LowRank, ...]) -> tuple[Tensor, ...]:
    """Outputs of several linear layers that read the same ``x`` [tokens, in], each [tokens, out]."""
    if not torch.is_grad_enabled() and all(layer.a is None for layer in layers):
        return tuple(linear(x, layer.weight, layer.bias) for layer in layers)  # no autograd around it when decoding
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias, layer.a, layer.b)]
    result: tuple[Tensor, ...] = _Project.apply(x, tuple(layer.scale for layer in layers), *tensors)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32 inside (Zhang & Sennrich 2019)."""
    result: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


def gated_mlp(x: Tensor, gate: LowRank, up: LowRank, down: LowRank) -> Tensor:
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""
    gated, linear_part = project(x, (gate, up))
    tensors = (down.weight, down.bias, down.a, down.b)
    result: Tensor = _GatedDown.apply(gated, linear_part, down.scale, *tensors)  # type: ignore[no-untyped-call]
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), the two halves of a head as real and imaginary part.

    Args:
        x: [tokens, heads, head_dim].
        cos, sin: [tokens, 1, head_dim / 2]; with -sin it turns back, which is also the backward pass.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor | None, b: Tensor | None, scale: float) -> Any:
    """x W^T + bias + scale · low B^T, with ``low`` = x A^T."""
    y = linear(x, weight, bias)
    return y if low is None or b is None else y.addmm_(low, b.to(x.dtype).t(), alpha=scale)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        layers = [tensors[i : i + 4] for i in range(0, len(tensors), 4)]
        matrices = {n: layer[2] for n, layer in enumerate(layers) if layer[2] is not None}
        lows: dict[int, Tensor] = {}
        if matrices:
            # One product with all A side by side instead of many thin ones.
            stacked = torch.cat(list(matrices.values())).to(x.dtype)
            ranks = [len(matrix) for matrix in matrices.values()]
            lows = dict(zip(matrices, torch.split(linear(x, stacked), ranks, dim=1), strict=True))
        ctx.save_for_backward(x, *tensors, *lows.values())
        ctx.updated, ctx.scales = list(lows), scales
        return tuple(
            _forward(x, weight, bias, lows.get(n), b, scales[n])  # type: ignore[arg-type]
            for n, (weight, bias, _, b) in enumerate(layers)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        count = len(ctx.scales)
        layers = [saved[4 * n : 4 * n + 4] for n in range(count)]
        lows = dict(zip(ctx.updated, saved[4 * count :], strict=True))
        result: list[Tensor | None] = []
        dx: Tensor | None = None
        throughs: dict[int, Tensor] = {}
        for n, (layer, g) in enumerate(zip(layers, gradients, strict=True)):
            wanted = ctx.needs_input_grad[2 + 4 * n : 6 + 4 * n]
            result += _layer_backward(g, x, lows.get(n), layer, ctx.scales[n], wanted)
            if ctx.needs_input_grad[0]:
                dx = g @ layer[0] if dx is None else dx.addmm_(g, layer[0])
            if n in lows:
                throughs[n] = _through(g, layer[3], ctx.scales[n])
        if throughs:
            slopes = _a_backward(list(throughs.values()), [layers[n][2] for n in throughs], x, dx)
            for n, slope in zip(throughs, slopes, strict=True):
                result[4 * n + 2] = slope
        return dx, None, *result


def _layer_backward(
    g: Tensor, x: Tensor, low: Tensor | None, layer: list[Tensor], scale: float, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of weight, bias, A (left to :func:`_a_backward`) and B, each None where nobody asks."""
    weight = g.t() @ x if wanted[0] else None
    bias = g.sum(0) if wanted[1] else None
    db = (g.t() @ low).mul_(scale).to(layer[3].dtype) if low is not None and wanted[3] else None
    return [weight, bias, None, db]


def _through(g: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · g B, [tokens, rank]: what reaches x A^T."""
    return (g @ b.to(g.dtype)).mul_(scale)


def _a_backward(throughs: list[Tensor], matrices: list[Tensor], x: Tensor, dx: Tensor | None) -> list[Tensor]:
    """Gradients of all A that read ``x``, in one product, and in place what reaches ``x`` through them added to ``dx``.

    Args:
        throughs: :func:`_through` of each layer, [tokens, rank].
    """
    stacked = torch.cat(throughs, 1)
    if dx is not None:
        dx.addmm_(stacked, torch.cat(matrices).to(stacked.dtype))
    slopes = torch.split(stacked.t() @ x, [len(matrix) for matrix in matrices])
    return [slope.to(matrix.dtype) for slope, matrix in zip(slopes, matrices, strict=True)]


class _GatedDown(torch.autograd.Function):
    """down(silu(gated) · linear_part); the product inside is computed again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, gated: Tensor, linear_part: Tensor, scale: float, *tensors: Tensor | None) -> Tensor:
        weight, bias, a, b = tensors
        inner = silu(gated).mul_(linear_part)
        low = None if a is None else linear(inner, a.to(inner.dtype))
        ctx.save_for_backward(gated, linear_part, low, *tensors)
        ctx.scale = scale
        return _forward(inner, weight, bias, low, b, scale)  # type: ignore[arg-type, no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gated, linear_part, low, *layer = ctx.saved_tensors
        activated = silu(gated)
        wanted = ctx.needs_input_grad[3:]
        inner = activated * linear_part if wanted[0] or low is not None else activated
        grads = _layer_backward(g, inner, low, layer, ctx.scale, wanted)
        d_inner = g @ layer[0]
        if low is not None:
            (grads[2],) = _a_backward([_through(g, layer[3], ctx.scale)], [layer[2]], inner, d_inner)
        d_linear = activated.mul_(d_inner)
        d_gated = torch.ops.aten.silu_backward(d_inner.mul_(linear_part), gated)
        return d_gated, d_linear, None, *grads


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = wide * inverse
        return normed.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        wide, slope = _wide(x), _wide(g)
        d_weight = (slope * wide).mul_(inverse).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        slope = slope * weight
        shared = torch.linalg.vecdot(slope, wide).unsqueeze(-1).mul_(inverse * inverse).div_(x.shape[-1])
        return slope.addcmul_(wide, shared, value=-1).mul_(inverse).to(x.dtype), d_weight, None


def _wide(x: Tensor) -> Tensor:
    """``x`` in at least float32."""
    return x if x.dtype == torch.float64 else x.float()
