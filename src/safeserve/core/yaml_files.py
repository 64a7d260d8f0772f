"""YAML that people write: safe types only, and a key that stands twice is an error and not silently the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from safeserve.core.errors import UserError
from safeserve.core.runs import read_text


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" stands twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The value that a file holds. Raises as :func:`~safeserve.core.runs.read_text` and :func:`load_yaml` do."""
    return load_yaml(read_text(path), str(path))


def load_yaml(text: str, where: str) -> Any:
    """The value that ``text`` holds; ``where`` names it in messages.

    Raises:
        UserError: not YAML (with the line), a key twice, a date that does not exist, or nested too deeply.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: not valid YAML ({error.problem}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML ({str(error).splitlines()[0]}).") from None
    except (ValueError, RecursionError, LookupError, AttributeError) as error:  # odd tags, such as !!bool x
        raise UserError(f"{where}: not valid YAML (a value cannot be read: {error}).") from None
