"""Samples as one flat table: a row a completion, the judges' scores as columns; CSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from safeserve.core.errors import EnvironmentFault
from safeserve.core.runs import jsonl_lines, readable
from safeserve.data.records import Prompt
from safeserve.evaluation.folder import EvalFolder, Key
from safeserve.generation.engine import Completion
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score

TableFormat = Literal["csv", "parquet", "jsonl"]
_COLUMNS: dict[str, str] = {
    "model": "string",
    "benchmark": "string",
    "id": "string",
    "k": "int",
    "prompt_label": "string",
    "category": "string",
    "prompt": "string",
    "messages": "json",
    "reference": "string",
    "answers": "json",
    "response": "string",
    "finish_reason": "string",
    "logprob_sum": "float",
    "prompt_tokens": "int",
    "response_tokens": "int",
    "error": "string",
}
_SCORE_COLUMNS = {
    "value": "float",
    "label": "string",
    "reason": "string",
    "evidence": "string",
    "flags": "json",
    "detail": "json",
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")
_QUOTE = "'"


def columns(judges: Sequence[str]) -> dict[str, str]:
    """Column names and kinds (string, int, float, json) of the table with these judges, in order."""
    return _COLUMNS | {f"{judge}.{part}": kind for judge in judges for part, kind in _SCORE_COLUMNS.items()}


def judges_of(folders: Iterable[EvalFolder]) -> list[str]:
    """Every judge that scored anything in them, by name."""
    return sorted({judge for folder in folders for part in folder.benchmarks.values() for judge in part.scores})


def sample_rows(folders: Sequence[EvalFolder]) -> list[dict[str, Any]]:
    """One row a completion, with the same columns in every row; None where there is nothing.

    A judge that did not score a benchmark has only empty cells there; what is no evidence (unscored, not finite, an
    unknown label) has a reason.
    """
    judges = judges_of(folders)
    return [
        _row(folder.model, name, part.prompts[key[0]], completion, judges, part.scores, key)
        for folder in folders
        for name, part in folder.benchmarks.items()
        for key, completion in part.completions.items()
    ]


def table_bytes(folders: Sequence[EvalFolder], form: TableFormat) -> bytes:
    """The table of :func:`sample_rows` as a file's content.

    Raises:
        EnvironmentFault: Parquet without pyarrow.
    """
    rows, kinds = sample_rows(folders), columns(judges_of(folders))
    if form == "parquet":
        return _parquet(rows, kinds)
    return (_csv(rows, kinds) if form == "csv" else "".join(jsonl_lines(rows))).encode()


def safe_cell(text: str) -> str:
    """``text`` such that no spreadsheet takes it for a formula: a ``'`` before what could begin one.

    A leading ``'`` gets one more, so that :func:`plain_cell` gives every text back.
    """
    start = text.lstrip(" ")[:1]
    return _QUOTE + text if start in _FORMULA or text.startswith(_QUOTE) else text


def plain_cell(cell: str) -> str:
    """The text that :func:`safe_cell` made ``cell`` from."""
    return cell.removeprefix(_QUOTE)


def token_count(completion: Completion) -> int | None:
    """Tokens of the answer; None where its tokens are unknown (a served model, completions of another tool)."""
    return None if completion.text and not completion.token_ids else len(completion.token_ids)


def _row(
    model: str,
    benchmark: str,
    prompt: Prompt,
    completion: Completion,
    judges: Sequence[str],
    scores: Mapping[str, Mapping[Key, Score]],
    key: Key,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": model,
        "benchmark": benchmark,
        "id": prompt.id,
        "k": completion.k,
        "prompt_label": prompt.label,
        "category": prompt.category,
        "prompt": prompt.text,
        "messages": list(prompt.messages),
        "reference": prompt.reference,
        "answers": list(prompt.answers),
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "logprob_sum": completion.logprob_sum,
        "prompt_tokens": completion.prompt_tokens or None,
        "response_tokens": token_count(completion),
        "error": completion.error,
    }
    for judge in judges:
        score = scores.get(judge, {}).get(key)
        for part in _SCORE_COLUMNS:
            row[f"{judge}.{part}"] = None if score is None else getattr(score, part)
        if score is not None:
            row[f"{judge}.reason"] = why_unscored(judge, score)
    return {name: clean(value) for name, value in row.items()}


def clean(value: Any) -> Any:
    """The value with every text in it made :func:`readable`, and None for numbers that JSON does not know."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def _text(value: Any, kind: str) -> Any:
    """A cell: lists and mappings as JSON text."""
    return json.dumps(value, ensure_ascii=False) if kind == "json" and value is not None else value


def _csv(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, str]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe_cell, kinds))
    for row in rows:
        cells = (_text(row[name], kind) for name, kind in kinds.items())
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def _parquet(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise EnvironmentFault('Parquet needs pyarrow: pip install "safeserve[data]". CSV needs nothing.') from None
    types = {"string": pa.string(), "json": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    arrays = [pa.array([_text(row[name], kind) for row in rows], type=types[kind]) for name, kind in kinds.items()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())
