"""The one extension mechanism: ``module:object`` names an own judge, reward, benchmark or selection rule."""

from __future__ import annotations

import importlib
from typing import Any

from safeserve.core.errors import UserError


def load_object(name: str) -> Any:
    """Import ``module:object``.

    Raises:
        UserError: not of that form, the module or the object is not there, or the module fails.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"{name}: expected module:object.")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{name}: module "{module}" cannot be imported ({error}). Is its folder in PYTHONPATH?'
        ) from None
    except Exception as error:  # whatever the user's own code does wrong
        raise UserError(f'{name}: module "{module}" cannot be imported: {type(error).__name__}: {error}') from None
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise UserError(f'{name}: module "{module}" has no "{attribute}".') from None
