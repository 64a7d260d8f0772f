"""Read an ``evals/MODEL`` folder: every broken or misaligned line is named, nothing is paired by position."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import typed
from safeserve.core.runs import placed_jsonl, read_json
from safeserve.core.stored import StoredRows
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score

K = TypeVar("K")
V = TypeVar("V")
Key = tuple[str, int]
"""(prompt id, sample k)."""


@dataclass(frozen=True)
class BenchmarkEval:
    """One benchmark's prompts (in file order), completions and scores per judge, the latter two keyed by (id, k)."""

    prompts: Mapping[str, Prompt]
    completions: Mapping[Key, Completion]
    scores: Mapping[str, Mapping[Key, Score]]

    @property
    def label(self) -> str:
        """harmful or benign."""
        return next(iter(self.prompts.values())).label


@dataclass(frozen=True)
class EvalFolder:
    """What was measured of one model. ``meta`` is its summary.json, empty where there is none yet."""

    path: Path
    model: str
    benchmarks: dict[str, BenchmarkEval]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sampling(self) -> Mapping[str, Any] | None:
        """How it was decoded, None where unrecorded."""
        return self.meta.get("sampling")

    @property
    def judge_identities(self) -> Mapping[str, str]:
        """Judge name to identity hash, as recorded under "judges" in summary.json."""
        recorded: Mapping[str, str] = self.meta.get("judges", {})
        return recorded


def read_eval(folder: Path, held: bool = True) -> EvalFolder:
    """Read ``evals/MODEL``.

    Args:
        held: False checks every line as well, but holds only where it stands and reads it again when it is needed.

    Raises:
        UserError: no such folder, nothing in it, a broken line, or files that do not belong together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give RUN:MODEL or a folder made by `safeserve eval`.")
    summary = folder / "summary.json"
    meta = read_json(summary) if summary.exists() else {}
    for key in ("benchmarks", "judges", "sampling"):
        if not isinstance(meta.get(key, {}), dict):
            raise UserError(f'{summary}: "{key}" must be an object. Run `safeserve score` again to write it anew.')
    names = sorted(child.name for child in folder.iterdir() if (child / "prompts.jsonl").exists())
    if not names:
        raise UserError(
            f"{folder}: no BENCHMARK/prompts.jsonl in it. Give a folder evals/MODEL, or run `safeserve eval` first."
        )
    order = [name for name in meta.get("benchmarks", {}) if name in names]
    ordered = order + [name for name in names if name not in order]
    return EvalFolder(
        path=folder,
        model=str(meta.get("model") or folder.name),
        benchmarks={name: _read_benchmark(folder / name, held) for name in ordered},
        meta=meta,
    )


def find_eval(reference: str, runs: Path = Path("runs")) -> Path:
    """The folder meant by ``RUN:MODEL`` (a run folder, or a name under ``runs``) or by a folder's own path.

    Raises:
        UserError: nothing there; the message lists the models that are.
    """
    if Path(reference).is_dir():
        return Path(reference)
    run, separator, model = reference.rpartition(":")
    if not separator:
        raise UserError(f"{reference}: no such folder. Give RUN:MODEL (for example quickstart:base) or evals/MODEL.")
    root = find_run(run, runs)
    folder = root / "evals" / model
    if not folder.is_dir():
        known = [child.name for child in sorted((root / "evals").glob("*")) if child.is_dir()]
        hint = did_you_mean(model, known) or " This run has no evaluation yet."
        raise UserError(f'{root}: no evaluation of a model "{model}".{hint}')
    return folder


def find_run(run: str, runs: Path = Path("runs")) -> Path:
    """The run directory meant by its path or by its name under ``runs``.

    Raises:
        UserError: neither exists.
    """
    for candidate in (Path(run), runs / run):
        if run and candidate.is_dir():
            return candidate
    known = [child.name for child in runs.glob("*") if child.is_dir()]
    raise UserError(f'no run "{run}" (looked for {run or "an empty name"} and {runs / run}).{did_you_mean(run, known)}')


def _read_benchmark(folder: Path, held: bool = True) -> BenchmarkEval:
    """Read ``evals/MODEL/BENCHMARK``; see :func:`read_eval`."""
    prompts, completions = read_answers(folder, held)
    return BenchmarkEval(prompts, completions, read_scores(folder, completions, held))


def read_answers(folder: Path, held: bool = True) -> tuple[Mapping[str, Prompt], Mapping[Key, Completion]]:
    """A benchmark's prompts and completions, whatever scores lie beside them."""
    prompts = _read_prompts(folder / "prompts.jsonl", held)
    path = folder / "completions.jsonl"
    return prompts, _read_completions(path, prompts, held) if path.exists() else {}


def read_scores(folder: Path, completions: Collection[Key], held: bool = True) -> dict[str, Mapping[Key, Score]]:
    """Scores by judge of a benchmark's completions."""
    return {file.stem: _read_scores(file, completions, held) for file in sorted((folder / "scores").glob("*.jsonl"))}


def _table(
    path: Path, rows: Iterable[tuple[int, K, V]], parse: Callable[[dict[str, Any]], V], held: bool
) -> Mapping[K, V]:
    """Rows, each with its place in the file and its key: held, or read again by ``parse`` when needed."""
    if held:
        return {key: value for _, key, value in rows}
    return StoredRows(path, {key: place for place, key, _ in rows}, parse)


def _read_prompts(path: Path, held: bool) -> Mapping[str, Prompt]:
    def rows() -> Iterator[tuple[int, str, Prompt]]:
        seen: set[str] = set()
        label = None
        for number, place, row in placed_jsonl(path):
            prompt = typed(Prompt, row, f"{path} line {number}")
            if prompt.id in seen:
                raise UserError(f'{path} line {number}: id "{prompt.id}" appears twice. Every prompt needs its own id.')
            label = label or prompt.label
            if prompt.label != label:
                raise UserError(
                    f"{path} line {number}: harmful and benign prompts in one benchmark; their metrics differ. "
                    "Split it into two benchmarks."
                )
            key = sys.intern(prompt.id)
            seen.add(key)
            yield place, key, prompt

    prompts = _table(path, rows(), partial(typed, Prompt, where=str(path)), held)
    if not prompts:
        raise UserError(f"{path}: no prompts in it.")
    return prompts


def _read_completions(path: Path, prompts: Collection[str], held: bool) -> Mapping[Key, Completion]:
    def rows() -> Iterator[tuple[int, Key, Completion]]:
        for number, place, key, row in _keyed(path):
            if key[0] not in prompts:
                raise UserError(_stray(path, number, f'id "{key[0]}" is not in prompts.jsonl'))
            yield place, key, typed(Completion, row, f"{path} line {number}")

    completions = _table(path, rows(), partial(typed, Completion, where=str(path)), held)
    if completions:
        answered = {prompt_id for prompt_id, _ in completions}
        _none_missing(path, [i for i in prompts if i not in answered], "prompts have no completion", "`safeserve eval`")
    return completions


def _read_scores(path: Path, completions: Collection[Key], held: bool) -> Mapping[Key, Score]:
    def rows() -> Iterator[tuple[int, Key, Score]]:
        for number, place, key, row in _keyed(path):
            if key not in completions:
                raise UserError(_stray(path, number, f'id "{key[0]}", k {key[1]} has no line in completions.jsonl'))
            yield place, key, _score(row, f"{path} line {number}")

    scores = _table(path, rows(), partial(_score, where=str(path)), held)
    unread = [key[0] for key in completions if key not in scores]
    _none_missing(path, unread, "completions have no score", "`safeserve score`")
    return {key: scores[key] for key in completions} if held else scores


def _score(row: Mapping[str, Any], where: str) -> Score:
    value = row.get("value")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f'{where}: "value" must be a number or null, found {value!r}.')
    if value is None and not row.get("reason"):
        raise UserError(f'{where}: unscored ("value" null) without a "reason".')
    given = {key: content for key, content in row.items() if content is not None}
    return typed(Score, {"value": None, "label": None, **given}, where)


def _keyed(path: Path) -> Iterator[tuple[int, int, Key, dict[str, Any]]]:
    """(line number, place, (id, k), row); a second line for the same (id, k) is an error."""
    seen: dict[Key, int] = {}
    for number, place, row in placed_jsonl(path):
        if not isinstance(row.get("id"), str):
            raise UserError(f'{path} line {number}: no "id" field (found: {", ".join(row)}).')
        k = row.get("k", 0)
        if isinstance(k, bool) or not isinstance(k, int):
            raise UserError(f'{path} line {number}: "k" must be a whole number, found {k!r}.')
        key = (sys.intern(row["id"]), k)
        if key in seen:
            raise UserError(f'{path} line {number}: id "{key[0]}", k {k} is already on line {seen[key]}.')
        seen[key] = number
        yield number, place, key, row


def _stray(path: Path, number: int, what: str) -> str:
    return f"{path} line {number}: {what}. The files belong to different evaluations; evaluate again with --redo."


def _none_missing(path: Path, missing: list[str], what: str, command: str) -> None:
    if missing:
        raise UserError(
            f'{path}: {len(missing)} {what} (first: "{missing[0]}"). It was interrupted or cut; run {command} again.'
        )
