"""Loading data by name or by path: demonstrations, prompts and preference pairs, with every unusable row reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import stable_hash
from safeserve.core.runs import sha256_file
from safeserve.data.adapters import VERSION, detect, get_adapter, paper_filter, safe_filter
from safeserve.data.catalogue import Holds, Source, get_source
from safeserve.data.fetching import locate
from safeserve.data.reading import Problem, RawRow, file_format, read_rows
from safeserve.data.records import Demonstration, Kind, Label, PreferencePair, Prompt
from safeserve.data.rows import Prefer, Reading, Row, RowError, Skip

Keep = Literal["all", "safe", "paper"]
Conflicts = Literal["exclude", "keep"]
_SHARED = {"id", "category", "kind", "messages", "prompt"}
MAPPABLE: dict[Holds, set[str]] = {
    "demonstrations": _SHARED | {"response", "completion", "instruction", "input", "output", "is_safe"},
    "prompts": _SHARED - {"kind"} | {"label", "reference", "answers", "instruction", "input", "output", "type"},
    "pairs": _SHARED | {"chosen", "rejected", "chosen_safe", "rejected_safe", "margin", "response_0", "response_1"}
    | {"is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id"},
}  # fmt: skip


class Record(Protocol):
    """What every record has."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """The result of loading.

    Attributes:
        rows: the records, in file order.
        problems: rows that cannot be used, each with file, line and reason.
        excluded: rows that the options left out on purpose, counted by reason.
        source: what was asked for; an ad-hoc one for a file.
        file: the file that was read.
        adapter: how its rows were read.
        places: record id -> "file line N", so that later findings can say where.
        identity: hash of the file's content, the adapter's version and the options; equal identities, equal rows.
    """

    rows: list[R]
    problems: list[Problem]
    excluded: dict[str, int]
    source: Source
    file: Path
    adapter: str
    identity: str
    places: dict[str, str] = field(repr=False, default_factory=dict)

    def limited(self, limit: int | None) -> Loaded[R]:
        """The same with at most ``limit`` rows (None: all)."""
        return self if limit is None else replace(self, rows=self.rows[:limit])


def load_demonstrations(
    name: str | Path,
    root: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    *,
    kind: Kind | None = None,
    adapter: str | None = None,
) -> Loaded[Demonstration]:
    """Demonstrations of a named source or of a file.

    Args:
        name: a name of ``safeserve data list``, or a path to JSONL, JSON, CSV, TSV or Parquet (``.gz`` too).
        root: folder that holds the public files; without it they are fetched.
        map: our field name -> the file's column, as ``{"prompt": "question"}``.
        kind: what rows are that do not say it (default: the source's kind, else helpful).
        adapter: a name of :data:`safeserve.data.adapters.ADAPTERS`; by default found from the columns.

    Raises:
        UserError: unknown name, missing file, unreadable content, or no usable row at all.
    """
    source = _resolve(name, "demonstrations", kind=kind)
    return _load(source, name, root, map, adapter, Reading(_prefix(source), source.kind, source.label), "demonstration")


def load_prompts(
    name: str | Path,
    root: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    *,
    label: Label | None = None,
    adapter: str | None = None,
) -> Loaded[Prompt]:
    """Prompts of a named source or of a file; ``label`` is for rows that have none. See :func:`load_demonstrations`."""
    source = _resolve(name, "prompts", label=label)
    reading = Reading(_prefix(source), source.kind, source.label, benchmark=source.name)
    return _load(source, name, root, map, adapter, reading, "prompt")


def load_pairs(
    name: str | Path,
    root: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    *,
    kind: Kind | None = None,
    adapter: str | None = None,
    prefer: Prefer = "auto",
    keep: Keep = "all",
    conflicts: Conflicts = "exclude",
) -> Loaded[PreferencePair]:
    """Preference pairs of a named source or of a file. See :func:`load_demonstrations`, and:

    Args:
        prefer: which published preference decides: better_response_id, safer_response_id, or auto (better where
            published, else safer).
        keep: all; safe (chosen labelled safe and rejected labelled unsafe); paper (``adapters.paper_filter``).
        conflicts: rows whose annotators disagree (``label_conflict``) are excluded and counted, or kept.

    Raises:
        UserError: also when ``keep`` needs labels that the data does not have.
    """
    source = _resolve(name, "pairs", kind=kind)
    reading = Reading(_prefix(source), source.kind, prefer=prefer)
    loaded: Loaded[PreferencePair] = _load(
        source,
        name,
        root,
        map,
        adapter,
        reading,
        "pair",
        options={"prefer": prefer, "keep": keep, "conflicts": conflicts},
        skip=_conflicting if conflicts == "exclude" else None,
    )
    return loaded if keep == "all" else _kept(loaded, keep)


def _kept(loaded: Loaded[PreferencePair], keep: Keep) -> Loaded[PreferencePair]:
    if keep == "paper" and not any("chosen_is_better" in pair.meta for pair in loaded.rows):
        raise UserError(
            f"{loaded.file}: keep=paper needs better_response_id, which this file does not have. "
            "Use keep=safe (chosen labelled safe, rejected unsafe)."
        )
    if not any(pair.chosen_safe is not None for pair in loaded.rows):
        raise UserError(f"{loaded.file}: keep={keep} needs safety labels, which this file does not have.")
    rule = paper_filter if keep == "paper" else safe_filter
    rows = [pair for pair in loaded.rows if rule(pair)]
    if not rows:
        raise UserError(f"{loaded.file}: keep={keep} leaves no pair of {len(loaded.rows)}.")
    excluded = {**loaded.excluded, f"not kept by keep={keep}": len(loaded.rows) - len(rows)}
    return replace(loaded, rows=rows, excluded=excluded)


def _conflicting(values: Mapping[str, Any]) -> str | None:
    return "annotators disagree (label_conflict)" if values.get("label_conflict") else None


def _prefix(source: Source) -> str:
    return source.name.rsplit("/", 1)[-1].lower()


def load_any(
    name: str | Path,
    root: str | Path | None = None,
    map: Mapping[str, str] | None = None,
    *,
    holds: Holds | None = None,
    kind: Kind | None = None,
    label: Label | None = None,
) -> Loaded[Any]:
    """Load whatever the source holds (``holds`` says it for a file; by default its columns do)."""
    holds = holds or guess_holds(name, map)
    if holds == "demonstrations":
        return load_demonstrations(name, root, map, kind=kind)
    if holds == "prompts":
        return load_prompts(name, root, map, label=label)
    return load_pairs(name, root, map, kind=kind)


def guess_holds(name: str | Path, map: Mapping[str, str] | None = None) -> Holds:
    """What a source holds; for a file, what its columns look like."""
    if not _is_file(name):
        return get_source(str(name)).holds
    columns = set(_renamed(read_rows(Path(name))[0].values, map or {}))
    if columns & {"chosen", "response_0"} or {"text", "score"} <= columns:
        return "pairs"
    if columns & {"response", "completion", "output", "outputs"}:
        return "demonstrations"
    return "prompts"


def _is_file(name: str | Path) -> bool:
    return isinstance(name, Path) or Path(name).is_file() or bool(file_format(Path(name)))


def _resolve(name: str | Path, holds: Holds, kind: Kind | None = None, label: Label | None = None) -> Source:
    """The catalogue's source, or one made up for a file."""
    if _is_file(name):
        stem = Path(name).name.split(".")[0]
        return Source(stem, holds, "a file of yours", "", str(name), adapter="", kind=kind, label=label)
    source = get_source(str(name))
    if source.holds != holds:
        raise UserError(f'data "{name}" holds {source.holds}, not {holds}. See: safeserve data list.')
    return replace(source, kind=kind or source.kind, label=label or source.label)


def _load(
    source: Source,
    name: str | Path,
    root: str | Path | None,
    map: Mapping[str, str] | None,
    adapter: str | None,
    reading: Reading,
    what: Literal["demonstration", "prompt", "pair"],
    options: Mapping[str, Any] | None = None,
    skip: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> Loaded[Any]:
    path = Path(name) if _is_file(name) else locate(source, Path(root) if root is not None else None)
    for field_name in map or {}:
        if field_name not in MAPPABLE[source.holds]:
            raise UserError(
                f'--map {field_name}=...: no field "{field_name}" in {source.holds}.'
                f"{did_you_mean(field_name, MAPPABLE[source.holds])}"
            )
    mapping = {**source.map, **(map or {})}
    raw = read_rows(path)
    for ours, theirs in (map or {}).items():
        if not any(theirs in row.values for row in raw):
            hint = did_you_mean(theirs, raw[0].values)
            raise UserError(f'{path}: --map {ours}={theirs}: no column "{theirs}".{hint}')
    if mapping:
        raw = [replace(row, values=_renamed(row.values, mapping)) for row in raw]
    chosen = adapter or source.adapter or detect(raw[0].values)
    convert = getattr(get_adapter(chosen), what)
    if convert is None:
        raise UserError(
            f"{path}: rows of the form {chosen} cannot be read as {source.holds} "
            f"(found: {', '.join(raw[0].values)}). Name the columns with --map, for example --map prompt=COLUMN."
        )
    rows, problems, excluded, places = _convert(raw, path, reading, convert, skip)
    if not rows:
        if problems:
            more = f" ({len(problems)} rows, none usable)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more}")
        raise UserError(f"{path}: every row was left out ({dict(excluded)}).")
    told = {"kind": reading.kind, "label": reading.label, "map": mapping, **(options or {})}
    identity = stable_hash([sha256_file(path), VERSION, chosen, what, source.name, told])
    return Loaded(rows, problems, dict(excluded), source, path, chosen, identity, places)


def _renamed(values: dict[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """The row with the mapped columns under our names; the adapter reports a column that this row lacks."""
    moved = {ours: values[theirs] for ours, theirs in mapping.items() if theirs in values}
    rest = {column: value for column, value in values.items() if column not in mapping.values()}
    return {**rest, **moved}


def _convert(
    raw: list[RawRow],
    path: Path,
    reading: Reading,
    convert: Callable[[Row], Any],
    skip: Callable[[Mapping[str, Any]], str | None] | None,
) -> tuple[list[Any], list[Problem], Counter[str], dict[str, str]]:
    rows: list[Any] = []
    problems: list[Problem] = []
    excluded: Counter[str] = Counter()
    places: dict[str, str] = {}
    for row in raw:
        if skip is not None and (reason := skip(row.values)):
            excluded[reason] += 1
            continue
        try:
            record = convert(Row(row.values, row.number, reading))
            if record.id in places:
                raise RowError(f'id "{record.id}" was used before ({places[record.id]}).')
        except Skip as left_out:
            excluded[str(left_out)] += 1
        except RowError as error:
            problems.append(Problem(str(path), row.number, str(error), row.unit))
        else:
            rows.append(record)
            places[record.id] = f"{path} {row.unit} {row.number}"
    return rows, problems, excluded, places
