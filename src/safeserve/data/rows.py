"""One row of a table on its way to a record: required and optional fields, and errors that name the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from safeserve.core.errors import did_you_mean
from safeserve.data.records import Kind, Label, Message, user

Prefer = Literal["auto", "better", "safer"]
LABELS: dict[str, Label] = {"harmful": "harmful", "unsafe": "harmful", "benign": "benign", "safe": "benign"}
_KINDS = ("helpful", "look_alike", "safety")


class RowError(ValueError):
    """Why a row cannot be used (without its place)."""


class Skip(Exception):
    """A row that the options leave out; the loader counts it by reason."""


@dataclass(frozen=True)
class Reading:
    """What is known about rows beside their columns; ``prefer`` is for pairs that publish two preferences."""

    prefix: str
    kind: str | None = None
    label: Label | None = None
    benchmark: str = ""
    prefer: Prefer = "auto"


@dataclass(frozen=True)
class Row:
    """One row during conversion."""

    values: Mapping[str, Any]
    number: int
    reading: Reading

    def first(self, *names: str) -> Any:
        """The first of the columns that is there and not None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def text(self, *names: str) -> str:
        """A required, non-empty text; several names are spellings of one column."""
        value = self.first(*names)
        if value is None:
            found = ", ".join(self.values) or "nothing"
            texts = [name for name, value in self.values.items() if isinstance(value, str)]
            other = max(texts, key=lambda name: len(self.values[name]), default="COLUMN")
            raise RowError(f'no "{names[0]}" field (found: {found}). Rename it, or pass --map {names[0]}={other}.')
        if not isinstance(value, str):
            raise RowError(f'"{names[0]}" is {type(value).__name__}, expected text.')
        if not value.strip():
            raise RowError(f'"{names[0]}" is empty.')
        return value.strip()

    def optional(self, *names: str) -> str:
        """A text, or "" where the column is missing or empty."""
        value = self.first(*names)
        return value.strip() if isinstance(value, str) else ""

    @property
    def id(self) -> str:
        """The row's own id, made unique across data sets when it is only a number; else its place in the file."""
        own = str(self.values["id"]).strip() if self.values.get("id") is not None else ""
        if own and not own.isdigit():
            return own
        return f"{self.reading.prefix}-{own or self.number}"

    @property
    def kind(self) -> Kind:
        kind = self.optional("kind") or self.reading.kind or "helpful"
        if kind not in _KINDS:
            raise RowError(f'kind "{kind}" is unknown.{did_you_mean(kind, _KINDS)}')
        return cast(Kind, kind)

    @property
    def label(self) -> Label:
        value = self.values.get("label")
        own = "" if value is None else str(value).strip().lower()
        if own in LABELS:
            return LABELS[own]
        if own:  # never overruled by what the rest of the file is: a wrong label would count on the wrong side
            raise RowError(f'label "{own}" is unknown. Known: {", ".join(LABELS)}.')
        if self.reading.label:
            return self.reading.label
        raise RowError('no "label" field. Say what the prompts are with --label harmful or --label benign.')

    def conversation(self, *names: str) -> tuple[Message, ...]:
        """A required prompt: a text (one user turn) or a list of messages."""
        value = self.first(*names)
        return as_messages(value, names[0]) if isinstance(value, list) else user(self.text(*names))

    def flag(self, name: str) -> bool | None:
        """True, false, or None where the column is missing or empty; texts as CSV has them are understood."""
        value = self.values.get(name)
        if isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False, "": None}.get(value.strip().lower(), value)
        if value is None or isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise RowError(f'"{name}" must be true or false (found: {value!r}).')


def as_messages(value: list[Any], name: str) -> tuple[Message, ...]:
    """Check a list of messages.

    Raises:
        RowError: an item is not ``{"role": ..., "content": ...}`` or a role is unknown.
    """
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("content"), str):
            raise RowError(f'"{name}" must hold messages such as {{"role": "user", "content": "..."}}.')
        if item.get("role") not in ("system", "user", "assistant"):
            raise RowError(f'"{name}": unknown role "{item.get("role")}". Known: system, user, assistant.')
        messages.append({"role": item["role"], "content": item["content"].strip()})
    if not messages:
        raise RowError(f'"{name}" is empty.')
    return tuple(messages)
