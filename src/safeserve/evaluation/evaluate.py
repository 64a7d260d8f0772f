"""Measure a model: generate once in fixed waves, judge separately, summarise. Everything resumes where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from safeserve.core.costs import Costs
from safeserve.core.errors import UserError
from safeserve.core.runs import jsonl_bytes, write_json, writing
from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import Benchmark, LeftOut, find_benchmark
from safeserve.evaluation.folder import BenchmarkEval, read_answers, read_eval, read_scores
from safeserve.evaluation.hygiene import check_side
from safeserve.evaluation.metrics import applies
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion, Sampling, WaveEngine
from safeserve.generation.resumable import write_completions
from safeserve.judging.judge import Judge
from safeserve.judging.registry import DEFAULT_JUDGES, GENERAL, by_rules_alone, family, is_own, make_judge
from safeserve.judging.scoring import checked_scores, score_row

AT_ONCE = 4096
"""Answers that a judge is given at once: enough to batch well, and all of most benchmarks."""


def require_judges(
    benchmarks: Iterable[Benchmark], judges: Sequence[str], some_left_out: bool = False
) -> dict[str, Judge]:
    """The judges by the names given for them; every benchmark needs one that is declared for it, or an own one.

    Args:
        some_left_out: benchmarks could not be reached, so a judge may be for those alone.

    Raises:
        UserError: no such judge, two of one name, one that is for no benchmark, or a benchmark that none is for.
    """
    made, benchmarks = _make_judges(judges), tuple(benchmarks)
    for benchmark in benchmarks:
        if not any(meant_for(spec, judge, benchmark) for spec, judge in made.items()):
            fitting = (*(("modes",) if benchmark.general else ()), *benchmark.judges)
            raise UserError(
                f"judges: none of {', '.join(judges) or '(none)'} is for {benchmark.name}. Add {' or '.join(fitting)}."
            )
    for spec, judge in made.items():
        may_idle = some_left_out or spec in DEFAULT_JUDGES
        if not may_idle and not any(meant_for(spec, judge, benchmark) for benchmark in benchmarks):
            raise UserError(_idle(spec, judge, [benchmark.name for benchmark in benchmarks]))
    return made


def _make_judges(specs: Sequence[str]) -> dict[str, Judge]:
    """Judges by spec; two of one name would write the same file of scores."""
    made = {spec: make_judge(spec) for spec in specs}
    named: dict[str, str] = {}
    for spec, judge in made.items():
        if (other := named.setdefault(judge.name, spec)) != spec:
            raise UserError(f"judges: {other} and {spec} are both named {judge.name}. Give one of them another name.")
    return made


def _idle(spec: str, judge: Judge, benchmarks: Sequence[str]) -> str:
    hint = " It is for: safeserve compare A B --win-rate." if family(judge.name) == "pairwise" else ""
    return f"judges: {spec} scores nothing in {', '.join(benchmarks)}. Leave it out, or evaluate what it is for.{hint}"


def meant_for(spec: str, judge: Judge, benchmark: Benchmark) -> bool:
    """Whether a judge scores a benchmark.

    Your own scores all, general ones where free text is answered, others where the benchmark declares them.
    """
    group = family(judge.name)
    return is_own(spec) or (benchmark.general and group in GENERAL) or group in benchmark.judges


def judge_benchmark(
    judge: Judge, prompts: Mapping[str, Prompt], completions: Iterable[Completion], folder: Path
) -> None:
    """Score completions of ``prompts`` (by id) into ``scores/JUDGE.jsonl``; no completion is generated again.

    Raises:
        UserError: an own judge returned another number of scores or a value that is not finite.
    """
    rest = iter(completions)
    with writing(folder / "scores" / f"{judge.name}.jsonl") as write:
        while items := [(prompts[c.id], c) for c in islice(rest, AT_ONCE)]:
            scores = checked_scores(judge, items)
            write(jsonl_bytes(score_row(c, score) for (_, c), score in zip(items, scores, strict=True)))


def evaluate(
    engine: WaveEngine,
    name: str,
    benchmarks: Mapping[Benchmark, Sequence[Prompt]],
    sampling: Sampling,
    judges: Sequence[str],
    folder: Path,
    suite: str,
    quiet: bool = False,
    left_out: Sequence[LeftOut] = (),
    costs: Costs | None = None,
) -> dict[str, Any]:
    """Generate, judge and summarise every benchmark; writes and returns ``summary.json``.

    Args:
        name: the model's name in the run.
        benchmarks: benchmark to its prompts.
        sampling: decoding; each benchmark's own ``max_new_tokens`` caps the length.
        judges: judges by name; see :func:`meant_for` for which benchmark each one scores.
        folder: ``evals/MODEL``.
        left_out: benchmarks of the suite that could not be measured; kept in the summary.
        costs: gets the seconds of ``generate`` and ``judge``, and the tokens generated.

    Raises:
        UserError: no judge for a benchmark, or one that needs likelihoods under an engine that has none.
    """
    made, costs = require_judges(benchmarks, judges, bool(left_out)), costs or Costs()
    engines = {
        benchmark: _chooser(engine, benchmark) if benchmark.by_likelihood else engine for benchmark in benchmarks
    }
    identities = {judge.name: judge.identity for judge in made.values()}
    parts: dict[str, Any] = {}
    for benchmark, prompts in benchmarks.items():
        own = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, benchmark.max_new_tokens)})
        if benchmark.by_likelihood:
            own = own.model_copy(update={"n": 1})  # the same for every sample
        meant = [judge for spec, judge in made.items() if meant_for(spec, judge, benchmark)]
        title, target = f"{name} on {benchmark.name}", folder / benchmark.name
        part = _measure(engines[benchmark], prompts, own, meant, target, title, quiet, costs)
        parts[benchmark.name] = {"max_new_tokens": own.max_new_tokens, **part}
    summary = {
        "model": name,
        "identity": engine.model_identity,
        "engine": engine.identity,
        "suite": suite,
        "sampling": {**sampling.model_dump(), **dict.fromkeys(engine.not_sent)},
        "dtype": engine.dtype,
        "judges": identities,
        "provisional": by_rules_alone(judge.name for judge in made.values()),
        "left_out": [asdict(gap) for gap in left_out],
        "benchmarks": parts,
    }
    return _checked(folder, summary)


def _measure(
    engine: WaveEngine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    judges: Sequence[Judge],
    folder: Path,
    title: str,
    quiet: bool,
    costs: Costs,
) -> dict[str, Any]:
    """One benchmark generated and judged: its part of the summary. Answers and scores are in files, and stay there."""
    there = (folder / "completions.jsonl").exists()
    with costs.timed("generate"):
        write_completions(engine, prompts, sampling, folder, title, quiet)
    asked, completions = read_answers(folder, held=False)
    if not there:
        costs.add("generate", **token_counts(completions.values()))
    with costs.timed("judge"):
        for judge in judges:
            judge_benchmark(judge, asked, completions.values(), folder)
    scores = read_scores(folder, completions, held=False)
    by_these = {judge.name: scores[judge.name] for judge in judges}
    return summarise(asked.values(), completions.values(), by_these, {judge.name: judge.identity for judge in judges})


def token_counts(completions: Iterable[Completion]) -> dict[str, int]:
    """Tokens written in answers, with the token that ended each, and tokens of their prompts."""
    counts = {"tokens": 0, "prompt_tokens": 0}
    for row in completions:
        counts["tokens"] += len(row.token_ids) + (row.finish_reason == "stop")
        counts["prompt_tokens"] += row.prompt_tokens
    return counts


def _chooser(engine: WaveEngine, benchmark: Benchmark) -> WaveEngine:
    """An engine that picks the most likely choice."""
    from safeserve.generation.choices import ChoiceEngine
    from safeserve.generation.local import LocalEngine

    if not isinstance(engine, LocalEngine):
        raise UserError(f"{benchmark.name}: needs the likelihood of a given text, which only a local model tells.")
    return ChoiceEngine(engine.loaded)


def rescore(folder: Path, judges: Sequence[str]) -> dict[str, Any]:
    """Judge the stored completions of ``evals/MODEL`` and write its summary again; nothing is generated.

    Raises:
        UserError: not such a folder, or a judge that scores nothing in it.
    """
    found = read_eval(folder, held=False)
    made = _make_judges(judges)
    stored = found.benchmarks.items()
    idle = [spec for spec, judge in made.items() if not any(_scores(spec, judge, *each) for each in stored)]
    for spec in idle:
        if spec not in DEFAULT_JUDGES or len(idle) == len(made):
            raise UserError(_idle(spec, made[spec], list(found.benchmarks)))
    identities = {**found.judge_identities, **{judge.name: judge.identity for judge in made.values()}}
    parts: dict[str, Any] = {}
    for name, part in stored:
        for spec, judge in made.items():
            if _scores(spec, judge, name, part):
                judge_benchmark(judge, part.prompts, part.completions.values(), folder / name)
        scores = read_scores(folder / name, part.completions, held=False)
        counted = summarise(part.prompts.values(), part.completions.values(), scores, identities)
        parts[name] = {**_decoding(found.meta, name), **counted}
    summary = {
        **found.meta,
        "model": found.model,
        "judges": identities,
        "provisional": by_rules_alone(identities),
        "benchmarks": parts,
    }
    return _checked(folder, summary)


def _scores(spec: str, judge: Judge, name: str, part: BenchmarkEval) -> bool:
    """Whether a judge has anything to score in a stored benchmark; one that is not ours takes every judge."""
    known = find_benchmark(name)
    meant = known is None or meant_for(spec, judge, known)
    return meant and any(applies(judge.name, prompt) for prompt in part.prompts.values())


def _checked(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the summary with what the hygiene rules find in the folder; returns it."""
    write_json(folder / "summary.json", summary)
    summary = {**summary, "findings": [finding.to_json() for finding in check_side(read_eval(folder, held=False))]}
    write_json(folder / "summary.json", summary)
    return summary


def _decoding(meta: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    """What a summary says of how a benchmark was decoded, which judging again does not change."""
    part = meta.get("benchmarks", {}).get(benchmark, {})
    return {"max_new_tokens": part["max_new_tokens"]} if "max_new_tokens" in part else {}
