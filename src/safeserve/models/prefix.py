"""Rows that share a prefix: [prompt | answer | answer ...], laid out flat, and the attention over them.

Every answer sees the prompt and itself and takes up positions where the prompt ends, so each gives the same numbers as
a row of its own, while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from safeserve.models.gpu_attention import attend_flat
from safeserve.models.kernels import rotate

KEPT_WIDTH = 256
"""Up to this many tokens a row the attention weights are kept for the backward pass; beyond, computed again."""

SPAN = 192
"""Longest part in which a causal row is taken: what a part's later tokens would see of nothing is not computed."""


@dataclass(frozen=True)
class SharedRow:
    """A prompt and the answers to it, as token ids; the last token of an answer is only ever predicted."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class Span:
    """Consecutive flat tokens, and the ones before them that they see: all of a prefix, and themselves causally.

    Attributes:
        start, own: the first of them, and how many they are.
        prefix, before: the first token of the prefix, and its length (may be 0).
    """

    start: int
    own: int
    prefix: int
    before: int

    @property
    def keys(self) -> int:
        """Tokens that are seen."""
        return self.before + self.own

    @property
    def follows(self) -> bool:
        """True where the tokens follow right after the prefix."""
        return self.prefix + self.before == self.start


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
        spans: each prompt with its first answer, and each further answer, as the attention on a CPU takes them.
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
    spans: tuple[Span, ...]
    block_mask: Any = field(default=None, repr=False)
    _blocked: Tensor | None = field(default=None, repr=False)
    _causal: dict[Span, Tensor] = field(default_factory=dict, repr=False)

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

    def causal(self, span: Span, group: int, dtype: torch.dtype) -> Tensor:
        """0 where a query of ``span`` sees a key, else -inf, [own · group, keys]: one for all heads and layers."""
        if (found := self._causal.get(span)) is None:
            hidden = torch.full((span.own, span.keys), float("-inf"), dtype=dtype).triu_(span.before + 1)
            found = self._causal[span] = hidden.repeat_interleave(group, 0)
        return found


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
    spans: list[Span] = []
    answers = 0
    for number, row in enumerate(rows):
        start, border = len(ids), len(row.prompt)
        ids += row.prompt
        positions += range(border)
        segments[number, :border] = 0
        for index, answer in enumerate(row.answers):
            at, own = len(ids), len(answer) - 1
            # The first answer follows the prompt, so both are one causal row.
            spans += [Span(at, own, start, border)] if index else _causal_spans(start, border + own)
            segments[number, at - start : at - start + own] = index + 1
            ids += answer[:-1]
            positions += range(border, border + own)
            predictors += (start + border - 1, *range(at, at + own))
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
        spans=tuple(span for span in spans if span.own),
    )


def _causal_spans(start: int, length: int) -> list[Span]:
    """A causal row of tokens in about equal parts of at most ``SPAN`` tokens, each seeing the ones before."""
    parts = -(-length // SPAN)
    borders = [length * part // parts for part in range(parts + 1)]
    return [Span(start + a, b - a, start, a) for a, b in pairwise(borders)]


def attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Attention within rows, as ``layout`` allows it.

    Args:
        q: [tokens, query heads, head_dim]; k, v: [tokens, key heads, head_dim], before the rotation. On a CPU more
            tokens may follow than ``layout`` has; zeros are given for them.
        cos, sin: [tokens, 1, head_dim / 2].

    Returns:
        [tokens, query heads · head_dim].
    """
    if q.device.type != "cpu":
        return attend_flat(rotate(q, cos, sin), rotate(k, cos, sin), v, layout)
    result: Tensor = _Attend.apply(q, k, v, cos, sin, layout)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    """Plain products on a CPU, span by span: for rows this short faster than the fused kernel, forward and (more so)
    backward, and nothing is computed that the mask would hide between answers or on padding.

    Query heads that share a key head lie below one another, so keys are never repeated.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        heads, group = k.shape[1], q.shape[1] // k.shape[1]
        query = _by_head(rotate(q, cos, sin), heads)
        key, value = _by_head(rotate(k, cos, sin), heads), _by_head(v, heads)
        out = torch.empty_like(query)
        out[:, len(layout.ids) :] = 0  # tokens of no row
        kept = []
        for span in layout.spans:
            weights = _weights(_part(query, span), _seen(key, span), layout.causal(span, group, q.dtype))
            _part(out, span).copy_(torch.bmm(weights, _seen(value, span)))
            kept.append(weights if span.keys <= KEPT_WIDTH else None)
        ctx.save_for_backward(query, key, value, cos, sin, out, *kept)
        ctx.layout = layout
        return _by_token(out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, cos, sin, out, *kept = ctx.saved_tensors
        layout, (heads, _, group, dim) = ctx.layout, query.shape
        slope = _by_head(g.view(len(g), heads * group, dim), heads)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        d_query[:, len(layout.ids) :] = 0
        for span, weights in zip(layout.spans, kept, strict=True):
            own, mine = _part(query, span), _part(slope, span)
            keys, values = _seen(key, span), _seen(value, span)
            if weights is None:
                weights = _weights(own, keys, layout.causal(span, group, own.dtype))
            _add(d_value, span, torch.bmm(weights.transpose(1, 2), mine))
            through = torch.bmm(mine, values.transpose(1, 2))
            through.sub_(torch.linalg.vecdot(mine, _part(out, span)).unsqueeze(-1)).mul_(weights).mul_(dim**-0.5)
            _part(d_query, span).copy_(torch.bmm(through, keys))
            _add(d_key, span, torch.bmm(through.transpose(1, 2), own))
        dq, dk, dv = (_by_token(x).view(len(g), -1, dim) for x in (d_query, d_key, d_value))
        return rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv, None, None, None


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[tokens, heads · group, dim] to [heads, tokens, group, dim]."""
    return x.view(len(x), heads, -1, x.shape[-1]).transpose(0, 1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    """The inverse, [tokens, heads · group · dim]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _part(x: Tensor, span: Span) -> Tensor:
    """A span's own tokens of x [heads, tokens, group, dim]: a view [heads, own · group, dim]."""
    return x[:, span.start : span.start + span.own].flatten(1, 2)


def _seen(x: Tensor, span: Span) -> Tensor:
    """What a span sees of x [heads, tokens, 1, dim], [heads, keys, dim]; a copy where the prefix lies apart."""
    if span.follows:
        return x[:, span.prefix : span.start + span.own, 0]
    return torch.cat([x[:, span.prefix : span.prefix + span.before, 0], _part(x, span)], dim=1)


def _add(x: Tensor, span: Span, part: Tensor) -> None:
    """Add ``part`` [heads, keys, dim] to where it came from in x [heads, tokens, 1, dim]."""
    if span.follows:
        x[:, span.prefix : span.start + span.own, 0] += part
        return
    x[:, span.prefix : span.prefix + span.before, 0] += part[:, : span.before]
    x[:, span.start : span.start + span.own, 0] += part[:, span.before :]


def _weights(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Softmax of the scaled scores, [heads, own · group, keys]."""
    scores = torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return torch.softmax(scores, -1)
