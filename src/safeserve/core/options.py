"""Base of every options class: frozen, typed, and an unknown key is an error that suggests the right one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Self, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from safeserve.core.errors import UserError, did_you_mean, placed

T = TypeVar("T")


class Options(BaseModel):
    """Frozen options; build them from untrusted mappings with :meth:`parse`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], where: str) -> Self:
        """Validate ``mapping``; ``where`` names it in messages (for example ``recipe.yaml: train.dpo``).

        Raises:
            UserError: an unknown key (with a suggestion), a value of the wrong kind, or keys that contradict.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: expected keys and values, found {type(mapping).__name__}.")
        try:
            with placed(where):  # a validator's own message does not know where the options stand
                return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise UserError(_explain(error, cls, where)) from None

    def changed(self) -> set[str]:
        """Options with another value than their default: what a recipe sets and a command line sets back is not one."""
        fields = type(self).model_fields
        return {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}


def typed(cls: type[T], row: Mapping[str, Any], where: str) -> T:
    """``row`` as an instance of the dataclass ``cls``; keys that it does not know are left out.

    Raises:
        UserError: a key is missing or its value of the wrong kind; ``where`` names file and line.
    """
    check: Callable[[Mapping[str, Any]], T] = _adapter(cast(Any, cls))  # a cached function forgets what it was given
    try:
        return check(row)
    except ValidationError as error:
        raise UserError(_explain(error, cls, where)) from None


@cache  # an adapter takes longer to make than thousands of rows to check
def _adapter(cls: Any) -> Callable[[Mapping[str, Any]], Any]:
    return TypeAdapter(cls).validate_python


def _explain(error: ValidationError, cls: type[Any], where: str) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, last = (str(part) for part in problem["loc"])
            lines.append(f'{where}: unknown key "{path}".{did_you_mean(last, _fields_at(cls, parents))}')
        elif problem["type"] == "missing":
            lines.append(f'{where}: key "{path}" is missing.')
        else:
            lines.append(f"{where}: {path or 'value'}: {problem['msg']} (found: {shortened(problem.get('input'))}).")
    return "\n".join(lines)


def shortened(value: object, most: int = 80) -> str:
    """A value as it is shown in a message: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def _fields_at(cls: type[BaseModel], parents: list[str]) -> set[str]:
    """Names of the keys that are known below ``parents``; none where that is not a group of options."""
    for parent in parents:
        field = cls.model_fields.get(parent)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return set()
        cls = inner
    return set(cls.model_fields)


def digest(text: str) -> str:
    """The sha256 of a text in hex; a half character (lone surrogate), which UTF-8 has no place for, counts as it is."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stable_hash(value: Any) -> str:
    """First 16 hex digits of the sha256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return digest(text)[:16]


def seed_for(*parts: object) -> int:
    """A seed in [0, 2**31) derived from the parts, for example (run seed, prompt id, k, iteration)."""
    return int(digest("\x1f".join(str(part) for part in parts))[:8], 16) & 0x7FFFFFFF
