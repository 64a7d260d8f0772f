"""Generate into a folder, wave by wave, so that a killed process loses at most one wave."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safeserve.core.options import stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import placed_jsonl, write_jsonl, writing
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Sampling, WaveEngine, read_completions


def generate_to(
    engine: WaveEngine, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, title: str, quiet: bool = False
) -> list[Completion]:
    """Completions of ``prompts`` in their order, written to ``folder``; see :func:`write_completions`."""
    return read_completions(write_completions(engine, prompts, sampling, folder, title, quiet))


def write_completions(
    engine: WaveEngine, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, title: str, quiet: bool = False
) -> Path:
    """``folder/completions.jsonl``, in the order of ``prompts``; waves already on disk are not made again.

    Every wave is a file of its own, written whole, named by a hash of its rows, the sampling and the engine, so a
    wave of another model or decoding is never picked up. In memory are the prompts, their tokens and one wave.
    """
    path = folder / "completions.jsonl"
    if path.exists():
        return path
    write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
    waves = engine.waves(prompts, sampling)
    parts: list[Path] = []
    with Progress(title, sum(map(len, waves)), quiet=quiet) as progress:
        waves.reverse()
        while waves:
            wave = waves.pop()  # its tokens are not needed afterwards
            rows = [row.key() for row in wave]
            key = stable_hash([engine.identity, sampling.model_dump(), rows])
            part = folder / "waves" / f"{len(parts):05d}-{key}.jsonl"
            parts.append(part)
            if part.exists():
                progress.skip(len(wave))
            else:
                completions = engine.generate_wave(wave, sampling)
                write_jsonl(part, (completion.to_json() for completion in completions))
                progress.advance(len(wave), sum(len(c.token_ids) for c in completions))
    with writing(path) as write:
        write(_lines(parts, ((prompt.id, k) for prompt in prompts for k in range(sampling.n))))
    shutil.rmtree(folder / "waves", ignore_errors=True)  # also what a killed process left half-written
    return path


def _lines(parts: Sequence[Path], order: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """The lines of all waves by (id, k), each read from its place."""
    places = {
        (sys.intern(row["id"]), row["k"]): (number, place)
        for number, part in enumerate(parts)
        for _, place, row in placed_jsonl(part)
    }
    for key in order:
        number, place = places[key]
        with parts[number].open("rb") as file:
            file.seek(place)
            yield file.readline()
