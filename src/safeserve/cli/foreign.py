"""The options that read foreign completions, shared by the verbs that take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import typer

from safeserve.core.errors import UserError

if TYPE_CHECKING:
    from safeserve.data.records import Label
    from safeserve.evaluation.foreign import ForeignOptions

MAP = typer.Option(
    [], "--map", help="Foreign files: our field or a judge's name = the column, e.g. guard=llama_guard_response."
)
LABEL = typer.Option(None, "--label", help="Foreign files: the prompts are harmful or benign.")
BENCHMARK = typer.Option(None, "--benchmark", help="A single foreign file: its benchmark's name.")
JUDGE = typer.Option([], "--judge", help="Foreign files: judge their answers now; may be repeated.")


def foreign_options(
    mapping: list[str], label: str | None, benchmark: str | None = None, judges: list[str] | None = None
) -> ForeignOptions:
    """The options as typed; several mappings may be joined by commas.

    Raises:
        UserError: a mapping without "=", or a label that is none.
    """
    from safeserve.cli.data import parse_map
    from safeserve.evaluation.foreign import ForeignOptions

    if label not in (None, "harmful", "benign"):
        raise UserError(f'--label {label}: prompts are "harmful" or "benign".')
    pairs = parse_map([pair for given in mapping for pair in given.split(",")])
    return ForeignOptions(pairs, cast("Label | None", label), benchmark, judges or ())
