"""Rows that share a prefix: [prompt | answer | answer ...], laid out flat, and the attention over them.

Every answer sees the prompt and itself and takes up positions where the prompt ends, so each gives the same numbers as
a row of its own, while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from safeserve.models.gpu_attention import attend_flat
from safeserve.models.kernels import rotate

KEPT_WIDTH = 256
"""Up to this many tokens a row the attention weights are kept for the backward pass; beyond, computed again."""


@dataclass(frozen=True)
class SharedRow:
    """A prompt and the answers to it, as token ids; the last token of an answer is only ever predicted."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


@dataclass
class Layout:
    """Shared rows as flat tensors.

    Attributes:
        ids, positions: [tokens], row after row without padding.
        predictors: indices into the flat tokens whose state predicts an answer's token, [answer tokens], by row,
            answer and position.
        targets: the answers' tokens, [answer tokens].
        owners: for each of them the number of its answer, counted over all rows, [answer tokens].
        answers: how many answers there are.
        slots: where each flat token lies in the padded [rows · width], [tokens]; None when all rows are equally long.
        segments: 0 in a prompt, then the number of the answer from 1, -1 on padding, [rows, width].
        block_mask: FlexAttention's form of the mask, kept by its user.
    """

    ids: Tensor
    positions: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    answers: int
    rows: int
    width: int
    slots: Tensor | None
    segments: Tensor
    block_mask: Any = field(default=None, repr=False)
    _blocked: Tensor | None = field(default=None, repr=False)

    def pad(self, x: Tensor) -> Tensor:
        """[tokens, ...] to [rows, width, ...]; padding is zero."""
        if self.slots is not None:
            room = x.new_zeros(self.rows * self.width, *x.shape[1:])
            x = room.index_copy(0, self.slots, x) if x.requires_grad else room.index_copy_(0, self.slots, x)
        return x.reshape(self.rows, self.width, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pad`."""
        flat = x.reshape(self.rows * self.width, *x.shape[2:])
        return flat if self.slots is None else flat.index_select(0, self.slots)

    @property
    def blocked(self) -> Tensor:
        """True where a query (second last dimension) must not see a key, bool [rows, width, width].

        Made when first asked for: a kernel that works from ``segments`` never needs it.
        """
        if self._blocked is None:
            own = self.segments
            same = (own.unsqueeze(1) == own.unsqueeze(2)) | (own == 0).unsqueeze(1)
            later = torch.ones(self.width, self.width, dtype=torch.bool, device=own.device).triu(1)
            blocked = ~same | later
            # Padding sees itself, or its softmax would have nothing to divide by.
            blocked.diagonal(dim1=1, dim2=2).fill_(False)
            self._blocked = blocked
        return self._blocked


def lay_out(rows: Sequence[SharedRow], device: torch.device | str) -> Layout:
    """Flatten ``rows``; see :class:`Layout`."""
    width = max(row.length for row in rows)
    segments = torch.full((len(rows), width), -1, dtype=torch.int32)
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    slots: list[int] = []
    answers = 0
    for number, row in enumerate(rows):
        start, border = len(ids), len(row.prompt)
        ids += row.prompt
        positions += range(border)
        segments[number, :border] = 0
        for index, answer in enumerate(row.answers):
            at = len(ids)
            segments[number, at - start : at - start + len(answer) - 1] = index + 1
            ids += answer[:-1]
            positions += range(border, border + len(answer) - 1)
            predictors += (start + border - 1, *range(at, at + len(answer) - 1))
            targets += answer
            owners += [answers] * len(answer)
            answers += 1
        slots += range(number * width, number * width + row.length)
    padded = len(ids) < len(rows) * width

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Layout(
        ids=tensor(ids),
        positions=tensor(positions),
        predictors=tensor(predictors),
        targets=tensor(targets),
        owners=tensor(owners),
        answers=answers,
        rows=len(rows),
        width=width,
        slots=tensor(slots) if padded else None,
        segments=segments.to(device),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Attention within rows, as ``layout`` allows it.

    Args:
        q: [tokens, query heads, head_dim]; k, v: [tokens, key heads, head_dim], before the rotation.
        cos, sin: [tokens, 1, head_dim / 2].

    Returns:
        [tokens, query heads · head_dim].
    """
    if q.device.type != "cpu":
        return attend_flat(rotate(q, cos, sin), rotate(k, cos, sin), v, layout)
    result: Tensor = _Attend.apply(q, k, v, cos, sin, layout)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    """Plain products on a CPU: for rows this short faster than the fused kernel, forward and (more so) backward.

    Query heads that share a key head are stacked below one another, so keys are never repeated.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        heads, dim = k.shape[1], q.shape[2]
        group = q.shape[1] // heads
        rows, width = layout.rows, layout.width
        query = layout.pad(rotate(q, cos, sin)).view(rows, width, heads, group, dim).permute(0, 2, 3, 1, 4)
        query = query.reshape(rows * heads, group * width, dim)
        key = layout.pad(rotate(k, cos, sin)).transpose(1, 2).reshape(rows * heads, width, dim)
        value = layout.pad(v).transpose(1, 2).reshape(rows * heads, width, dim)
        weights = _weights(query, key, layout)
        out = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, cos, sin, out, weights if width <= KEPT_WIDTH else None)
        ctx.layout, ctx.group = layout, group
        return _to_tokens(out, layout, heads).reshape(len(q), -1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, cos, sin, out, weights = ctx.saved_tensors
        layout, group = ctx.layout, ctx.group
        rows, width, dim = layout.rows, layout.width, query.shape[-1]
        heads = len(key) // rows
        weights = _weights(query, key, layout) if weights is None else weights
        slope = layout.pad(g.view(len(g), heads, group, dim)).permute(0, 2, 3, 1, 4).reshape(query.shape)
        d_value = torch.bmm(weights.transpose(1, 2), slope)
        through = torch.bmm(slope, value.transpose(1, 2))
        through.sub_(torch.linalg.vecdot(slope, out).unsqueeze(-1)).mul_(weights).mul_(dim**-0.5)
        d_query, d_key = torch.bmm(through, key), torch.bmm(through.transpose(1, 2), query)
        dq = _to_tokens(d_query, layout, heads).flatten(1, 2)
        dk, dv = (
            layout.unpad(part.view(rows, heads, width, dim).transpose(1, 2)).contiguous() for part in (d_key, d_value)
        )
        return rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv, None, None, None


def _weights(query: Tensor, key: Tensor, layout: Layout) -> Tensor:
    """Softmax of the scaled scores, [rows · key heads, group · width, width]."""
    width = layout.width
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(query.shape[-1] ** -0.5)
    scores.view(layout.rows, -1, width, width).masked_fill_(layout.blocked.unsqueeze(1), float("-inf"))
    return torch.softmax(scores, -1)


def _to_tokens(x: Tensor, layout: Layout, heads: int) -> Tensor:
    """[rows · heads, group · width, dim] to [tokens, heads, group, dim]."""
    wide = x.view(layout.rows, heads, -1, layout.width, x.shape[-1])
    return layout.unpad(wide.permute(0, 3, 1, 2, 4))
