"""Rows of a JSON-lines file as a mapping that holds their places in the file, not the rows: memory for keys alone."""

from __future__ import annotations

import json
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from safeserve.core.errors import UserError
from safeserve.core.runs import open_bytes

K = TypeVar("K")
V = TypeVar("V")


class StoredRows(Mapping[K, V]):
    """A row is read and parsed again whenever it is asked for; ``items()`` and ``values()`` open the file once.

    Args:
        path: plain JSON lines, not compressed.
        places: key to the byte at which its line begins, in the order to iterate in.
        parse: makes a value of a row.

    Raises:
        UserError: on reading, where the file is not the one that the places were taken from any more.
    """

    def __init__(self, path: Path, places: Mapping[K, int], parse: Callable[[dict[str, Any]], V]) -> None:
        self._path, self._places, self._parse = path, places, parse
        self._made = self._state()

    def __getitem__(self, key: K) -> V:
        place = self._places[key]
        with self._open() as file:
            return self._read(file, place)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[K]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def items(self) -> ItemsView[K, V]:
        """Keys and rows, read one by one."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Rows, read one by one."""
        return _Values(self)

    def pairs(self) -> Iterator[tuple[K, V]]:
        """Keys and rows from one pass over the file."""
        with self._open() as file:
            for key, place in self._places.items():
                yield key, self._read(file, place)

    def _read(self, file: IO[bytes], place: int) -> V:
        file.seek(place)
        return self._parse(json.loads(file.readline().decode("utf-8" if place else "utf-8-sig")))

    def _state(self) -> tuple[int, int]:
        told = self._path.stat()  # no inode: some mounted drives give another one each time
        return told.st_size, told.st_mtime_ns

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with open_bytes(self._path) as file:
            if self._state() != self._made:
                raise UserError(f"{self._path}: changed while it was being read. Run the same command again.")
            yield file


class _Items(ItemsView[K, V]):
    _mapping: StoredRows[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.pairs()


class _Values(ValuesView[V]):
    _mapping: StoredRows[Any, V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping.pairs())
