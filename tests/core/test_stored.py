"""Rows that stay in their file: the same mapping as a dict of them, and never the rows of another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeserve.core.errors import UserError
from safeserve.core.runs import placed_jsonl, write_jsonl, write_text
from safeserve.core.stored import StoredRows


def stored(path: Path) -> StoredRows[str, dict[str, Any]]:
    return StoredRows(path, {row["id"]: place for _, place, row in placed_jsonl(path)}, dict)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=12))
def test_it_is_the_mapping_of_its_rows(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    expected = {name: {"id": name, "text": text} for name, text in texts.items()}
    write_jsonl(path, expected.values())
    rows = stored(path)
    assert rows == expected
    assert len(rows) == len(expected)
    assert list(rows) == list(expected)
    assert list(rows.items()) == list(expected.items())
    assert list(rows.values()) == list(expected.values())
    for _ in range(2):  # a view may be read more than once
        assert [rows[name] for name in reversed(expected)] == list(reversed(expected.values()))
    assert "no such id" not in rows
    assert rows.get("no such id") is None


def test_empty_lines_and_a_byte_order_mark_move_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "n": 1}\r\n\n  \n{"id": "\xc3\xa9", "n": 2}\n{"id": "c", "n": 3}')
    assert [place for _, place, _ in placed_jsonl(path)] == [0, 28, 49]
    rows = stored(path)
    assert [rows[key]["n"] for key in ("c", "a", "é")] == [3, 1, 2]


def test_another_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"id": "a"}, {"id": "b"}])
    rows = stored(path)
    assert rows["b"] == {"id": "b"}
    write_text(path, json.dumps({"id": "bb"}) + "\n" + json.dumps({"id": "a"}) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl: changed while it was being read"):
        _ = rows["a"]
    with pytest.raises(UserError, match="Run the same command again"):
        list(rows.items())
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        list(rows.values())
