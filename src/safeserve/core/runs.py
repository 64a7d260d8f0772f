"""Run directories: atomic files, JSONL that names a broken line, locks, DONE markers that notice stale input."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from safeserve.core.errors import EnvironmentFault, SafeserveError, UserError
from safeserve.core.options import stable_hash

DONE = "DONE"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system error about ``path`` into a message with the remedy (exit code 3)."""
    try:
        yield
    except SafeserveError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise EnvironmentFault(
                f"{path}: the disk is full. Free some space, then run the same command again: it resumes."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentFault(f"{path}: no permission to write here. Choose another folder with --out.") from error
        if error.errno == errno.EISDIR:
            raise UserError(f"{path}: is a folder; name a file.") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"{path}: a file stands where a folder is needed. Choose another place with --out."
            ) from None
        raise EnvironmentFault(f"{path}: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all: a killed process leaves the old file or the new one, never a half."""
    write_bytes(path, readable(text).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Like :func:`write_text`, for bytes."""
    _write(path, [content])


def _write(path: Path, parts: Iterable[bytes]) -> None:
    with writing(path) as write:
        write(parts)


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Iterable[bytes]], None]]:
    """Write a file in several goes, whole or not at all; what fails between them is not taken for the disk's fault.

    Raises:
        UserError: a device, a pipe or a folder is there, which the finished file would take the place of.
    """
    path = Path(os.path.realpath(path))  # through a link: the link stays, the file that it names is written
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is a device or a pipe, not a file. Name a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")

    def write(parts: Iterable[bytes]) -> None:
        with disk_errors(path):
            file.writelines(parts)

    try:
        yield write
        with disk_errors(path):
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # a full disk has been told already
            file.close()
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, because a reader could not tell them apart."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(name: object) -> bool:
    """Whether a name from a file may become part of a path: letters, digits, - and _ only."""
    return str(name).replace("-", "").replace("_", "").isalnum()


def readable(text: str) -> str:
    """``text`` with half characters (lone surrogates, which no UTF-8 file can hold) as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def parse_json(text: str) -> Any:
    """The value of a JSON text, half characters (an emoji that was cut in two) made :func:`readable`.

    Raises:
        ValueError, RecursionError: it is none; see :func:`json_refusal`.
    """
    value = json.loads(text)
    return _whole(value) if "\\ud" in text or "\\uD" in text else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return {readable(key): _whole(part) for key, part in value.items()} if isinstance(value, dict) else value


def read_text(path: Path) -> str:
    """The text of a file, ``.gz`` too; for errors see :func:`open_text`."""
    with open_text(path) as file:
        return file.read()


def json_refusal(error: ValueError | RecursionError) -> str:
    """Why the decoder refused a text; it also refuses huge numbers and deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, is not JSON (with the line), or holds something else than an object.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not valid JSON ({json_refusal(error)}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def jsonl_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One JSON object a line, keys in the given order."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def jsonl_bytes(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Lines as they stand in a file."""
    return (readable(line).encode() for line in jsonl_lines(rows))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically, one row in memory at a time."""
    _write(path, jsonl_bytes(rows))


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, transparently gunzipping ``.gz``; a byte-order mark is no part of the text.

    Raises:
        UserError: there is no such file, it is not UTF-8, or a gzip file is cut.
        EnvironmentFault: no permission.
    """
    with open_bytes(path) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, transparently gunzipping ``.gz``; for errors see :func:`open_text`."""
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: no file can have this name.")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            yield cast("IO[bytes]", file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a file.") from None
    except PermissionError:
        raise EnvironmentFault(f"{path}: no permission to read it.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}).") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines (``.gz`` too); empty lines are skipped.

    Raises:
        UserError: no such file, or a line that is not a JSON object (with its number).
    """
    return [row for _, row in iter_jsonl(path)]


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row)."""
    return ((number, row) for number, _, row in placed_jsonl(path))


def placed_jsonl(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number from 1, byte at which the line begins, row)."""
    end = 0
    with open_bytes(path) as file:
        for number, content in enumerate(file, 1):
            place, end = end, end + len(content)
            try:
                line = content.decode("utf-8" if place else "utf-8-sig")
                if not line.strip():
                    continue
                row = parse_json(line)
            except UnicodeDecodeError as error:
                raise UserError(f"{path} line {number}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path} line {number}: not valid JSON ({json_refusal(error)}). Every line must be one JSON object."
                ) from None
            if not isinstance(row, dict):
                raise UserError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}.")
            yield number, place, row


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; a second process on the same run gets a clear message (exit code 3)."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise EnvironmentFault(
                f"{folder}: another process (pid {owner}) is working on this run. "
                "Wait for it, stop it, or choose another name with --name."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        file.close()


_OFF = stable_hash(None)


class Stage:
    """One stage's folder. ``inputs`` is all that its result depends on; DONE holds their hashes, written last."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.inputs = {key: stable_hash(value) for key, value in inputs.items()}

    @property
    def hash(self) -> str:
        """Hash of all inputs, as they were when it was made; children put it into their own inputs."""
        records = [] if self.changed() else self._records()
        return stable_hash(records[0] if records else self.inputs)

    def _records(self) -> list[dict[str, str]]:
        return [read_json(path) for marker in (DONE, "INPUTS") if (path := self.folder / marker).exists()]

    def changed(self) -> list[str]:
        """Inputs that are not what this stage was begun or finished with; none for a new stage.

        None stands for a key that is not there: an option that came later and is off leaves what was made before valid.
        """
        return sorted(
            {
                key
                for record in self._records()
                for key in {*record, *self.inputs}
                if record.get(key, _OFF) != self.inputs.get(key, _OFF)
            }
        )

    def done(self) -> bool:
        """True when finished with the same inputs.

        Raises:
            UserError: begun or finished with other inputs; the message names what changed and the remedy.
        """
        if changed := self.changed():
            raise UserError(
                f"{self.folder}: made with other inputs; changed: {', '.join(changed)}. "
                "Pass --redo to discard it and everything made from it, or choose another name with --name."
            )
        return (self.folder / DONE).exists()

    def begin(self) -> Path:
        """Create the folder, or resume it if it was begun with the same inputs; returns it."""
        self.done()
        write_json(self.folder / "INPUTS", self.inputs)
        return self.folder

    def finish(self) -> None:
        """Write DONE, last and atomically."""
        write_json(self.folder / DONE, self.inputs)
