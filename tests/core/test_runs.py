"""Run directories: whole files or none, broken lines by number, locks, stale results, full disks."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeserve.core import runs
from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import (
    DONE,
    Stage,
    iter_jsonl,
    lock,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)


def test_text_round_trip_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "é\r\n")
    assert path.read_bytes() == b"\xc3\xa9\r\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A process that is killed after half the bytes: readers see the old file."""
    path = tmp_path / "x.json"
    write_text(path, "old")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom safeserve.core import runs\n"
        "runs.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"runs.write_text(Path({str(path)!r}), 'new' * 100000)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_without_space(tmp_path: Path) -> None:
    """The temporary file that is written first is, for once, a device that is always full."""
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(EnvironmentFault) as error:
        write_text(tmp_path / "x.json", "text")
    assert error.value.exit_code == 3
    assert f"{tmp_path / 'x.json'}: the disk is full. Free some space" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk(small_disk: Path) -> None:
    write_text(small_disk / "x.json", "old")
    with pytest.raises(EnvironmentFault, match=r"x\.json: the disk is full"):
        write_text(small_disk / "x.json", "new" * 1_000_000)
    assert (small_disk / "x.json").read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EACCES, "no permission to write here. Choose another folder with --out."),
        (errno.EROFS, "no permission to write here"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_other_faults_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(EnvironmentFault) as error:
        write_text(tmp_path / "x", "text")
    assert says in str(error.value)
    assert str(tmp_path / "x") in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(EnvironmentFault, match="no permission"):
            write_text(tmp_path / "x", "text")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        write_text(tmp_path / "runs" / "x", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_text(tmp_path / "folder", "text")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")]])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert not (tmp_path / "x.json").exists()


def test_json_errors_name_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json: no such file"):
        read_json(path)
    path.write_text('{\n "a": 1,\n oops\n}')
    with pytest.raises(UserError, match=r"x\.json line 3: not valid JSON"):
        read_json(path)


ROWS = [{"id": "1", "text": "é\u2028ü"}, {"id": "2", "text": "a\nb"}]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    assert read_jsonl(tmp_path / "x.jsonl") == ROWS
    assert (tmp_path / "x.jsonl").read_bytes().count(b"\n") == 2


def test_jsonl_gunzips(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert read_jsonl(tmp_path / "x.jsonl.gz") == ROWS


def test_a_cut_off_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"n": n}) + "\n" for n in range(5000)).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz: not a complete gzip file"):
        read_jsonl(tmp_path / "x.jsonl.gz")
    (tmp_path / "y.jsonl.gz").write_bytes(b'{"a": 1}\n')
    with pytest.raises(UserError, match=r"y\.jsonl\.gz: not a complete gzip file"):
        read_jsonl(tmp_path / "y.jsonl.gz")


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress("".join(json.dumps({"n": n}) + "\n" for n in range(5000)).encode()))
    damaged[200:260] = bytes(60)
    (tmp_path / "x.jsonl.gz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.jsonl\.gz"):
        read_jsonl(tmp_path / "x.jsonl.gz")


def test_lines_are_numbered_as_an_editor_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": \n')
    rows = iter_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    assert next(rows) == (3, {"a": 2})
    with pytest.raises(UserError, match=r"x\.jsonl line 4: not valid JSON .* Every line must be one JSON object\."):
        next(rows)


def test_a_line_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"x\.jsonl line 2: expected a JSON object, found list"):
        read_jsonl(tmp_path / "x.jsonl")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl line 1: not UTF-8 text .* Save it as UTF-8\."):
        read_jsonl(tmp_path / "x.jsonl")


def test_no_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_jsonl(tmp_path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # the digest is FIPS 180's example
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "x") == expected


def test_a_second_process_is_told_who_works_there(tmp_path: Path) -> None:
    code = f"from pathlib import Path\nfrom safeserve.core.runs import lock\nwith lock(Path({str(tmp_path)!r})): pass"
    with lock(tmp_path / "."):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"another process (pid {os.getpid()}) is working on this run" in second.stderr
    assert "EnvironmentFault" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lock_is_free_after_an_error_and_after_a_kill(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock(tmp_path):
        raise RuntimeError
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom safeserve.core.runs import lock\n"
        f"with lock(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with lock(tmp_path):
        pass


def test_the_second_lock_has_exit_code_3(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(EnvironmentFault) as error, lock(tmp_path):
        pass
    assert error.value.exit_code == 3


INPUTS = {"train.dpo.beta": 0.1, "data pairs": ["abc", 10], "seed": 7}


def test_a_stage_is_done_once_finished_with_the_same_inputs(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "train-dpo", INPUTS)
    assert not stage.done()
    assert stage.begin() == tmp_path / "train-dpo"
    assert not stage.done()
    stage.finish()
    assert Stage(tmp_path / "train-dpo", dict(reversed(INPUTS.items()))).done()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**INPUTS, "train.dpo.beta": 0.2}, "changed: train.dpo.beta."),
        ({**INPUTS, "train.dpo.beta": 0.2, "seed": 8}, "changed: seed, train.dpo.beta."),
        ({**INPUTS, "new": 1}, "changed: new."),
        ({"seed": 7, "train.dpo.beta": 0.1}, "changed: data pairs."),
    ],
)
def test_a_stale_stage_names_what_changed(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    folder = tmp_path / "train-dpo"
    Stage(folder, INPUTS).begin()
    Stage(folder, INPUTS).finish()
    with pytest.raises(UserError) as error:
        Stage(folder, changed).done()
    assert named in str(error.value)
    assert "--redo" in str(error.value)
    assert str(folder) in str(error.value)


def test_a_stage_begun_with_other_inputs_is_not_continued(tmp_path: Path) -> None:
    Stage(tmp_path, INPUTS).begin()
    Stage(tmp_path, INPUTS).begin()
    with pytest.raises(UserError, match=r"changed: seed\."):
        Stage(tmp_path, {**INPUTS, "seed": 8}).begin()


def test_a_childs_hash_follows_its_parents(tmp_path: Path) -> None:
    first, second = Stage(tmp_path, INPUTS), Stage(tmp_path, {**INPUTS, "seed": 8})
    assert first.hash != second.hash
    assert Stage(tmp_path, {"parent": first.hash}).hash != Stage(tmp_path, {"parent": second.hash}).hash


def test_done_is_the_last_file_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, INPUTS)
    stage.begin()
    monkeypatch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(EnvironmentFault):
        stage.finish()
    assert not (tmp_path / DONE).exists()
    assert not stage.done()


def test_an_option_that_came_later_and_is_off_leaves_a_stage_valid(tmp_path: Path) -> None:
    before = Stage(tmp_path, INPUTS)
    before.begin()
    before.finish()
    after = Stage(tmp_path, {**INPUTS, "train.dpo.later": None})
    assert after.done()
    assert after.hash == before.hash, "what was made from it stays valid too"
    assert Stage(tmp_path, {**INPUTS, "train.dpo.later": 0}).changed() == ["train.dpo.later"]
    assert Stage(tmp_path, {**INPUTS, "train.dpo.later": 0}).hash != before.hash


def test_a_file_written_in_several_goes_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with runs.writing(path) as write:
        write([b"one\n"])
        write([b"two\n", b"three\n"])
        assert not path.exists()
    assert path.read_bytes() == b"one\ntwo\nthree\n"

    def fail() -> None:
        with runs.writing(path) as write:
            write([b"four\n"])
            raise PermissionError("of a judge's own file")

    with pytest.raises(PermissionError):  # not the disk's fault, so it keeps its name
        fail()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_disk_that_fills_up_between_the_goes_is_told_once(tmp_path: Path) -> None:
    def full() -> Iterator[bytes]:
        yield b"x" * 10
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EnvironmentFault, match="the disk is full"), runs.writing(tmp_path / "x") as write:
        write(full())
    assert list(tmp_path.iterdir()) == []
