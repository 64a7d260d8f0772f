"""What the parts of a stage cost: seconds, and the tokens that they worked on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Costs:
    """Sums by part.

    Attributes:
        parts: part (``load``, ``generate``, ``judge``, ``sample``, ``train`` ...) to ``seconds`` and counts of tokens.
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def add(self, part: str, **amounts: float) -> None:
        """Add seconds or tokens to a part."""
        row = self.parts.setdefault(part, {})
        for name, amount in amounts.items():
            row[name] = round(row.get(name, 0) + amount, 2)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        started = time.monotonic()
        yield
        self.add(part, seconds=time.monotonic() - started)
