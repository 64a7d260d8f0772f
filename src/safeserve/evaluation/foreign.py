"""Completions that somebody else made: a JSON, JSONL or CSV file, several files, or a folder becomes an evaluation.

One side of a comparison is one model. It is named by a file, by a folder of files, or by a pattern with one ``*``; each
file is one benchmark, called by what the star stands for, or by the known benchmark's name that the file's name ends
with, or by the file's name. Prompts get ids from their texts, so that two files over the same prompts pair up.
"""

from __future__ import annotations

import glob
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from safeserve.core.errors import UserError
from safeserve.core.options import digest
from safeserve.core.runs import write_json, write_jsonl
from safeserve.data.catalogue import SOURCES
from safeserve.data.reading import RawRow, file_format, read_rows
from safeserve.data.records import Label, Prompt, user
from safeserve.data.rows import LABELS
from safeserve.evaluation.benchmarks import BENCHMARKS, find_benchmark
from safeserve.evaluation.cut_off import cut_off
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key, find_eval, read_eval
from safeserve.evaluation.foreign_columns import Columns, find_columns, published_score
from safeserve.generation.engine import Completion, FinishReason
from safeserve.judging.judge import Score
from safeserve.judging.registry import make_judge
from safeserve.judging.scoring import score_row

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_.@-]+)=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True)
class ForeignOptions:
    """How foreign files are read.

    Attributes:
        map: our field, or a judge's name, to the file's column.
        label: what the prompts of an unknown benchmark are.
        benchmark: name of the benchmark of a single file.
        judges: judges that score foreign completions here, beside the verdicts that came with them.
    """

    map: Mapping[str, str] = field(default_factory=dict)
    label: Label | None = None
    benchmark: str | None = None
    judges: Sequence[str] = ()


def is_foreign(reference: str) -> bool:
    """Whether a side is given by foreign files rather than by RUN:MODEL or an ``evals/MODEL`` folder."""
    path = Path(_split(reference)[1])
    if path.is_dir():
        return not any(path.glob("*/prompts.jsonl")) and any(file_format(child) for child in path.iterdir())
    return bool(file_format(path)) or "*" in str(path)


def read_side(reference: str, options: ForeignOptions = ForeignOptions()) -> EvalFolder:
    """One side of a comparison: RUN:MODEL, an ``evals/MODEL`` folder, or foreign files.

    Raises:
        UserError: nothing there, or a file that cannot be read as completions (with its row and the remedy).
    """
    require_used(options, reference)
    return _side(reference, options)


def _side(reference: str, options: ForeignOptions) -> EvalFolder:
    return read_foreign(reference, options) if is_foreign(reference) else read_eval(find_eval(reference))


def require_used(options: ForeignOptions, *references: str) -> None:
    """Refuse options about foreign files where no reference is one.

    Raises:
        UserError: such an option was given.
    """
    if options != ForeignOptions() and not any(map(is_foreign, references)):
        sides = " and ".join(references)
        raise UserError(
            f"--map, --label, --benchmark and --judge are for files of completions and would be ignored, because "
            f"none is given ({sides}). Leave them out; `safeserve score` adds another judge's scores."
        )


def read_sides(a: str, b: str, options: ForeignOptions) -> tuple[EvalFolder, EvalFolder]:
    """Both sides of a comparison; foreign prompts take the ids that a run of ours gives the same texts."""
    require_used(options, a, b)
    one, two = _side(a, options), _side(b, options)
    if is_foreign(a) and not is_foreign(b):
        one = adopt_ids(one, two)
    elif is_foreign(b) and not is_foreign(a):
        two = adopt_ids(two, one)
    return told_apart(one, two)


def told_apart(one: EvalFolder, two: EvalFolder) -> tuple[EvalFolder, EvalFolder]:
    """Two models of one name (the ``base`` of two runs, say) get their runs' names before it."""
    if one.model == two.model:
        names = [f"{side.path.resolve().parent.parent.name}:{side.model}" for side in (one, two)]
        if names[0] != names[1]:
            return replace(one, model=names[0]), replace(two, model=names[1])
    return one, two


def read_foreign(reference: str, options: ForeignOptions) -> EvalFolder:
    """The evaluation that foreign files hold; see the module. Nothing is known of decoding or judges' versions.

    ``meta["foreign"]`` lists the files. Where a file does not say how an answer ended, an answer that ends mid-sentence
    near the length of the longest is taken as cut off, and ``meta["inferred"]`` names those benchmarks.
    """
    name, pattern = _split(reference)
    files = _files(pattern, options)
    read: dict[str, _Growing] = {}
    inferred: list[str] = []
    for benchmark, path in files.items():
        columns, found = _read_file(benchmark, path, options)
        if "finish_reason" not in columns.fields:
            inferred += found
        read.update(found)
    judges = [make_judge(spec) for spec in options.judges]
    for part in read.values():
        items = [(part.prompts[key[0]], completion) for key, completion in part.completions.items()]
        for judge in judges:
            part.scores[judge.name] = dict(zip(part.completions, judge.score(items), strict=True))
    stem = Path(pattern.replace("*", "")).name.split(".")[0]
    stem = stem.removesuffix(next(iter(read))) if len(read) == 1 else stem
    model = name or re.sub(r"[\W_]+$", "", stem) or "foreign"
    meta = {
        "model": model,
        "foreign": [str(path) for path in files.values()],
        "inferred": inferred,
        "judges": {judge.name: judge.identity for judge in judges},
    }
    parts = {name: BenchmarkEval(part.prompts, part.completions, part.scores) for name, part in read.items()}
    return EvalFolder(Path(pattern), model, parts, meta)


def adopt_ids(foreign: EvalFolder, own: EvalFolder) -> EvalFolder:
    """``foreign`` with the prompts of ``own`` (ids, labels, categories) wherever their texts are the same."""
    benchmarks = {}
    for name, part in foreign.benchmarks.items():
        known = {_spelling(p.text): p for p in own.benchmarks[name].prompts.values()} if name in own.benchmarks else {}
        prompts = [known.get(_spelling(prompt.text), prompt) for prompt in part.prompts.values()]
        ids = dict(zip(part.prompts, (prompt.id for prompt in prompts), strict=True))
        benchmarks[name] = BenchmarkEval(
            {prompt.id: prompt for prompt in prompts},
            {(ids[i], k): replace(c, id=ids[i]) for (i, k), c in part.completions.items()},
            {judge: {(ids[i], k): s for (i, k), s in scores.items()} for judge, scores in part.scores.items()},
        )
    return replace(foreign, benchmarks=benchmarks)


def write_eval(side: EvalFolder, folder: Path) -> None:
    """Store foreign completions as ``evals/MODEL``, so that every other command takes them.

    Raises:
        UserError: the folder holds an evaluation already, or a published score is not a finite number.
    """
    if (folder / "summary.json").exists():
        raise UserError(f"{folder}: holds an evaluation already. Choose another folder with --out.")
    for name in (name for benchmark, part in side.benchmarks.items() for name in (benchmark, *part.scores)):
        if Path(name).name != name or name == "..":
            raise UserError(f'"{name}" cannot be the name of a benchmark or judge: it would be a path.')
    for name, part in side.benchmarks.items():
        write_jsonl(folder / name / "prompts.jsonl", (prompt.to_json() for prompt in part.prompts.values()))
        write_jsonl(folder / name / "completions.jsonl", (c.to_json() for c in part.completions.values()))
        for judge, scores in part.scores.items():
            if broken := [i for (i, _), s in scores.items() if s.value is not None and not math.isfinite(s.value)]:
                raise UserError(f'{name}: {judge} of "{broken[0]}" is not a finite number. Leave such scores empty.')
            rows = [score_row(part.completions[key], score) for key, score in scores.items()]
            write_jsonl(folder / name / "scores" / f"{judge}.jsonl", rows)
    write_json(folder / "summary.json", dict(side.meta))


def known_label(benchmark: str) -> Label | None:
    """What the prompts of a benchmark are, if it is one of ours."""
    declared = find_benchmark(benchmark)
    if declared and (label := declared.label or SOURCES[declared.source].label):
        return label
    return SOURCES[benchmark].label if benchmark in SOURCES else None


def known_benchmark(stem: str) -> str | None:
    """The longest name of a known benchmark or prompt source that a file's name ends with."""
    names = BENCHMARKS.keys() | {source.name for source in SOURCES.values() if source.holds == "prompts"}
    ends = [name for name in names if re.search(rf"(^|[\W_]){re.escape(name)}$", stem, re.IGNORECASE)]
    return max(ends, key=len, default=None)


def _split(reference: str) -> tuple[str | None, str]:
    """(name of the model, path or pattern) of ``NAME=PATH`` or ``PATH``; a file whose own name holds = is a path."""
    found = _NAMED.fullmatch(reference)
    if found is None or Path(reference).exists():
        return None, reference
    return found["name"], found["path"]


def _files(pattern: str, options: ForeignOptions) -> dict[str, Path]:
    """Benchmark to file."""
    path = Path(pattern)
    if path.is_dir():
        found = {known_benchmark(_stem(f)) or _stem(f): f for f in sorted(path.iterdir()) if file_format(f)}
    elif "*" in pattern:
        if pattern.count("*") > 1:
            raise UserError(f"{pattern}: one * is understood; it stands for the benchmark's name.")
        head, tail = pattern.split("*")
        paths = sorted(p for p in glob.glob(glob.escape(head) + "*" + glob.escape(tail)) if file_format(Path(p)))
        found = {p[len(head) : len(p) - len(tail) or None].partition(".")[0]: Path(p) for p in paths}
        if not found:
            raise UserError(f"{pattern}: no such files. Quote the pattern, so that the shell leaves the * alone.")
    else:
        return {options.benchmark or known_benchmark(_stem(path)) or _stem(path): path}
    if options.benchmark:
        raise UserError(f"--benchmark {options.benchmark}: names the benchmark of one file, and {pattern} is several.")
    return found


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


@dataclass(frozen=True)
class _Growing:
    """A :class:`BenchmarkEval` that is being read."""

    prompts: dict[str, Prompt]
    completions: dict[Key, Completion]
    scores: dict[str, dict[Key, Score]]


def _read_file(benchmark: str, path: Path, options: ForeignOptions) -> tuple[Columns, dict[str, _Growing]]:
    """The file's benchmark; where it holds both kinds of prompts, one benchmark of each kind."""
    rows = read_rows(path)
    columns = find_columns(rows[0], options.map, path)
    answers = [row.values.get(columns.fields["response"]) for row in rows]
    cut = cut_off([answer if isinstance(answer, str) else "" for answer in answers])
    labels = [_label(row, columns, benchmark, path, options) for row in rows]
    mixed = len(set(labels)) > 1
    parts: dict[str, _Growing] = {}
    seen: Counter[str] = Counter()
    for row, label, is_cut in zip(rows, labels, cut, strict=True):
        name = f"{benchmark}-{label}" if mixed else benchmark
        part = parts.setdefault(name, _Growing({}, {}, {judge: {} for judge in columns.judges}))
        prompt, completion, scores = _read_row(row, columns, name, label, is_cut, path, seen)
        key: Key = (prompt.id, completion.k)
        if key in part.completions:
            raise UserError(f'{path} {row.unit} {row.number}: id "{prompt.id}", k {completion.k} was there before.')
        if part.prompts.setdefault(prompt.id, prompt).messages != prompt.messages:
            raise UserError(f'{path} {row.unit} {row.number}: id "{prompt.id}" was given to another prompt before.')
        part.completions[key] = completion
        for judge, score in scores.items():
            part.scores[judge][key] = score
    return columns, parts


def _read_row(
    row: RawRow, columns: Columns, benchmark: str, label: Label, is_cut: bool, path: Path, seen: Counter[str]
) -> tuple[Prompt, Completion, dict[str, Score]]:
    values = {ours: row.values.get(theirs) for ours, theirs in columns.fields.items()}
    where = f"{path} {row.unit} {row.number}"
    text = values["prompt"]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: "{columns.fields["prompt"]}" holds no prompt (found: {text!r}).')
    text = text.strip()
    extra = values.get("input")
    if isinstance(extra, str) and extra.strip():
        text += "\n\n" + extra.strip()
    given = values.get("id")
    if given is None or not str(given).strip():
        given = f"{benchmark.lower()}-{digest(_spelling(text))[:12]}"
    prompt_id = str(given).strip()
    k = _sample(values["k"], where) if "k" in values else seen[prompt_id]
    seen[prompt_id] += 1
    prompt = Prompt(
        prompt_id, user(text), label, str(values.get("category") or ""), benchmark, _reference(values, where)
    )
    answer = values["response"]
    reason = _finish(values.get("finish_reason"), is_cut, where)
    if isinstance(answer, str):
        completion = Completion(prompt_id, answer, (), reason, None, k)
    else:
        completion = Completion(prompt_id, "", (), "error", None, k, error="no answer in the file")
    return prompt, completion, {j: published_score(j, row.values.get(c)) for j, c in columns.judges.items()}


def _reference(values: Mapping[str, Any], where: str) -> str | None:
    given = values.get("reference") or None
    if given is not None and not isinstance(given, str):
        raise UserError(f"{where}: the reference must be text (found: {given!r}).")
    return given


def _label(row: RawRow, columns: Columns, benchmark: str, path: Path, options: ForeignOptions) -> Label:
    if "label" in columns.fields:
        word = str(row.values.get(columns.fields["label"])).strip().lower()
        if word not in LABELS:
            raise UserError(f'{path} {row.unit} {row.number}: label "{word}" is unknown. Known: {", ".join(LABELS)}.')
        return LABELS[word]
    label = options.label or known_label(benchmark)
    if label is None:
        raise UserError(
            f'{path}: whether the prompts of "{benchmark}" are harmful is not known. '
            "Pass --label harmful or --label benign, or --map label=COLUMN."
        )
    return label


def _sample(value: Any, where: str) -> int:
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and (k := int(value)) >= 0 and k == float(value):
            return k
    raise UserError(f"{where}: k must be a whole number from 0 on (found: {value!r}).")


def _finish(value: Any, is_cut: bool, where: str) -> FinishReason:
    if value is None:
        return "length" if is_cut else "stop"
    if value not in get_args(FinishReason):
        raise UserError(f"{where}: finish_reason must be {', '.join(get_args(FinishReason))} (found: {value!r}).")
    return cast(FinishReason, value)


def _spelling(text: str) -> str:
    return " ".join(text.split())
