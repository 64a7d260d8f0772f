"""The catalogue of sources: every name that data can be asked for by."""

from __future__ import annotations

from safeserve.core.errors import UserError, did_you_mean
from safeserve.data.catalogue_evaluation import EVALUATION_SOURCES
from safeserve.data.catalogue_training import TRAINING_SOURCES
from safeserve.data.source_types import STARTER, Holds, HubFile, Source, WebFile

__all__ = ["SOURCES", "STARTER", "Holds", "HubFile", "Source", "WebFile", "get_source"]

SOURCES: dict[str, Source] = {source.name: source for source in (*TRAINING_SOURCES, *EVALUATION_SOURCES)}


def get_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UserError: unknown name (with a suggestion).
    """
    if name not in SOURCES:
        raise UserError(
            f'data "{name}": no source of that name and no such file.{did_you_mean(name, SOURCES)} '
            "See them all with: safeserve data list."
        )
    return SOURCES[name]
