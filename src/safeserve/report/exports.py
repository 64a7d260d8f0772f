"""Export of an evaluation for other tools: which models are meant, where files go, and writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.runs import write_bytes
from safeserve.evaluation.folder import EvalFolder, find_eval, find_run, read_eval
from safeserve.report.inspect_log import inspect_logs, require_inspect, write_inspect_log
from safeserve.report.samples_table import table_bytes

Format = Literal["inspect", "csv", "parquet", "jsonl"]


def find_evals(target: str, runs: Path = Path("runs")) -> tuple[Path, list[Path]]:
    """What ``target`` names (a run, ``RUN:MODEL`` or an evals/MODEL folder), and the evals/MODEL folders in it.

    Raises:
        UserError: nothing there, or a run without an evaluation.
    """
    path = Path(target)
    if path.is_dir() and not (path / "evals").is_dir() and any(path.glob("*/prompts.jsonl")):
        return path, [path]
    if not path.is_dir() and ":" in target:
        folder = find_eval(target, runs)
        return folder, [folder]
    run = find_run(target, runs)
    models = sorted(child for child in (run / "evals").glob("[!.]*") if child.is_dir())
    if not models:
        raise UserError(f"{run}: no evaluation in it. Run `safeserve eval` first.")
    return run, models


def export(
    target: str, form: str, out: Path | None = None, *, redo: bool = False, runs: Path = Path("runs")
) -> list[Path]:
    """Write the evaluations named by ``target`` in another format; returns the files.

    Args:
        form: inspect (one ``.eval`` a model and benchmark), csv, parquet or jsonl (one table of every sample).
        out: a file, or for inspect a folder; by default ``samples.FORMAT`` or ``inspect/`` in what ``target`` names.
        redo: overwrite files that exist.

    Raises:
        UserError: an unknown format, nothing to export, or a file that exists.
        EnvironmentFault: the format's library is not installed, or the disk.
    """
    if form not in get_args(Format):
        raise UserError(f"--to: unknown format {form!r}.{did_you_mean(form, get_args(Format))}")
    home, found = find_evals(target, runs)
    folders = [read_eval(path) for path in found]
    if not any(part.completions for folder in folders for part in folder.benchmarks.values()):
        raise UserError(f"{home}: no completions to export. Run `safeserve eval` on it first.")
    if form == "inspect":
        return _export_inspect(folders, out or home / "inspect", redo)
    path = out or home / f"samples.{form}"
    if path.is_dir():
        raise UserError(f"{path}: is a folder. Give a file as --out, for example {path / f'samples.{form}'}.")
    _refuse_existing([path], redo)
    write_bytes(path, table_bytes(folders, form))  # type: ignore[arg-type]  # checked above
    return [path]


def _export_inspect(folders: list[EvalFolder], out: Path, redo: bool) -> list[Path]:
    require_inspect()
    if out.is_file():
        raise UserError(f"{out}: is a file. Inspect logs are several files; give a folder as --out.")
    names = {
        out / f"{folder.path.name}--{name}.eval": (folder, name)
        for folder in folders
        for name, part in folder.benchmarks.items()
        if part.completions
    }
    _refuse_existing(list(names), redo)
    for folder in folders:
        for name, log in inspect_logs(folder).items():
            write_inspect_log(log, out / f"{folder.path.name}--{name}.eval")
    return list(names)


def _refuse_existing(paths: list[Path], redo: bool) -> None:
    existing = [path for path in paths if path.exists()]
    if existing and not redo:
        raise UserError(f"{existing[0]}: exists already. Pass --redo to overwrite it, or give another --out.")
