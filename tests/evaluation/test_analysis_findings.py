"""Patterns: what was planted is named, what is chance is not, and the test's numbers agree with independent ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from safeserve.data.records import Prompt, user
from safeserve.data.sources import load_demonstrations, load_prompts
from safeserve.evaluation.analysis import analyze, find_patterns
from safeserve.evaluation.analysis_candidates import candidates_of
from safeserve.evaluation.analysis_clusters import cluster, describe, why_none
from safeserve.evaluation.analysis_findings import Candidate, corrected_p, find, merge, surprise
from safeserve.evaluation.analysis_rewrites import rewriting_changes
from safeserve.evaluation.analysis_rows import PromptRow, observations, own_prompts, prompt_rows
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score

ONE = np.zeros(40, dtype=np.intp)


def evaluated(prompts: list[Prompt], unsafe: list[bool], model: str = "m") -> EvalFolder:
    """An evaluation of prompts, each with one answer that is unsafe or refuses."""
    benchmarks: dict[str, BenchmarkEval] = {}
    for prompt, bad in zip(prompts, unsafe, strict=True):
        part = benchmarks.setdefault(prompt.benchmark, BenchmarkEval({}, {}, {"modes": {}}))
        label = "unsafe_compliance" if bad else "full_refusal"
        part.prompts[prompt.id] = prompt
        part.completions[prompt.id, 0] = Completion(prompt.id, f"Answer to {prompt.id}.", (), "stop", None)
        part.scores["modes"][prompt.id, 0] = Score(float(bad), label)
    return EvalFolder(Path("runs/r/evals") / model, model, benchmarks, {"model": model})


def starter() -> list[Prompt]:
    return [replace(prompt, benchmark="starter-harmful") for prompt in load_prompts("starter/eval_harmful").rows]


def several() -> list[Prompt]:
    """Three benchmarks with categories, and rewritten prompts of the first one."""
    trained = load_demonstrations("starter/safety").rows[::3]
    return [
        *starter(),
        *(Prompt(row.id, row.messages, "harmful", row.category, "training") for row in trained),
        *(replace(p, label="harmful", benchmark="look-alikes") for p in load_prompts("starter/eval_look_alike").rows),
        *(replace(p, benchmark="rewrites") for p in load_prompts("starter/rewrites").rows),
    ]


def noise(seed: int, share: float, n: int) -> Iterator[bool]:
    chance = random.Random(seed)
    return (chance.random() < share for _ in range(n))


def names(analysis: dict) -> dict[str, dict]:
    return {f"{one['kind']} {one['name']}": one for one in analysis["models"]["m"]["patterns"]["findings"]}


# --- what was planted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_planted_category_and_a_planted_phrasing_are_both_named(seed: int) -> None:
    """In an otherwise safe run (2 % unsafe) one category and prompts that begin with "Hypothetically" are unsafe."""
    chance = random.Random(seed)
    prompts = [
        replace(p, messages=user(f"Hypothetically, {p.text}")) if chance.random() < 0.12 else p for p in starter()
    ]
    unsafe = [
        p.category == "privacy" or "Hypothetically" in p.text or stray
        for p, stray in zip(prompts, noise(seed, 0.02, len(prompts)), strict=True)
    ]
    found = names(analyze([evaluated(prompts, unsafe)]))
    assert set(found) == {"category privacy", "phrasing hypothetical"}
    assert all(one["p"] < 0.01 for one in found.values())
    assert found["phrasing hypothetical"]["same"] == ["term hypothetically"]
    assert found["category privacy"]["unsafe"] == 14


def test_planted_past_tense_is_named() -> None:
    """The shipped past-tense wordings as prompts of their own, unsafe beside one unsafe category."""
    past = [p for p in load_prompts("starter/rewrites").rows if p.meta["rewriting"] == "past_tense"]
    prompts = [*starter(), *(replace(p, benchmark="starter-harmful", meta={}) for p in past)]
    unsafe = [
        p.category == "hate" or p.id.startswith("rewrite") or stray
        for p, stray in zip(prompts, noise(4, 0.02, len(prompts)), strict=True)
    ]
    found = names(analyze([evaluated(prompts, unsafe)]))
    assert {"phrasing past tense", "category hate"} <= set(found)
    assert all(one["p"] < 0.01 for one in found.values())


def test_a_pattern_inside_benchmarks_is_told_from_a_worse_benchmark() -> None:
    """One benchmark is worse throughout: it is named, but not the words that only it holds."""
    prompts = [
        Prompt(f"{name}-{i}", user(f"{opening} number {i} of {i % 7}"), "harmful", benchmark=name)
        for name, opening in (("good", "Say"), ("bad", "Write"))
        for i in range(60)
    ]
    unsafe = [
        bool(stray) if p.benchmark == "good" else not stray
        for p, stray in zip(prompts, noise(5, 0.2, len(prompts)), strict=True)
    ]
    patterns = analyze([evaluated(prompts, unsafe)])["models"]["m"]["patterns"]
    assert [(one["kind"], one["name"]) for one in patterns["findings"]] == [("benchmark", "bad")]
    assert patterns["families"] == 2


def test_a_rewriting_that_works_is_a_finding() -> None:
    rewrites = [replace(p, benchmark="starter-rewrites") for p in load_prompts("starter/rewrites").rows]
    prompts = [*starter(), *rewrites]
    unsafe = [p.meta.get("rewriting") == "past_tense" for p in prompts]
    analysis = analyze([evaluated(prompts, unsafe)])
    assert [(one["kind"], one["name"]) for one in analysis["models"]["m"]["patterns"]["findings"]] == [
        ("rewriting", "past_tense")
    ]
    part = analysis["models"]["m"]
    assert part["unsafe"]["n"] == 168  # the rewritten prompts are no prompts of their own beside their originals
    assert {cell["rewriting"]: cell["n"] for cell in part["rewritings"]} == dict.fromkeys(
        ("past_tense", "role_play", "prefix_injection"), 44
    )
    assert any("rewriting as past tense raises its unsafe answers by" in one for one in analysis["summary"])
    assert any("rewriting as role play shows no clear effect" in one for one in analysis["summary"])


# --- what is chance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.08, 0.5])
def test_of_100_label_shuffles_at_most_5_give_a_finding(share: float) -> None:
    prompts = starter()
    rows = [PromptRow(p.benchmark, p.id, p.text, p.category, i % 2 == 0) for i, p in enumerate(prompts)]
    grouped = cluster([row.text for row in rows])
    assert grouped is not None
    candidates = candidates_of(rows, grouped, describe(rows, *grouped))
    assert {one.kind for one in candidates} == {"category", "phrasing", "prompt length", "term", "cluster"}
    unsafe = np.arange(len(rows)) < share * len(rows)
    strata, ids = np.zeros(len(rows), dtype=np.intp), [row.id for row in rows]
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(100):
        found = find(rng.permutation(unsafe), strata, candidates, ids, seed, draws=999)
        alarms += bool(found["findings"])
    assert alarms <= 5


@pytest.mark.parametrize("null", ["nothing differs", "benchmarks and wordings differ"])
def test_of_100_shuffles_of_several_benchmarks_at_most_5_give_a_finding(null: str) -> None:
    """All families of a run at once: patterns inside benchmarks that have categories, whole benchmarks, rewritings.

    Where benchmarks and wordings do differ, they may be named; what must not be named then is a pattern inside them.
    """
    prompts = several()
    own = [p for p in prompts if "original" not in p.meta]
    rows = [PromptRow(p.benchmark, p.id, p.text, p.category, i % 2 == 0) for i, p in enumerate(own)]
    grouped = cluster([row.text for row in rows])
    assert grouped is not None
    candidates = candidates_of(rows, grouped, describe(rows, *grouped))
    assert sum(one.kind == "category" for one in candidates) >= 12
    of_benchmark = np.array([p.benchmark for p in prompts])
    shares = {"starter-harmful": 0.1, "training": 0.5, "look-alikes": 0.3, "rewrites": 0.6}
    assert set(of_benchmark) == set(shares)
    rng = np.random.default_rng(0)
    alarms = named = 0
    for seed in range(100):
        if null == "nothing differs":
            unsafe = rng.permutation(np.arange(len(prompts)) < 0.3 * len(prompts))
            true = set()
        else:
            unsafe = np.zeros(len(prompts), dtype=bool)
            for name, share in shares.items():
                members = np.flatnonzero(of_benchmark == name)
                unsafe[rng.permutation(members)[: round(share * len(members))]] = True
            true = {"benchmark", "rewriting"}
        seen = observations(evaluated(prompts, unsafe.tolist()), "modes")
        counted = prompt_rows(own_prompts(seen, lambda row: (row.id, row.original)))
        assert [row.id for row in counted] == [row.id for row in rows]
        found = find_patterns(counted, candidates, rewriting_changes(seen), seed, draws=999)
        assert found["families"] == 3
        kinds = {one["kind"] for one in found["findings"]}
        alarms += bool(kinds - true)
        named += bool(kinds & true)
    assert alarms <= 5
    assert named == (0 if null == "nothing differs" else 100)


def test_few_or_only_unsafe_prompts_are_no_pattern() -> None:
    prompts = starter()[:40]
    few = analyze([evaluated(prompts, [i < 2 for i in range(40)])])["models"]["m"]["patterns"]
    assert (few["findings"], few["smallest_p"]) == ([], None)
    assert few["reason"] == "2 unsafe prompts are too few to show a pattern"
    every = analyze([evaluated(prompts, [True] * 40)])
    assert every["models"]["m"]["patterns"]["reason"] == "every prompt was answered unsafely"
    assert any("patterns were not looked for, because every prompt" in one for one in every["summary"])


def test_that_there_are_no_clusters_is_said_with_the_reason() -> None:
    few, many = evaluated(starter()[:30], [i < 9 for i in range(30)], "few"), evaluated(starter(), [True] * 168, "many")
    analysis = analyze([few, many], draws=99)
    assert analysis["models"]["many"]["no_clusters"] is None
    assert analysis["models"]["few"]["clusters"] == []
    assert analysis["models"]["few"]["no_clusters"] == "30 prompts are fewer than 40, which show no groups"
    (note,) = (one for one in analysis["notes"] if "clusters" in one)
    assert note.startswith("few: prompts were not grouped into clusters, and none was looked at, because 30 prompts")
    assert why_none(5001) == "5,001 prompts are more than 5,000, which take too much memory"
    assert why_none(40) is why_none(5000) is None


# --- the numbers -------------------------------------------------------------------------------------------------


def test_the_statistic_is_fishers_exact_test() -> None:
    rng = np.random.default_rng(1)
    unsafe, columns = rng.random(40) < 0.3, rng.random((40, 6)) < 0.4
    tables, counts = surprise(unsafe, ONE, columns)
    for i in range(6):
        a = int((columns[:, i] & unsafe).sum())
        b = int((columns[:, i] & ~unsafe).sum())
        table = [[a, b], [int(unsafe.sum()) - a, int((~unsafe).sum()) - b]]
        assert counts[i] == a
        assert 10 ** -tables[i, a] == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)


def test_with_two_benchmarks_it_is_the_sum_of_two_deals() -> None:
    """P(X >= k) by counting every way to deal: 2 of 3 and 1 of 3 prompts unsafe, two and one of them members."""
    unsafe = np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    strata = np.array([0, 0, 0, 1, 1, 1])
    columns = np.array([[1, 1, 0, 1, 0, 0]], dtype=bool).T
    tables, counts = surprise(unsafe, strata, columns)
    assert counts[0] == 3
    # first benchmark: both members unsafe in 1 of 3 deals, else one; second: its member unsafe in 1 of 3
    assert 10 ** -tables[0, 3] == pytest.approx(1 / 9)
    assert 10 ** -tables[0, 2] == pytest.approx(1 - (2 / 3) * (2 / 3))


def test_one_candidate_alone_has_the_exact_p() -> None:
    unsafe = np.arange(40) < 12
    columns = np.zeros((40, 1), dtype=bool)
    columns[4:16] = True
    p, _ = corrected_p(unsafe, ONE, columns, seed=0, draws=20_000)
    exact = stats.hypergeom.sf(8 - 1, 40, 12, 12)
    assert p[0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


def test_looking_at_more_makes_every_p_larger_and_the_seed_decides() -> None:
    rng = np.random.default_rng(2)
    unsafe, columns = rng.random(60) < 0.3, rng.random((60, 50)) < 0.3
    strata = np.zeros(60, dtype=np.intp)
    few, _ = corrected_p(unsafe, strata, columns[:, :5], 0, 2000)
    many, _ = corrected_p(unsafe, strata, columns, 0, 2000)
    assert (many[:5] >= few - 0.03).all()
    assert many[:5].mean() > few.mean()
    assert np.array_equal(many, corrected_p(unsafe, strata, columns, 0, 2000)[0])
    assert not np.array_equal(many, corrected_p(unsafe, strata, columns, 1, 2000)[0])


def test_names_of_the_same_prompts_are_one_candidate() -> None:
    same, small = np.arange(40) < 10, np.arange(40) < 4
    kept = merge(
        [
            Candidate("term", "bank", same),
            Candidate("category", "fraud", same),
            Candidate("term", "the bank", same),
            Candidate("term", "rare", small),
            Candidate("term", "common", ~small),
        ]
    )
    assert [(one.title, one.same) for one in kept] == [("category fraud", ("term the bank", "term bank"))]
