"""One decoding step recorded as CUDA graphs: a small model's step is some hundred kernels, shorter than their launches.

A graph has fixed shapes, so running answers are counted up to a power of two and cache lengths up to a multiple of
``STRIDE``; each such pair of sizes is recorded when it is first met.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

STRIDE = 256
"""Lengths of the cache are rounded up to a multiple of this many tokens."""

_failed = False


def in_use() -> bool:
    """Whether no recording has failed so far in this process."""
    return not _failed


Step = Callable[[Tensor, Tensor, int], Tensor]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


def capture_on_gpu() -> Capture:
    """Records with one memory pool for all graphs, since only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in a first run, which must not be recorded
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = run()
        return graph.replay, out

    return capture


class GraphedStep:
    """A step without new prompts, replayed from a recording.

    Args:
        step: (last tokens [rows], tokens in the cache [rows], cache length to look at) to logits [rows, vocabulary].
            It writes each row's key and value at the row's own place, so running it twice changes nothing.
        slots: most rows.
        room: tokens a slot holds. The place ``room - 1`` of slots that are not in use is written to; what is there
            is overwritten before an answer gets so long.
    """

    def __init__(self, step: Step, slots: int, room: int, device: torch.device, capture: Capture) -> None:
        self._step, self._slots, self._room, self._capture = step, slots, room, capture
        self._ids = torch.zeros(slots, dtype=torch.long, device=device)
        self._at = torch.zeros(slots, dtype=torch.long, device=device)
        self._recorded: dict[tuple[int, int], tuple[Replay, Tensor]] = {}
        self._works = True

    def __call__(self, tokens: Tensor, lengths: list[int]) -> Tensor:
        """Logits of the running answers' next tokens, [running, vocabulary]; valid until the next call."""
        global _failed
        running = len(lengths)
        rows = min(self._slots, 1 << (running - 1).bit_length())
        longest = min(self._room, -(-(max(lengths) + 1) // STRIDE) * STRIDE)
        self._ids[:running] = tokens
        self._at.copy_(torch.tensor([*lengths, *[self._room - 1] * (self._slots - running)]))
        ids, at = self._ids[:rows], self._at[:rows]
        if self._works and (rows, longest) not in self._recorded:
            try:
                self._recorded[rows, longest] = self._capture(lambda: self._step(ids, at, longest))
            except RuntimeError as error:
                self._works, _failed = False, True
                name = type(error).__name__
                print(f"generate: CUDA graphs are not used here ({name}); decoding is slower.", file=sys.stderr)
        if not self._works:
            return self._step(ids[:running], at[:running], longest)
        replay, logits = self._recorded[rows, longest]
        replay()
        return logits[:running]
