"""Why answers fail: everything that ``safeserve analyze`` says of a run's evaluations, as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safeserve.core.errors import EvidenceError, SafeserveError, UserError, did_you_mean
from safeserve.core.options import stable_hash
from safeserve.core.statistics import wilson
from safeserve.evaluation import analysis_clusters as clusters
from safeserve.evaluation.analysis_candidates import candidates_of
from safeserve.evaluation.analysis_collapse import collapse
from safeserve.evaluation.analysis_findings import ALPHA, DRAWS, SHOWN_IDS, Candidate, corrected_p, find
from safeserve.evaluation.analysis_groups import group_rates, rates_by, unsafe_rate
from safeserve.evaluation.analysis_position import first_unsafe_sentences
from safeserve.evaluation.analysis_rewards import raft_checks, reward_checks
from safeserve.evaluation.analysis_rewrites import rewriting_changes
from safeserve.evaluation.analysis_rows import (
    Observation,
    PromptRow,
    choose_judge,
    observations,
    own_prompts,
    prompt_rows,
    unscored,
)
from safeserve.evaluation.analysis_summary import summarise_run
from safeserve.evaluation.analysis_terms import distinguishing
from safeserve.evaluation.analysis_transitions import transitions
from safeserve.evaluation.compare import require_comparable
from safeserve.evaluation.folder import EvalFolder, read_eval
from safeserve.judging.judge import Judge
from safeserve.judging.registry import by_rules_alone

TOP_TERMS = 10


def read_run(run: Path, model: str | None = None, against: str | None = None) -> list[EvalFolder]:
    """The evaluations of a run in the order in which they were trained, or ``against`` and ``model`` alone.

    Raises:
        EvidenceError: the run holds none.
        UserError: no such model in it, or ``against`` without ``model``.
    """
    if against is not None and model in (None, against):
        raise UserError("--against: says what --model is compared with. Give --model, another one, too.")
    known = {path.parent.parent.name for path in (run / "evals").glob("*/*/prompts.jsonl")}
    if not known:
        raise EvidenceError(f"{run}: nothing has been evaluated in it. Run `safeserve run` or `safeserve eval` first.")
    wanted = [name for name in (against, model) if name is not None]
    for name in wanted:
        if name not in known:
            raise UserError(f'{run}: no evaluation of a model "{name}".{did_you_mean(name, known)}')
    # by its folder's name, which is its own; evaluations of several models may all be called base in their summaries
    return [replace(read_eval(run / "evals" / name), model=name) for name in wanted or _in_order(run, known)]


def _in_order(run: Path, names: set[str]) -> list[str]:
    """base first, then as the run's recipe trains them; models that it does not name by their names."""
    from safeserve.core.yaml_files import read_yaml

    try:
        tree = read_yaml(run / "recipe.yaml")
    except SafeserveError:
        tree = None
    trained = tree.get("train") if isinstance(tree, dict) else None
    order = ["base", *(map(str, trained) if isinstance(trained, dict) else ())]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def inputs_of(sides: Sequence[EvalFolder]) -> dict[str, str]:
    """Model to a hash of its summary: an analysis of other inputs is none of these evaluations."""
    return {side.model: stable_hash(side.meta) for side in sides}


def analyze(
    sides: Sequence[EvalFolder],
    judge: str | None = None,
    *,
    seed: int = 7,
    guard: Judge | None = None,
    strict: bool = False,
    run: Path | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """The content of ``analysis/analysis.json``; it holds no answer and of the prompts only ids and single terms.

    Args:
        sides: one model or more, in the order of training.
        judge: who decides what is unsafe; see :func:`choose_judge`.
        seed: of the permutations.
        guard: reads unsafe answers sentence by sentence; without it the first unsafe sentence is not looked for.
        strict: two models that must not be compared are an error instead of a note.
        run: the run's folder, for the samples of its RAFT stages.
        draws: permutations of each look.

    Raises:
        EvidenceError, UserError: see :func:`choose_judge` and, when strict, :func:`require_comparable`.
    """
    chosen = choose_judge(sides, judge)
    notes: list[str] = []
    pairs = []
    for a, b in combinations(sides, 2):
        try:
            notes += require_comparable(a, b)
        except UserError as error:
            if strict:
                raise
            notes.append(f"{a.model} and {b.model} are not compared: {error}")
        else:
            pairs.append(transitions(a, b, chosen))
    models = {side.model: _of_model(side, chosen, seed, guard, draws, notes) for side in sides}
    notes += _without_clusters(models)
    result: dict[str, Any] = {
        "judge": chosen,
        "identities": {side.model: side.judge_identities.get(chosen) for side in sides},
        "provisional": by_rules_alone([chosen]),
        "inputs": inputs_of(sides),
        "seed": seed,
        "permutations": draws,
        "alpha": ALPHA,
        "guard": guard.name if guard is not None else None,
        "summary": [],
        "models": models,
        "transitions": pairs,
        "raft": raft_checks(run) if run is not None else [],
        "notes": list(dict.fromkeys(notes)),
    }
    result["summary"] = summarise_run(result)
    return result


def _of_model(
    side: EvalFolder, judge: str, seed: int, guard: Judge | None, draws: int, notes: list[str]
) -> dict[str, Any]:
    rows = observations(side, judge)
    if not rows:
        raise EvidenceError(
            f"{side.path}: {judge} has scored no answer to a harmful prompt. Run `safeserve score` on it."
        )
    if missing := unscored(side, judge):
        notes.append(f"{side.model}: {missing} answers to harmful prompts are unscored by {judge} and left out.")
    own = own_prompts(rows, lambda row: (row.id, row.original))
    rewritings = rewriting_changes(rows)
    prompts = prompt_rows(own)
    grouped = clusters.cluster([prompt.text for prompt in prompts])
    described = clusters.describe(prompts, *grouped) if grouped is not None else []
    candidates = candidates_of(prompts, grouped, described)
    return {
        "unsafe": unsafe_rate(own),
        "prompts": len(prompts),
        "unsafe_prompts": sum(prompt.unsafe for prompt in prompts),
        "unsafe_ids": _ids_by_benchmark(rows),
        "groups": {**group_rates(own), "benchmark": rates_by(rows, lambda row: [row.benchmark])},
        "patterns": find_patterns(prompts, candidates, rewritings, seed, draws),
        "terms": distinguishing(
            [p.text for p in prompts if p.unsafe], [p.text for p in prompts if not p.unsafe], TOP_TERMS
        ),
        "clusters": described,
        "no_clusters": clusters.why_none(len(prompts)),
        "rewritings": rewritings,
        "rewards": reward_checks(side, judge),
        "collapse": collapse(side),
        "position": first_unsafe_sentences(side, rows, guard) if guard is not None else None,
    }


def _without_clusters(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A note for each reason why models have no clusters: else it looks as if none held an unsafe prompt."""
    reasons = dict.fromkeys(part["no_clusters"] for part in models.values() if part["no_clusters"])
    for reason in reasons:
        names = ", ".join(name for name, part in models.items() if part["no_clusters"] == reason)
        yield f"{names}: prompts were not grouped into clusters, and none was looked at, because {reason}."


def find_patterns(
    prompts: Sequence[PromptRow],
    candidates: Sequence[Candidate],
    rewritings: Sequence[dict[str, Any]],
    seed: int,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Findings of all families: patterns inside benchmarks, whole benchmarks, rewritings; corrected for all.

    Args:
        prompts: in the order of the candidates' members.
        candidates: as ``candidates_of`` gives them.
        rewritings: as ``rewriting_changes`` gives them.
        seed, draws: of the permutations.

    Returns:
        What :func:`find` returns, with ``families``, by whose number every p has been multiplied.
    """
    unsafe = np.array([prompt.unsafe for prompt in prompts])
    names = list(dict.fromkeys(prompt.benchmark for prompt in prompts))
    strata = np.array([names.index(prompt.benchmark) for prompt in prompts])
    factor = 1 + (len(names) > 1) + bool(rewritings)
    found = find(unsafe, strata, candidates, [prompt.id for prompt in prompts], seed, draws, factor)
    whole = list(_benchmarks(prompts, names, unsafe, strata, seed, draws, factor))
    changed = list(_rewritten(rewritings, factor))
    return {**found, "findings": [*whole, *found["findings"], *changed], "families": factor}


def _benchmarks(
    prompts: Sequence[PromptRow],
    names: Sequence[str],
    unsafe: NDArray[np.bool_],
    strata: NDArray[np.intp],
    seed: int,
    draws: int,
    factor: int,
) -> Iterator[dict[str, Any]]:
    """Benchmarks with more unsafe prompts than the others, prompts dealt out over all of them."""
    if len(names) < 2:
        return
    columns = strata[:, None] == np.arange(len(names))
    p, _ = corrected_p(unsafe, np.zeros_like(strata), columns, seed, draws)
    for number, name in enumerate(names):
        corrected = min(1.0, factor * float(p[number]))
        inside, outside = unsafe[columns[:, number]], unsafe[~columns[:, number]]
        if corrected < ALPHA:
            interval = wilson(int(inside.sum()), len(inside))
            yield {
                "kind": "benchmark",
                "name": name,
                "prompts": len(inside),
                "unsafe": int(inside.sum()),
                "rate": float(inside.mean()),
                "ci95": [interval.low, interval.high],
                "elsewhere_prompts": len(outside),
                "elsewhere_unsafe": int(outside.sum()),
                "elsewhere_rate": float(outside.mean()),
                "p": corrected,
                "same": [],
                "also": [],
                "ids": [one.id for one in prompts if one.benchmark == name and one.unsafe][:SHOWN_IDS],
            }


def _rewritten(rewritings: Sequence[dict[str, Any]], factor: int) -> Iterator[dict[str, Any]]:
    """Ways of rewriting that make answers unsafe; exact McNemar is the permutation test of pairs."""
    for cell in rewritings:
        p = min(1.0, factor * cell["p_holm"])
        if cell["difference"] > 0 and p < ALPHA:
            changed = {key: cell[key] for key in ("original", "rewritten", "difference", "ci95", "ids")}
            yield {"kind": "rewriting", "name": cell["rewriting"], "prompts": cell["n"], "p": p, **changed}


def _ids_by_benchmark(rows: Sequence[Observation]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.unsafe:
            found.setdefault(row.benchmark, []).append(row.name)
    return found
