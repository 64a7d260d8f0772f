"""Texts that are read and not continued: what several of them begin with is computed once, and nothing is padded.

For judges, which want states of many (prompt, answer) under one prompt and no gradients. Training has rows of its own
(:mod:`safeserve.models.prefix`): there the last token is only ever predicted, here every token is read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from safeserve.models.kernels import rotate
from safeserve.models.prefix import Span

if TYPE_CHECKING:
    from safeserve.models.decoder import Decoder

BLOCK_KEYS = 1 << 12
"""Most keys, padding included, that the attention handles at a time; more at once is slower on a CPU (fresh memory)."""

Ids = Sequence[int]


@dataclass(frozen=True)
class Group:
    """Texts with the same beginning.

    Attributes:
        texts: their numbers.
        shared: so many tokens at their beginning are computed once; 0 for a text alone.
        tokens: what goes through the model for all of them.
        longest: tokens of the longest text.
    """

    texts: tuple[int, ...]
    shared: int
    tokens: int
    longest: int


def plan(texts: Sequence[Ids], keys: Sequence[Hashable], token_budget: int) -> list[list[Group]]:
    """All texts in batches of at most ``token_budget`` tokens, each shared token counted once; longest first.

    Args:
        keys: texts with equal keys share what they begin with, however little that is.
        token_budget: a longer text is a batch of its own; a group that is larger is cut, its beginning read again.
    """
    alike: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        alike.setdefault(key, []).append(number)
    groups = [group for numbers in alike.values() for group in _cut(texts, numbers, token_budget)]
    batches: list[list[Group]] = []
    room = 0
    for group in sorted(groups, key=lambda group: -group.longest):
        if not batches or group.tokens > room:
            batches.append([])
            room = token_budget
        batches[-1].append(group)
        room -= group.tokens
    return batches


def _cut(texts: Sequence[Ids], numbers: Sequence[int], token_budget: int) -> Iterator[Group]:
    """Groups within the budget of texts that share a beginning; every text keeps at least its last token to itself."""
    lengths = [len(texts[number]) for number in numbers]
    # All of some sequences begin as the first and the last of them in alphabetical order both do.
    first, last = (pick([tuple(texts[number]) for number in numbers]) for pick in (min, max))
    shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(lengths))
    shared = min(shared, min(lengths) - 1)
    part: list[int] = []
    total = shared
    for number in numbers:
        own = len(texts[number]) - shared
        if part and total + own > token_budget:
            yield _group(texts, part, shared)
            part, total = [], shared
        part.append(number)
        total += own
    yield _group(texts, part, shared)


def _group(texts: Sequence[Ids], part: Sequence[int], shared: int) -> Group:
    lengths = [len(texts[number]) for number in part]
    shared = shared if len(part) > 1 else 0
    return Group(tuple(part), shared, shared + sum(length - shared for length in lengths), max(lengths))


@dataclass(frozen=True)
class _Block:
    """Segments of similar length, padded: on the left before their prefix, on the right after their own tokens.

    Attributes:
        queries, keys: flat indices, [segments, most own tokens] and [segments, most before + most own tokens].
        allowed: bool [segments, 1, queries, keys]; None when it is the plain causal one.
        at, tokens: where the real queries are in the flattened ``queries``, and their flat indices, [real queries].
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor | None
    at: Tensor
    tokens: Tensor


class Batch:
    """Some groups, laid out flat.

    Args:
        texts: all texts.
        groups: which of them to read.

    Attributes:
        texts: numbers of the texts in the batch.
        where: for each of these the flat indices of its tokens, long [length].
        real: their tokens as if nothing was shared.
    """

    def __init__(self, texts: Sequence[Ids], groups: Sequence[Group], device: torch.device | str) -> None:
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Span] = []
        spans: list[tuple[Span, int]] = []
        self.texts: list[int] = []
        for group in groups:
            prefix, shared = len(ids), group.shared
            if shared:
                ids += texts[group.texts[0]][:shared]
                positions += range(shared)
                segments.append(Span(prefix, shared, prefix, 0))
            for number in group.texts:
                own = texts[number][shared:]
                segments.append(Span(len(ids), len(own), prefix, shared))
                spans.append((segments[-1], number))
                ids += own
                positions += range(shared, shared + len(own))
                self.texts.append(number)
        self.ids = torch.tensor(ids, dtype=torch.long, device=device)
        self.positions = torch.tensor(positions, dtype=torch.long, device=device)
        every = torch.arange(len(ids), device=device)
        self.where = [
            torch.cat([every[s.prefix : s.prefix + s.before], every[s.start : s.start + s.own]]) for s, _ in spans
        ]
        self.real = sum(len(indices) for indices in self.where)
        self._blocks = [_block(part, device) for part in _similar(segments)]

    def states(self, decoder: Decoder) -> Tensor:
        """States after the final norm, [at least the flat tokens, hidden]; see :meth:`Decoder.filled`."""
        return decoder.states(*decoder.filled(self.ids, self.positions), lambda _, *parts: self._attend(*parts))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if q.device.type != "cpu":  # on a GPU the fused kernel takes a mask or shared key heads, not both
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        out = torch.empty_like(q)
        out[len(self.ids) :] = 0  # tokens of no text
        for block in self._blocks:
            query, key, value = (
                x.index_select(0, at.flatten()).view(*at.shape, *x.shape[1:]).transpose(1, 2)
                for x, at in ((q, block.queries), (k, block.keys), (v, block.keys))
            )
            mixed = scaled_dot_product_attention(
                query, key, value, attn_mask=block.allowed, is_causal=block.allowed is None, enable_gqa=True
            )
            out.index_copy_(0, block.tokens, mixed.transpose(1, 2).flatten(0, 1).index_select(0, block.at))
        return out.flatten(1)


def _similar(segments: Sequence[Span]) -> Iterator[list[Span]]:
    """Segments in blocks of similar length, those that see a prefix apart from those that see none."""
    block: list[Span] = []
    keys = 0
    for segment in sorted(segments, key=lambda s: (s.before > 0, s.own, s.before)):
        wider = max(keys, segment.keys)
        if block and ((segment.before > 0) != (block[0].before > 0) or wider * (len(block) + 1) > BLOCK_KEYS):
            yield block
            block, wider = [], segment.keys
        block.append(segment)
        keys = wider
    yield block


def _block(segments: Sequence[Span], device: torch.device | str) -> _Block:
    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device).unsqueeze(1)

    start, length, prefix, before = (
        column([getattr(segment, name) for segment in segments]) for name in ("start", "own", "prefix", "before")
    )
    own = torch.arange(max(segment.own for segment in segments), device=device)
    seen = torch.arange(max(segment.before for segment in segments), device=device)
    # Padding reads the segment's first token: any will do, nobody sees what comes of it.
    queries = torch.where(own < length, start + own, start)
    offset = seen - len(seen) + before
    keys = torch.cat([torch.where(offset >= 0, prefix + offset, start), queries], dim=1)
    allowed = None
    if len(seen):
        causal = (own.unsqueeze(1) >= own).expand(len(segments), -1, -1)
        allowed = torch.cat([(offset >= 0).unsqueeze(1).expand(-1, len(own), -1), causal], dim=2).unsqueeze(1)
    at = (own < length).flatten().nonzero().squeeze(1)
    return _Block(queries, keys, allowed, at, queries.flatten()[at])
