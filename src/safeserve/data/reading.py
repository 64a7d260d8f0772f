"""Reading tables from files: JSONL, JSON (list of objects or object of columns), CSV, TSV, Parquet; also gzipped."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import iter_jsonl, json_refusal, open_text, parse_json, read_text

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class RawRow:
    """One row of a file; ``number`` counts from 1 in ``unit`` (a line of the file or a row of the table)."""

    number: int
    unit: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used, and why."""

    file: str
    line: int
    message: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}: {self.message}"


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, without ``.gz``; "" when it is none of :data:`FORMATS`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


def read_rows(path: Path) -> list[RawRow]:
    """All rows of a file.

    Raises:
        UserError: no such file, an unknown format, or content that does not parse (with its line).
        EnvironmentFault: the file cannot be read, or Parquet without pyarrow installed.
    """
    kind = file_format(path)
    if kind == ".parquet":
        rows = _parquet(path)
    elif kind in (".csv", ".tsv"):
        rows = list(_separated(path, "\t" if kind == ".tsv" else ","))
    elif kind == ".json":
        rows = _json(path)
    elif kind:
        rows = [RawRow(number, "line", values) for number, values in iter_jsonl(path)]
    elif path.exists():
        raise UserError(f"{path}: unknown format. Known: {', '.join(FORMATS)}, each also with .gz.")
    else:
        raise UserError(f"{path}: no such file.")
    if not rows:
        raise UserError(f"{path}: holds no rows.")
    return rows


def _json(path: Path) -> list[RawRow]:
    text = read_text(path)
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        line = ""
        if isinstance(error, json.JSONDecodeError):
            if error.msg == "Extra data":  # JSON lines under the name .json, as many hubs publish them
                return [RawRow(number, "line", values) for number, values in iter_jsonl(path)]
            line = f" line {error.lineno}"
        raise UserError(f"{path}{line}: not valid JSON ({json_refusal(error)}).") from None
    if isinstance(value, dict):
        value = _from_columns(path, value)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of objects or an object of lists, found {type(value).__name__}.")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number}: expected an object, found {type(row).__name__}.")
    return [RawRow(number, "row", row) for number, row in enumerate(value, 1)]


def _from_columns(path: Path, table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``{"instructions": [...], "inputs": []}``; empty columns (Safety-Tuned LLaMAs has them) are left out."""
    columns = {name: column for name, column in table.items() if isinstance(column, list) and column}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: the columns have different lengths ({lengths}), so rows cannot be told apart.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _separated(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(1 << 30)
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(reader, [])]
            if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                raise UserError(f'{path} line 1: the column "{twice[0]}" stands twice. Give each its own name.')
            start = reader.line_num + 1
            for cells in reader:
                if any(cells):
                    if len(cells) != len(header):
                        raise UserError(
                            f"{path} line {start}: {len(cells)} fields, but the header names {len(header)}. "
                            "Quote a text that contains the separator or a line break."
                        )
                    yield RawRow(start, "line", dict(zip(header, cells, strict=True)))
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: not a valid table ({error}).") from None


def _parquet(path: Path) -> list[RawRow]:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise EnvironmentFault(f'{path}: Parquet needs pyarrow. Install it: pip install "safeserve[data]".') from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}).") from None
    return [RawRow(number, "row", row) for number, row in enumerate(rows, 1)]
