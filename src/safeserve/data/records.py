"""The records that flow through the project: Prompt, Demonstration, PreferencePair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic reads the one of typing only from Python 3.12 on

Label = Literal["harmful", "benign"]
Kind = Literal["helpful", "look_alike", "safety"]


class Message(TypedDict):
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return ({"role": "user", "content": text},)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages to answer.

    Attributes:
        reference: an ideal answer.
        answers: accepted short answers, in lower case.
        meta: what one kind of judge or engine needs besides: ``instructions`` (a list of ``{"id", "kwargs"}`` to
            check), ``choices`` (a list of ``{"label", "text"}``) with ``context`` (the text that a choice continues).
    """

    id: str
    messages: tuple[Message, ...]
    label: Label
    category: str = ""
    benchmark: str = ""
    reference: str | None = None
    answers: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """The last user turn."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "messages": list(self.messages),
            "label": self.label,
            "category": self.category,
            "benchmark": self.benchmark,
            "reference": self.reference,
            "answers": list(self.answers),
            **({"meta": self.meta} if self.meta else {}),
        }


@dataclass(frozen=True)
class Demonstration:
    """A prompt with its ideal response: what SIT learns from.

    ``complete`` is False for a sample that was cut off: its last token is not the end of an answer.
    """

    id: str
    messages: tuple[Message, ...]
    response: str
    kind: Kind
    category: str = ""
    complete: bool = True


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a preferred (``chosen``) and a dispreferred (``rejected``) response.

    ``chosen_safe`` and ``rejected_safe`` are None where the source does not say. ``kind`` tells what the pair
    teaches: safety (answer a harmful prompt safely), look_alike or helpful (answer instead of refusing).
    """

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    margin: float | None = None
    kind: str = ""
    category: str = ""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
