"""Model folders that cannot be read: which file is to blame and what to do, instead of a library's own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safeserve.core.errors import SafeserveError, UserError
from safeserve.core.runs import read_json

Part = Literal["tokenizer", "model", "adapter", "chat template"]
FILES: dict[Part, tuple[str, ...]] = {
    "tokenizer": ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    "model": ("config.json", "generation_config.json"),
    "adapter": ("adapter_config.json",),
    "chat template": (),
}
"""The JSON files of each part, the likeliest first."""
_MEANT: dict[Part, str] = {
    "tokenizer": "tokenizer_config.json, tokenizer.json or config.json",  # which names the tokenizer's kind
    "model": "config.json or the weights",
    "adapter": "adapter_config.json or the adapter's weights",
    "chat template": "the chat template",
}
REMEDY = "Copy it again from where the model comes from."
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
        UserError: it is broken; with the remedy.
    """
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error} {REMEDY}") from None


@contextmanager
def blamed(folder: Path | None, part: Part) -> Iterator[None]:
    """Put errors of libraries that read a part of a folder into words of ours; None (a hub id) leaves them alone.

    Raises:
        UserError: that file and line where it is no JSON object, else the files of the part with the library's reason.
    """
    try:
        yield
    except (SafeserveError, MemoryError):
        raise
    except Exception as error:  # the libraries raise KeyError, TypeError and worse for what stands in a file
        if folder is None or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        if isinstance(error, OSError) and "safetensors" in str(error):  # nothing is broken, so copying helps nobody
            raise UserError(
                f"{folder}: this model cannot be loaded: it has no weights in safetensors. Only safetensors are "
                "loaded, because other formats can run code; many repositories hold a commit with converted weights."
            ) from None
        for name in FILES[part]:
            if (folder / name).exists():
                read_config(folder / name)
        raise UserError(
            f"{folder}: this model cannot be loaded: {_MEANT[part]} cannot be used ({_reason(error)}). {REMEDY}"
        ) from None


def _reason(error: Exception) -> str:
    """The library's message on one line, with the error's kind where the message alone says nothing."""
    if "mismatched_sizes" in str(error):
        return "the weights have other shapes than config.json says"
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).strip().removesuffix(".")
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
