"""What a named source is: where it comes from, its licence, and how its rows are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safeserve.data.records import Kind, Label

Holds = Literal["demonstrations", "prompts", "pairs"]
STARTER = Path(__file__).with_name("starter")


@dataclass(frozen=True)
class HubFile:
    """One file of a data set on the Hugging Face hub at a pinned revision (a full commit hash)."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True)
class WebFile:
    """A file with a pinned address and the sha256 of its bytes; None where only the commit in the address pins it."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A named data set.

    ``local`` is its path below a data root (``data.root=PATH``); ``remote`` is where it is fetched from without one,
    None where no public address could be pinned. ``kind`` and ``label`` hold for rows that do not say themselves.
    """

    name: str
    holds: Holds
    use: str
    licence: str
    local: str
    remote: HubFile | WebFile | None = None
    adapter: str = "plain"
    map: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | None = None
    label: Label | None = None
    note: str = ""

    @property
    def is_starter(self) -> bool:
        """True for the data that ships with the package."""
        return self.name.startswith("starter/")


def github(repo: str, commit: str, path: str, sha256: str | None = None) -> WebFile:
    """A file of a public GitHub repository at a full commit hash."""
    return WebFile(f"https://raw.githubusercontent.com/{repo}/{commit}/{path}", sha256)


def bianchi(file: str, sha256: str, commit: str = "3ce5779d564ec1f3d87b0bef87261328c8abbd25") -> WebFile:
    """A file of Safety-Tuned LLaMAs, which both training and evaluation use."""
    return github("vinid/safety-tuned-llamas", commit, f"data/{file}", sha256)


CC_BY_NC = "CC BY-NC 4.0"
OWN = "Apache-2.0"
