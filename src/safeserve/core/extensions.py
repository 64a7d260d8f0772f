"""The one extension mechanism: ``module:object`` names an own judge, reward, benchmark or selection rule."""

from __future__ import annotations

import importlib
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.core.runs import sha256_file


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


def source_hash(name: str) -> str:
    """Hash of the files that hold ``module:object``: the module's, and the one where the object itself is written.

    Raises:
        UserError: see :func:`load_object`, or the code is in no file, so that a change of it could not be noticed.
    """
    found = load_object(name)
    files = set()
    for thing in (importlib.import_module(name.partition(":")[0]), found):
        with suppress(TypeError):  # an instance, such as a partial function, has no file of its own
            files.add(inspect.getsourcefile(thing))
    hashes = sorted(sha256_file(Path(file)) for file in files if file is not None and Path(file).exists())
    if not hashes:
        raise UserError(f"{name}: its code is in no file. Write it in a Python file.")
    return stable_hash(hashes)
