"""The contract of a judge and what it returns: a value, or unscored with a reason, never a silent default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from safeserve.core.options import Options
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` None means unscored, and then ``reason`` says why. ``evidence`` explains the label to a reader."""

    value: float | None
    label: str | None
    reason: str | None = None
    flags: tuple[str, ...] = ()
    evidence: str | None = None
    detail: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("an unscored Score needs a reason")


class NoOptions(Options):
    """The options of a judge that has none."""


NO_OPTIONS = NoOptions()


class Judge(Protocol):
    """Scores completions; ``identity`` is a hash of everything that could change a score.

    A built-in judge's class also has ``family`` (which metrics its scores support, see ``registry``), ``Options`` (a
    class of options) and is made as ``cls(name, options)``.
    """

    name: str
    identity: str

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]: ...
