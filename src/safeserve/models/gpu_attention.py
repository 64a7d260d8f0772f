"""Attention over shared rows on a GPU: FlexAttention on the flat tokens where it compiles, else masked SDPA."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from safeserve.models.prefix import Layout

BLOCK = 128
"""Tokens a side of the blocks that FlexAttention skips or computes."""

_flex_works = True
_mask_compiles = True


def flex_in_use() -> bool:
    """Whether FlexAttention has worked so far in this process."""
    return _flex_works


def leave_flex(error: Exception) -> None:
    """From now on the other kernel is taken, which computes the same."""
    global _flex_works
    _flex_works = False
    print(f"FlexAttention is not used here ({type(error).__name__}); masked SDPA is.", file=sys.stderr)


def attend_flat(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention within rows as ``layout`` allows it; differentiable.

    Args:
        q: [tokens, query heads, head_dim]; k, v: [tokens, key heads, head_dim], rotated.

    Returns:
        [tokens, query heads · head_dim].
    """
    if _flex_works:
        try:
            return flex(q, k, v, layout)
        except torch.OutOfMemoryError:  # says nothing about the kernel, and the other one takes more
            raise
        except Exception as error:  # whatever the compiler raises
            leave_flex(error)
    return sdpa(q, k, v, layout)


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Rows padded to the longest, with the mask spelt out."""
    # On a GPU the fused kernel takes a mask or shared key heads, not both.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    query, key, value = (layout.pad(x).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(query, key, value, attn_mask=~layout.blocked.unsqueeze(1))
    return layout.unpad(out.transpose(1, 2)).flatten(1)


def flex(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """All rows as one sequence without padding; blocks between rows, or between answers, are never computed."""
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if layout.block_mask is None:
        layout.block_mask = _block_mask(layout)
    out: Tensor = _compiled()(query, key, value, block_mask=layout.block_mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def _block_mask(layout: Layout) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    global _mask_compiles
    count = len(layout.ids)
    row = torch.arange(layout.rows, device=layout.ids.device).unsqueeze(1).expand(-1, layout.width)
    rows = layout.unpad(row)
    segments = layout.unpad(layout.segments)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        answer = (segments[key] == 0) | (segments[key] == segments[query])
        return (rows[query] == rows[key]) & (query >= key) & answer

    device = layout.ids.device
    if device.type == "cuda" and _mask_compiles:  # else all pairs of tokens are in memory before the blocks are
        try:
            return _compiled_mask()(seen, None, None, count, count, device=str(device), BLOCK_SIZE=BLOCK)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler raises
            _mask_compiles = False
            print(f"FlexAttention's mask is made uncompiled ({type(error).__name__}).", file=sys.stderr)
    return create_block_mask(seen, None, None, count, count, device=str(device), BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask)


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # fullgraph: where it would be recompiled once too often it is an error, and not the plain form without a word.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
