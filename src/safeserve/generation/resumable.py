"""Generate into a folder, wave by wave, so that a killed process loses at most one wave."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from safeserve.core.options import stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import write_jsonl
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion, Sampling, WaveEngine, read_completions


def generate_to(
    engine: WaveEngine, prompts: Sequence[Prompt], sampling: Sampling, folder: Path, title: str, quiet: bool = False
) -> list[Completion]:
    """Completions of ``prompts`` in their order, written to ``folder``; waves already on disk are not made again.

    Every wave is a file of its own, written whole, named by a hash of its rows, the sampling and the engine, so a
    wave of another model or decoding is never picked up.
    """
    path = folder / "completions.jsonl"
    if path.exists():
        return read_completions(path)
    write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
    waves = engine.waves(prompts, sampling)
    parts = folder / "waves"
    made: dict[tuple[str, int], Completion] = {}
    with Progress(title, sum(map(len, waves)), quiet=quiet) as progress:
        for number, wave in enumerate(waves):
            rows = [row.key() for row in wave]
            key = stable_hash([engine.identity, sampling.model_dump(), rows])
            part = parts / f"{number:05d}-{key}.jsonl"
            if part.exists():
                completions = read_completions(part)
                progress.skip(len(wave))
            else:
                completions = engine.generate_wave(wave, sampling)
                write_jsonl(part, (completion.to_json() for completion in completions))
                progress.advance(len(wave), sum(len(c.token_ids) for c in completions))
            made.update({(c.id, c.k): c for c in completions})
    ordered = [made[prompt.id, k] for prompt in prompts for k in range(sampling.n)]
    write_jsonl(path, (completion.to_json() for completion in ordered))
    shutil.rmtree(parts, ignore_errors=True)  # also what a killed process left half-written
    return ordered
