"""Fixtures for all tests: tiny random Llamas with a byte tokenizer, the real command line, public data, a full disk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]

# A busy machine takes longer over an example; that is no defect of the code under test.
settings.register_profile("safeserve", deadline=None)
settings.load_profile("safeserve")

LONG = ("end_to_end", "benchmarks", "oracle")
"""Folders whose files take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker takes a whole file, so one that comes last leaves the other worker without work."""
    long = {item.path for item in items if item.path.parent.name in LONG or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def save_tiny(folder: Path, positions: int = 256, seed: int = 0) -> Path:
    """Save a random two-layer Llama (chatml template, tied embeddings) with a byte tokenizer, as ``load`` reads it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from safeserve.models.chat import CHATML

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=specials,
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,  # wide enough that its distributions are not all flat
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random tiny model of 256 positions."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of 1024 positions: starter prompts fit, a token a byte."""
    return save_tiny(tmp_path_factory.mktemp("tiny-long"), positions=1024, seed=1)


@pytest.fixture
def tiny(tiny_folder: Path) -> Callable[..., Any]:
    """``tiny()`` loads a fresh copy of the tiny model in float32 (or ``dtype=...``) on the CPU."""
    from safeserve.models.loading import load

    def make(dtype: Any = "float32") -> Any:
        return load(tiny_folder, dtype=dtype, device="cpu")

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real public data sets; tests that need it are skipped without it."""
    given = os.environ.get("SAFESERVE_SHARED")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "benchmarks").is_dir():
        pytest.skip("public data not at hand: set SAFESERVE_SHARED to a folder with benchmarks/ and preferences/")
    return folder


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person has set for their own runs changes no test."""
    monkeypatch.delenv("SAFESERVE_DATA_ROOT", raising=False)


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def cli_environment() -> dict[str, str]:
    """The environment of a real command: the user's cache of the embedded model, no hub, one thread, no colours."""
    from safeserve.models.embedded import cache_dir

    own = {"SAFESERVE_CACHE": str(cache_dir()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return {key: value for key, value in os.environ.items() if key != "SAFESERVE_DATA_ROOT"} | own


@pytest.fixture
def cli(tmp_path: Path, cli_environment: dict[str, str]) -> Callable[..., Ran]:
    """``cli("run", "quickstart")`` runs the real command in a process of its own, in ``tmp_path``."""

    def run(*arguments: str | Path, timeout: float = 600, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "safeserve", *map(str, arguments)],
            cwd=tmp_path,
            env={**cli_environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def cli_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Like ``cli``, in this process (seconds faster): ``main()`` with ``sys.argv`` set, in ``tmp_path``."""
    from safeserve.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["safeserve", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one MiB, where mounting one is allowed."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command here, so no small file system")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


class ChatServer:
    """A local OpenAI-compatible server made of a function; remembers what it was sent and fails as told.

    Args:
        answer: from the request's body to the text of the answer.
        fail: statuses for the first requests, or a function from the body to a status or to the message of a 400
            (None: no failure).
        raw: bytes to send with 200 instead of an answer.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str],
        fail: list[int] | Callable[[dict[str, Any]], int | str | None] | None = None,
        finish: str = "stop",
        models: tuple[str, ...] | list[str] = (),
        raw: bytes | None = None,
        retry_after: str | None = None,
    ) -> None:
        self.answer, self.fail, self.finish, self.models, self.raw = answer, fail, finish, models, raw
        self.retry_after = retry_after
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in outer.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.headers.append({key.lower(): value for key, value in self.headers.items()})
                status = outer.status(body)
                if isinstance(status, str):
                    return self.reply(400, {"error": {"message": status}})
                self.reply(status, outer.content(body) if status == 200 else {"error": {"message": "made to fail"}})

            def reply(self, status: int, content: Any) -> None:
                data = outer.raw if outer.raw is not None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json" if outer.raw is None else "text/html")
                self.send_header("content-length", str(len(data)))
                if status != 200 and outer.retry_after is not None:
                    self.send_header("retry-after", outer.retry_after)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def status(self, body: dict[str, Any]) -> int | str:
        if isinstance(self.fail, list):
            return self.fail.pop(0) if self.fail else 200
        return (self.fail(body) if self.fail else None) or 200

    def content(self, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.answer(body)}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": self.finish, "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
        }


@pytest.fixture
def chat_server() -> Iterator[Callable[..., ChatServer]]:
    """``chat_server(answer, ...)`` starts a :class:`ChatServer` on a free port."""
    started: list[ChatServer] = []

    def start(*given: Any, **options: Any) -> ChatServer:
        started.append(ChatServer(*given, **options))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
