"""What several verbs share: where runs lie, how results are printed."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError

RUNS = Path("runs")
STARTED = time.monotonic()
"""When the command began, near enough."""


def print_json(value: Any) -> None:
    """Machine-readable result on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def next_commands(*commands: str) -> None:
    """The commands worth typing next, on stderr."""
    print("\nNext:", file=sys.stderr)
    for command in commands:
        print(f"  {command}", file=sys.stderr)


def run_folder(name: str | None, out: Path | None, default: str) -> Path:
    """``--out`` as given, else ``runs/NAME``.

    Raises:
        UserError: both are given, or the name leads out of ``runs``.
    """
    if name is not None and out is not None:
        raise UserError("--name and --out: the first would be ignored. Give one of them.")
    if name is not None and (".." in Path(name).parts or Path(name).is_absolute()):
        raise UserError(f"--name {name}: leads out of {RUNS}. Use --out for another place.")
    return out if out is not None else RUNS / (name or default)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as typed, quoted so that it can be pasted."""
    return shlex.join(["safeserve", *(sys.argv[1:] if arguments is None else arguments)])


def quiet_libraries() -> None:
    """Keep third-party chatter off the terminal; called before a model is loaded."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("transformers", "torch", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
