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


def attend_flat(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention within rows as ``layout`` allows it; differentiable.

    Args:
        q: [tokens, query heads, head_dim]; k, v: [tokens, key heads, head_dim], rotated.

    Returns:
        [tokens, query heads · head_dim].
    """
    global _flex_works
    if _flex_works:
        try:
            return flex(q, k, v, layout)
        except Exception as error:  # whatever the compiler raises: the other kernel computes the same
            _flex_works = False
            print(f"FlexAttention is not used here ({type(error).__name__}); masked SDPA is.", file=sys.stderr)
    return sdpa(q, k, v, layout)


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Rows padded to the longest, with the mask spelt out."""
    query, key, value = (layout.pad(x).transpose(1, 2) for x in (q, k, v))
    allowed = ~layout.blocked.unsqueeze(1)
    out = scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=True)
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

    count = len(layout.ids)
    row = torch.arange(layout.rows, device=layout.ids.device).unsqueeze(1).expand(-1, layout.width)
    rows = layout.unpad(row)
    segments = layout.unpad(layout.segments)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        answer = (segments[key] == 0) | (segments[key] == segments[query])
        return (rows[query] == rows[key]) & (query >= key) & answer

    return create_block_mask(seen, None, None, count, count, device=str(layout.ids.device), BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
