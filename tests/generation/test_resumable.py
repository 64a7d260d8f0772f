"""Generation that was killed goes on: whole waves are kept, the result is the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.options import typed
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Sampling
from safeserve.generation.resumable import generate_to

Make = Callable[..., Any]
SAMPLING = Sampling(max_new_tokens=8, temperature=1.0, n=2, seed=3)


class Killed(BaseException):
    """What a test throws in place of a signal."""


class Counting:
    """The engine, counting waves; the process "dies" when the given number of waves has been made."""

    def __init__(self, engine: Any, dies_after: int = 99) -> None:
        self.engine, self.left, self.made = engine, dies_after, 0
        self.identity = engine.identity
        self.waves = engine.waves

    def generate_wave(self, wave: Sequence[Any], sampling: Sampling) -> list[Completion]:
        if not self.left:
            raise Killed
        self.left -= 1
        self.made += 1
        completions: list[Completion] = self.engine.generate_wave(wave, sampling)
        return completions


def run(engine: Any, prompts: list[Prompt], folder: Path, sampling: Sampling = SAMPLING) -> list[Completion]:
    return generate_to(engine, prompts, sampling, folder, "test", quiet=True)


def test_completions_come_in_the_order_of_the_prompts(engine: Make, prompts: list[Prompt], tmp_path: Path) -> None:
    completions = run(engine(wave_rows=4), prompts, tmp_path)
    assert [(c.id, c.k) for c in completions] == [(p.id, k) for p in prompts for k in (0, 1)]
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [typed(Completion, row, "here") for row in rows] == completions
    stored = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [typed(Prompt, row, "here") for row in stored] == prompts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["completions.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    engine: Make, prompts: list[Prompt], tmp_path: Path, dies_after: int
) -> None:
    run(engine(wave_rows=4), prompts, tmp_path / "undisturbed")
    killed = Counting(engine(wave_rows=4), dies_after)
    with pytest.raises(Killed):
        run(killed, prompts, tmp_path / "killed")
    assert not (tmp_path / "killed" / "completions.jsonl").exists()
    resumed = Counting(engine(wave_rows=4))
    run(resumed, prompts, tmp_path / "killed")
    assert resumed.made == 3 - dies_after
    assert (tmp_path / "killed" / "completions.jsonl").read_bytes() == (
        tmp_path / "undisturbed" / "completions.jsonl"
    ).read_bytes()
    assert not (tmp_path / "killed" / "waves").exists()


def test_killed_before_the_last_file_all_waves_are_kept(
    engine: Make, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.generation import resumable

    def die_at_the_end(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(resumable, "writing", die_at_the_end)
        with pytest.raises(Killed):
            run(engine(wave_rows=4), prompts, tmp_path)
    again = Counting(engine(wave_rows=4), dies_after=0)
    assert len(run(again, prompts, tmp_path)) == 2 * len(prompts)


def test_finished_work_is_read_back(engine: Make, prompts: list[Prompt], tmp_path: Path) -> None:
    first = run(engine(wave_rows=4), prompts, tmp_path)
    assert run(Counting(engine(wave_rows=4), dies_after=0), prompts, tmp_path) == first


def die_after_one(engine: Any, prompts: list[Prompt], folder: Path) -> None:
    with pytest.raises(Killed):
        run(Counting(engine, 1), prompts, folder)
    assert len(list((folder / "waves").iterdir())) == 1


def test_a_half_written_wave_is_made_again_and_leaves_nothing(
    engine: Make, prompts: list[Prompt], tmp_path: Path
) -> None:
    """A process killed while it writes leaves its temporary file behind."""
    die_after_one(engine(wave_rows=4), prompts, tmp_path)
    (tmp_path / "waves" / ".00001-abc.jsonl.4711.tmp").write_text('{"id": "p0", "te')
    again = Counting(engine(wave_rows=4))
    run(again, prompts, tmp_path)
    assert again.made == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["completions.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize("changed", [{"seed": 4}, {"temperature": 0.5}, {"max_new_tokens": 7}, {"iteration": 1}])
def test_waves_of_other_decoding_are_not_taken(
    engine: Make, prompts: list[Prompt], tmp_path: Path, changed: dict[str, Any]
) -> None:
    die_after_one(engine(wave_rows=4), prompts, tmp_path)
    other = Counting(engine(wave_rows=4))
    run(other, prompts, tmp_path, SAMPLING.model_copy(update=changed))
    assert other.made == 3


def test_waves_of_other_prompts_or_another_model_are_not_taken(
    engine: Make, tiny: Callable[..., Any], prompts: list[Prompt], tmp_path: Path
) -> None:
    from safeserve.generation.local import LocalEngine

    die_after_one(engine(wave_rows=4), prompts, tmp_path / "a")
    fewer = Counting(engine(wave_rows=4))
    run(fewer, [p for p in prompts if p.id != "p3"], tmp_path / "a")  # p3 is the longest, so in the first wave
    assert fewer.made == 3

    die_after_one(engine(wave_rows=4), prompts, tmp_path / "b")
    loaded = tiny()
    loaded.identity = "another"
    other = Counting(LocalEngine(loaded, wave_rows=4))
    run(other, prompts, tmp_path / "b")
    assert other.made == 3


def test_no_prompts(engine: Make, tmp_path: Path) -> None:
    assert run(engine(), [], tmp_path) == []
    assert (tmp_path / "completions.jsonl").read_text() == ""


def test_a_token_id_is_one_object_in_all_answers() -> None:
    """100,000 answers of 120 tokens are held at once: 8 bytes a token, not 36."""
    rows = [
        {"id": i, "text": "", "token_ids": json.loads("[49000, 7]"), "finish_reason": "stop", "logprob_sum": None}
        for i in "ab"
    ]
    a, b = (typed(Completion, row, "a test") for row in rows)
    assert a.token_ids == (49000, 7)
    assert a.token_ids[0] is b.token_ids[0]
