"""Decoding in slots: a finished answer's slot takes the next prompt at once, within one and the same forward pass.

Keys and values lie in place from the start, never copied to grow. What all prompts begin with (a template's system
message) is computed once, and a prompt with several samples once for all of them. A new prompt's tokens and the running
answers' next tokens go through the linear layers together; only the attention tells them apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from safeserve.generation.drafts import Drafts
from safeserve.generation.engine import Row
from safeserve.generation.graphs import Capture, GraphedStep, capture_on_gpu
from safeserve.models.decoder import Decoder
from safeserve.models.kernels import rotate

PREFILL_TOKENS = 2048
"""Most prompt tokens in one forward pass."""
BLOCK_SLOTS = {"cpu": 16}
"""Slots whose attention is computed together, as far as the longest of them reaches; all of them on other devices."""
REFILL_SHARE = 16
"""New prompts wait until one slot in so many is free: each step with a prompt in it has the attention of two."""


View = tuple[slice, int, Tensor]
"""Neighbouring slots, how many of their positions are looked at, and by whom: bool [slots, 1, 1, positions]."""


@dataclass(frozen=True)
class Unit:
    """One prompt and the numbers of the answers to write to it."""

    ids: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Arrivals:
    """Prompts that enter in this step.

    Attributes:
        width: tokens of the longest, without the common beginning; the others are padded on the right.
        tokens: where each token lies in the padded [prompts · width], [tokens].
        last: index of each answer's last prompt token among the flat ``tokens``, [answers].
        owners: the prompt of each answer, [answers].
    """

    units: tuple[Unit, ...]
    width: int
    tokens: Tensor
    last: Tensor
    owners: Tensor


def plan_units(rows: Sequence[Row], slots: int) -> list[Unit]:
    """Answers with the same prompt together, at most ``slots`` of them; prompts in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.ids, []).append(number)
    return [
        Unit(ids, tuple(numbers[at : at + slots]))
        for ids, numbers in groups.items()
        for at in range(0, len(numbers), slots)
    ]


def common_beginning(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all ``prompts`` begin with, short enough to leave each at least one token of its own."""
    first, last = min(prompts), max(prompts)
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: min(shared, min(map(len, prompts)) - 1)]


class SlotCache:
    """Keys and values of every layer: [slots, key heads, room, head_dim], a slot's tokens from position 0 on."""

    def __init__(self, decoder: Decoder, slots: int, room: int, dtype: torch.dtype) -> None:
        shape = decoder.shape
        size = (slots, shape.key_heads, room, shape.head_dim)
        # Zeros, not whatever was there: a weight of 0 on a NaN is a NaN. One tensor for all layers: the C library gives
        # a block of this size back as soon as it is freed, and keeps what is freed in pieces between smaller things.
        both = torch.zeros((2, shape.layers, *size), dtype=dtype, device=decoder.device)
        self.keys, self.values = (part.unbind(0) for part in both.unbind(0))

    @staticmethod
    def slot_bytes(decoder: Decoder, room: int, dtype: torch.dtype) -> int:
        """Memory of one slot."""
        shape = decoder.shape
        return 2 * shape.layers * shape.key_heads * room * shape.head_dim * dtype.itemsize

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first ``length`` positions of some slots over those of others."""
        device = self.keys[0].device
        source, target = (torch.tensor(slots, device=device) for slots in (sources, targets))  # sent once to a GPU
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]


class SlotDecoder:
    """Writes the answers of one wave.

    Args:
        head: the model's output embedding, states [some, hidden] to logits.
        dtype: of keys and values.
        capture: how steps without new prompts are recorded; None runs them as they are (on a GPU: CUDA graphs).
    """

    def __init__(
        self,
        decoder: Decoder,
        head: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        slots: int,
        cache_bytes: int,
        capture: Capture | None = None,
    ) -> None:
        self._decoder, self._head, self._dtype = decoder, head, dtype
        self._most_slots, self._cache_bytes = slots, cache_bytes
        self._device = decoder.device
        self._capture = capture_on_gpu() if capture is None and self._device.type == "cuda" else capture

    @torch.inference_mode()
    def write(self, rows: Sequence[Row], drafts: Drafts, max_new_tokens: int) -> None:
        """Fill ``drafts``."""
        room = max(len(row.ids) for row in rows) + max_new_tokens
        fitting = self._cache_bytes // SlotCache.slot_bytes(self._decoder, room, self._dtype)
        slots = min(len(rows), max(1, min(self._most_slots, fitting)))
        queue = deque(plan_units(rows, slots))
        self._beginning = common_beginning([unit.ids for unit in queue]) if len(queue) > 1 else ()
        self._cache = SlotCache(self._decoder, slots, room, self._dtype)
        graphed = GraphedStep(self._fixed_step, slots, room, self._device, self._capture) if self._capture else None
        if self._beginning:
            self._prefill_beginning()
        which: list[int] = []
        steps: list[int] = []
        lengths: list[int] = []
        tokens = torch.empty(0, dtype=torch.long, device=self._device)
        while queue or which:
            arrivals = self._arrivals(queue, slots - len(which), waiting=bool(which), slots=slots)
            if graphed is not None and arrivals is None:
                logits = graphed(tokens, lengths)
            else:
                logits = self._forward(tokens, lengths, arrivals)
            lengths = [length + 1 for length in lengths]
            for unit in arrivals.units if arrivals else ():
                which += unit.rows
                steps += [0] * len(unit.rows)
                lengths += [len(unit.ids)] * len(unit.rows)
            tokens, finished = drafts.add(self._tensor(which), self._tensor(steps), logits)
            steps = [step + 1 for step in steps]
            ended = finished.nonzero().squeeze(-1).tolist()
            if ended:
                kept = self._close(ended, lengths)
                which, steps, lengths = ([values[n] for n in kept] for values in (which, steps, lengths))
                tokens = tokens[self._tensor(kept)]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _arrivals(self, queue: deque[Unit], free: int, waiting: bool, slots: int) -> Arrivals | None:
        """The prompts that enter now: enough free slots to be worth it, and at most PREFILL_TOKENS tokens."""
        if not queue or (waiting and free < max(len(queue[0].rows), slots // REFILL_SHARE)):
            return None
        units: list[Unit] = []
        start, total = len(self._beginning), 0
        while queue and len(queue[0].rows) <= free:
            total += len(queue[0].ids) - start
            if units and total > PREFILL_TOKENS:
                break
            free -= len(queue[0].rows)
            units.append(queue.popleft())
        width = max(len(unit.ids) for unit in units) - start
        tokens: list[int] = []
        last: list[int] = []
        for number, unit in enumerate(units):
            tokens += range(number * width, number * width + len(unit.ids) - start)
            last += [len(tokens) - 1] * len(unit.rows)
        owners = [number for number, unit in enumerate(units) for _ in unit.rows]
        return Arrivals(tuple(units), width, self._tensor(tokens), self._tensor(last), self._tensor(owners))

    def _close(self, ended: list[int], lengths: list[int]) -> list[int]:
        """Move the last slots into those that ended, so that running answers fill the first slots again.

        Returns:
            For each slot that is now in use, which it was before.
        """
        gone = set(ended)
        left = len(lengths) - len(gone)
        holes = [slot for slot in ended if slot < left]
        movers = [slot for slot in range(left, len(lengths)) if slot not in gone]
        if holes:
            self._cache.move(movers, holes, max(lengths[slot] for slot in movers))
        moved = dict(zip(holes, movers, strict=True))
        return [moved.get(slot, slot) for slot in range(left)]

    def _prefill_beginning(self) -> None:
        """Compute what all prompts begin with, and put it into every slot."""
        count = len(self._beginning)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            query, key = rotate(q, cos, sin), rotate(k, cos, sin)
            self._cache.keys[layer][:, :, :count] = key.transpose(0, 1)
            self._cache.values[layer][:, :, :count] = v.transpose(0, 1)
            rows = [x.transpose(0, 1).unsqueeze(0) for x in (query, key, v)]
            return _attend(rows[0], rows[1], rows[2], _causal(count, 0, self._device))[0].transpose(0, 1).flatten(1)

        self._decoder.states(self._tensor(self._beginning), torch.arange(count, device=self._device), attention)

    def _forward(self, tokens: Tensor, lengths: list[int], arrivals: Arrivals | None) -> Tensor:
        """Logits of the next token of every running answer and of every one that starts, float32.

        Args:
            tokens: the running answers' last tokens, not yet in the cache, [running].
            lengths: tokens of each that are in the cache.
        """
        running, start = len(lengths), len(self._beginning)
        at = self._tensor(lengths)
        views = self._views(at, self._blocks(lengths))
        if arrivals is None:
            return self._step(tokens, at, views)
        own = [unit.ids[start:] for unit in arrivals.units]
        ids = torch.cat([tokens, self._tensor([token for part in own for token in part])])
        places = [place for part in own for place in range(start, start + len(part))]
        positions = torch.cat([at, self._tensor(places)])
        causal = _causal(arrivals.width, start, self._device)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            query, key = rotate(q, cos, sin), rotate(k, cos, sin)
            entered = self._enter(layer, running, arrivals, query[running:], key[running:], v[running:], causal)
            if not running:
                return entered
            continued = self._continue(layer, query[:running], key[:running], v[:running], at, views)
            return torch.cat([continued, entered])

        states = self._decoder.states(ids, positions, attention)
        states = torch.cat([states[:running], states[running:][arrivals.last]])
        return self._head(states).float()

    def _step(self, tokens: Tensor, at: Tensor, views: list[View]) -> Tensor:
        """Logits of the running answers' next tokens, float32, [running, vocabulary]; nothing here waits for a GPU.

        Args:
            tokens, at: the last tokens and their places in the slots, [running].
        """

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            return self._continue(layer, rotate(q, cos, sin), rotate(k, cos, sin), v, at, views)

        return self._head(self._decoder.states(tokens, at, attention)).float()

    def _fixed_step(self, tokens: Tensor, at: Tensor, longest: int) -> Tensor:
        """:meth:`_step` in shapes that depend on nothing but the arguments' own."""
        return self._step(tokens, at, self._views(at, [(slice(0, len(at)), longest)]))

    def _blocks(self, lengths: list[int]) -> list[tuple[slice, int]]:
        """Neighbouring slots, and how far the longest answer among them reaches with its new token."""
        size = BLOCK_SLOTS.get(self._device.type, len(lengths)) or 1
        return [(slice(n, n + size), max(lengths[n : n + size]) + 1) for n in range(0, len(lengths), size)]

    def _views(self, at: Tensor, blocks: list[tuple[slice, int]]) -> list[View]:
        place = at[:, None, None, None]
        return [(part, longest, torch.arange(longest, device=self._device) <= place[part]) for part, longest in blocks]

    def _continue(self, layer: int, query: Tensor, key: Tensor, value: Tensor, at: Tensor, views: list[View]) -> Tensor:
        """Attention of the running answers; their new keys and values go to their places ``at``."""
        keys, values = self._cache.keys[layer][: len(at)], self._cache.values[layer][: len(at)]
        slots = torch.arange(len(at), device=self._device)
        keys[slots, :, at] = key
        values[slots, :, at] = value
        mixed = [
            _attend(query[part].unsqueeze(2), keys[part, :, :longest], values[part, :, :longest], seen)
            for part, longest, seen in views
        ]
        return torch.cat(mixed).flatten(1)

    def _enter(
        self, layer: int, running: int, arrivals: Arrivals, query: Tensor, key: Tensor, value: Tensor, causal: Tensor
    ) -> Tensor:
        """Attention of entering prompts; their keys and values go into the slots behind the ``running`` ones."""
        start, count, width = len(self._beginning), len(arrivals.units), arrivals.width

        def padded(x: Tensor) -> Tensor:
            wide = x.new_zeros(count * width, *x.shape[1:]).index_copy_(0, arrivals.tokens, x)
            return wide.view(count, width, *x.shape[1:]).transpose(1, 2)

        keys, values = self._cache.keys[layer], self._cache.values[layer]
        query, key, value = padded(query), padded(key), padded(value)
        taken = slice(running, running + len(arrivals.owners))
        keys[taken, :, start : start + width] = key[arrivals.owners]
        values[taken, :, start : start + width] = value[arrivals.owners]
        if start:
            key = torch.cat([keys[:1, :, :start].expand(count, -1, -1, -1), key], dim=2)
            value = torch.cat([values[:1, :, :start].expand(count, -1, -1, -1), value], dim=2)
        mixed = _attend(query, key, value, causal)
        return mixed.transpose(1, 2).reshape(count * width, -1).index_select(0, arrivals.tokens)


def _causal(width: int, before: int, device: torch.device) -> Tensor:
    """True where a token may look: [1, 1, width, before + width]."""
    return torch.ones(1, 1, width, before + width, dtype=torch.bool, device=device).tril(before)


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Attention in which groups of query heads share a key head.

    Args:
        query: [rows, query heads, width, head_dim].
        key, value: [rows, key heads, length, head_dim]; may be views into a longer cache.
        allowed: True where to look, broadcast to [rows, query heads, width, length].

    Returns:
        [rows, query heads, width, head_dim].
    """
    rows, heads, width, dim = query.shape
    shared = key.shape[1]
    if width == 1:  # heads that share keys are so many queries of one head: the cache is read once, and no key repeated
        query = query.reshape(rows, shared, heads // shared, dim)
    elif query.device.type != "cpu":  # there the fused kernel takes a mask or shared key heads, not both
        key, value = (x.repeat_interleave(heads // shared, dim=1) for x in (key, value))
    mixed = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, enable_gqa=query.shape[1] != key.shape[1]
    )
    return mixed.reshape(rows, heads, width, dim)
