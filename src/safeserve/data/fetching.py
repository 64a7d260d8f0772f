"""Fetching a source's file: once, into the cache, pinned by revision or sha256."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import sha256_file, write_bytes
from safeserve.data.catalogue import STARTER, HubFile, Source, WebFile

TIMEOUT_SECONDS = 60


def locate(source: Source, root: Path | None = None) -> Path:
    """The file of a source: packaged, below ``root``, or fetched into the cache.

    A given root is binding: a file that it lacks is an error, never silently fetched from elsewhere.

    Raises:
        UserError: the root or its file is missing, or there is neither a root nor a public address.
        EnvironmentFault: the fetch failed.
    """
    if source.is_starter:
        return STARTER / source.local
    if root is not None:
        if not root.is_dir():
            raise UserError(f"data.root: {root} is not a folder. Pass the folder that holds your data: data.root=PATH.")
        path = root / source.local
        if not path.is_file():
            fetchable = f", or fetch it there: safeserve data get {source.name} --root {root}" if source.remote else ""
            raise UserError(
                f'data "{source.name}": {path} does not exist. Put the file there, point data.root=PATH at the folder '
                f"that holds {source.local}{fetchable}."
            )
        return path
    if source.remote is None:
        raise UserError(
            f'data "{source.name}": no public address is pinned for it. Pass data.root=PATH, a folder that holds '
            f"{source.local}."
        )
    return fetch(source)


def fetch(source: Source) -> Path:
    """The cached file of a source with a public address, fetched if need be.

    Raises:
        UserError: the source has no public address.
        EnvironmentFault: no network, or content whose sha256 is not the pinned one.
    """
    if isinstance(source.remote, HubFile):
        return _from_hub(source, source.remote)
    if isinstance(source.remote, WebFile):
        return _from_web(source, source.remote)
    raise UserError(f'data "{source.name}": nothing to fetch.')


def fetch_into(source: Source, root: Path) -> Path:
    """Fetch a source's file and put it below ``root`` where :func:`locate` looks; what is there already is kept.

    Raises:
        UserError: no public address, or one whose file has another format than the one expected below a root.
        EnvironmentFault: the fetch failed, or the folder cannot be written.
    """
    path = root / source.local
    if path.is_file():
        return path
    if source.remote is None:
        raise UserError(f'data "{source.name}": no public address is pinned for it. Put your file at {path}.')
    fetched = fetch(source)
    if fetched.suffixes[-1:] != path.suffixes[-1:]:
        raise UserError(
            f'data "{source.name}": what is published ({fetched.name}) is not the file {source.local}. '
            "Leave --root out; without data.root the published file is used."
        )
    write_bytes(path, fetched.read_bytes())
    return path


def _remedy(source: Source) -> str:
    return f"Check the network, or pass data.root=PATH, a folder that holds {source.local}."


def _from_hub(source: Source, remote: HubFile) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(remote.repo, remote.file, repo_type="dataset", revision=remote.revision)
    except Exception as error:  # the hub client's errors share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f'data "{source.name}": could not fetch {remote.file} of {remote.repo} ({reason}). {_remedy(source)}'
        ) from error
    return Path(path)


def _from_web(source: Source, remote: WebFile) -> Path:
    path = _cached(remote)
    if path.is_file() and remote.sha256 in (None, sha256_file(path)):
        return path
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EnvironmentFault(
            f'data "{source.name}": could not fetch {remote.url} ({reason}). {_remedy(source)}'
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if remote.sha256 is not None and found != remote.sha256:
        raise EnvironmentFault(
            f'data "{source.name}": {remote.url} has sha256 {found[:16]}..., expected {remote.sha256[:16]}...: '
            f"the download is damaged or the file has changed. {_remedy(source)}"
        )
    write_bytes(path, content)
    return path


def _cached(remote: WebFile) -> Path:
    pin = remote.sha256 or hashlib.sha256(remote.url.encode()).hexdigest()
    return data_cache() / pin[:16] / remote.url.rsplit("/", 1)[-1]


def data_cache() -> Path:
    """``$SAFESERVE_CACHE/data``, else ``data`` in safeserve's folder of the user's cache."""
    base = os.environ.get("SAFESERVE_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "safeserve")
    return Path(base) / "data"


def availability(source: Source, root: Path | None = None) -> str:
    """Where :func:`locate` would take the source from, in words."""
    if source.is_starter:
        return "with the package"
    if root is not None:
        return "under data.root" if (root / source.local).is_file() else "missing under data.root"
    if isinstance(source.remote, HubFile):
        return f"hub: {source.remote.repo}"
    if isinstance(source.remote, WebFile):
        cached = _cached(source.remote).is_file()
        return "in the cache" if cached else "web: " + source.remote.url.split("/")[2]
    return "needs data.root"
