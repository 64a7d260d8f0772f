"""Frozen linear layers in oneDNN's own layout, for decoding on a CPU.

A decoding step multiplies a few dozen rows by every weight of the model. A plain product first copies each weight into
the layout of its kernel, in every step; here that is done once. (SmolLM2-135M in float32, 32 to 64 rows, two AVX2
cores: the products of the layers are 1.2 to 1.5 times as fast, the head's 1.9 to 2.5 times.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

FEW = 64
"""Rows that are multiplied as they are. More are filled up: oneDNN keeps code for every number of rows it ever met."""


def fill(rows: int, steps: int) -> int:
    """Rows to add to ``rows``, so that there are ``steps`` numbers of rows between a power of two and the next."""
    return -rows % max(1, (1 << rows.bit_length() - 1) // steps)


class Packed:
    """One or several linear layers that read the same input, as one product.

    The weights are copied: what changes them afterwards is not seen here.

    Args:
        layers: ``torch.nn.Linear`` on a CPU, all with a bias or none.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] to [rows, all the layers' outputs side by side]."""
        rows = len(x)
        if rows > FEW:  # by 2 % on average, to one of 16 numbers between a power of two and the next
            x = pad(x, (0, 0, 0, fill(rows, 16)))
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result[:rows]


class PackedLayer:
    """The linear layers of one decoder layer."""

    def __init__(self, projections: Sequence[Any], out: Any, mlp: Sequence[Any]) -> None:
        gate, up, down = mlp
        self._sizes = [layer.out_features for layer in projections]
        self._qkv, self.out = Packed(projections), Packed([out])
        self._gate_up, self._down = Packed([gate, up]), Packed([down])

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each [tokens, its width]."""
        return torch.split(self._qkv(x), self._sizes, dim=1)

    def mlp(self, x: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        gated, linear_part = self._gate_up(x).chunk(2, dim=1)
        return self._down(silu(gated).mul_(linear_part))


def can_pack(layers: Sequence[Any]) -> bool:
    """Whether these layers can be packed here: plain, on a CPU, in a dtype that oneDNN multiplies on this processor."""
    first = layers[0]
    if any(type(layer) is not torch.nn.Linear for layer in layers) or first.weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if len({layer.bias is None for layer in layers}) > 1 or first.weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    try:  # not part of torch's public interface
        if first.weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.inference_mode():
            x = torch.ones(1, first.in_features, dtype=first.weight.dtype)
            return bool(torch.allclose(Packed([first])(x), first(x), rtol=1e-2, atol=1e-2))
    except (AttributeError, RuntimeError, TypeError):
        return False
