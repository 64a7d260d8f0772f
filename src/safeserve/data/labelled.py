"""What a labelled answer and a set of them are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safeserve.data.ngrams import normalised
from safeserve.data.records import Message

Asks = Literal["unsafe", "refusal", "less harmful", "better"]
"""What labels say of an answer, or which one of a pair people preferred, and as what."""
PAIRS: tuple[Asks, ...] = ("less harmful", "better")


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer and what was said of it.

    Attributes:
        prompt: the last turn of the user.
        unsafe: share of raters who called it unsafe, 0 to 1; None where the set does not ask.
        refusal: full_compliance, full_refusal or partial_refusal; None where the set does not ask.
        category: the set's own (several joined by "|"), or the model that answered.
        others: what published judges said of the same answer, by name (higher = more unsafe).
        pair: the two answers that share it answer one prompt, and the one with the higher ``unsafe`` was judged worse.
        before: earlier turns of the conversation, where the set keeps them apart.
    """

    id: str
    prompt: str
    response: str
    unsafe: float | None = None
    refusal: str | None = None
    category: str = ""
    others: tuple[tuple[str, float], ...] = ()
    pair: str | None = None
    before: tuple[Message, ...] = ()

    @property
    def group(self) -> str:
        """The prompt, normalised: rows of one group never stand on both sides of a split."""
        return normalised(self.prompt)


@dataclass(frozen=True)
class LabelledSet:
    """Where labelled answers come from and what their labels answer."""

    name: str
    asks: Asks
    licence: str
    source: str
    read: Callable[[Path], Iterator[LabelledAnswer]]
    files: tuple[str, ...] = ()
    permissive: bool = False
