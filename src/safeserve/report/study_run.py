"""A finished run as the paper's study sees it, and what can be asked of it: a rate, a difference, a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safeserve.core.clustered import clustered_paired_difference, clustered_paired_mean, clustered_rate
from safeserve.core.runs import read_json
from safeserve.evaluation.analysis_rewards import raft_checks
from safeserve.evaluation.compare import compare_metric, paired_keys
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, read_eval
from safeserve.evaluation.metrics import Metric, find_metric
from safeserve.judging.evidence import why_unscored
from safeserve.report.content import doses, preflights, recipe_of
from safeserve.report.rows import interval_text, main_judge, percent
from safeserve.report.seeds import repetitions

SEED = 0
"""Of bootstrap intervals, so that the same run gives the same tables."""


@dataclass(frozen=True)
class Study:
    """What the tables and claims are made of.

    Attributes:
        models: those that were evaluated.
        stages: the recipe's training stages, as far as they were run.
        dose: safety demonstrations of each SIT model.
        not_run: stages that were not, and why.
        curves: of each RAFT stage, a row an iteration.
        preflights: of each RAFT stage, what its pre-flight found.
        scorers: of each reward and cost stage, its accuracy on held-out pairs.
        picks: of each RAFT iteration, what the reward picked against what the held-out judge says.
    """

    title: str
    note: str
    models: Mapping[str, EvalFolder]
    stages: Mapping[str, Mapping[str, Any]]
    dose: Mapping[str, int]
    not_run: Mapping[str, str]
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    preflights: Mapping[str, Mapping[str, Any]]
    scorers: Mapping[str, Mapping[str, Any]]
    picks: Sequence[Mapping[str, Any]]

    @property
    def start(self) -> str:
        """The model without safety data that the others are set against."""
        return next((name for name, dose in self.dose.items() if dose == 0), "base")

    def of_method(self, *methods: str) -> list[str]:
        """Measured models of these methods; one seed stands for each."""
        return [
            name
            for name, stage in self.stages.items()
            if stage.get("method") in methods and name in self.models and not stage.get("repeats")
        ]

    def seeds_of(self, name: str) -> list[str]:
        """The model and its measured repetitions with other seeds."""
        return [one for one in (name, *repetitions(self.stages).get(name, ())) if one in self.models]


@dataclass(frozen=True)
class Difference:
    """``b − a`` over the same prompts, in the metric's own unit (a share, or a mean)."""

    a: str
    b: str
    before: float
    after: float
    value: float
    low: float
    high: float
    n: int
    is_mean: bool = False

    @property
    def words(self) -> str:
        """``dose-0 → dpo: 41.2 % → 87.4 %, +46.2 points [+40.1, +51.9], n = 318``."""
        if self.is_mean:
            sides, unit, scale = f"{self.before:.3f} → {self.after:.3f}", "", 1.0
        else:
            sides, unit, scale = f"{percent(self.before)} → {percent(self.after)}", " points", 100.0
        step = "+.3f" if self.is_mean else "+.1f"
        value, low, high = (f"{scale * one:{step}}".replace("-", "−") for one in (self.value, self.low, self.high))
        return f"{self.a} → {self.b}: {sides}, {value}{unit} [{low}, {high}], n = {self.n}"


def read_study(run_dir: Path) -> Study:
    """Read a finished run."""
    recipe, manifest = recipe_of(run_dir), read_json(run_dir / "manifest.json")
    models = (recipe.get("evaluate") or {}).get("models") or ["base"]
    stages = recipe.get("train") or {}
    metrics = {
        name: read_json(path)
        for name in stages
        if (path := run_dir / "stages" / f"train-{name}" / "metrics.json").exists()
    }

    def found(methods: Iterable[str], key: str) -> dict[str, Any]:
        return {
            name: rows[key] for name, rows in metrics.items() if stages[name].get("method") in methods and key in rows
        }

    return Study(
        title=run_dir.resolve().name,
        note=str(recipe.get("note") or ""),
        models={name: read_eval(path) for name in models if (path := run_dir / "evals" / name).exists()},
        stages=stages,
        dose=doses(stages),
        not_run=manifest.get("not_run") or {},
        curves={name: curves.get("validation", ()) for name, curves in found(["raft"], "curves").items()},
        preflights=preflights(run_dir, stages),
        scorers=found(["reward", "cost"], "held_out"),
        picks=raft_checks(run_dir),
    )


def pooled_rate(
    study: Study, name: str, benchmarks: Sequence[str], rate: str
) -> tuple[float, float, float, int] | None:
    """(rate, low, high, n) over all answers to the benchmarks; None unless each was measured."""
    hits: list[bool] = []
    clusters: list[str] = []
    for benchmark in benchmarks:
        part = study.models[name].benchmarks.get(benchmark) if name in study.models else None
        judge = main_judge(rate, part.scores) if part else None
        if part is None or judge is None:
            return None
        metric = find_metric(judge, rate, benchmark)
        scored = [(key, score) for key, score in part.scores[judge].items() if why_unscored(judge, score) is None]
        hits += [metric.value(score) > 0 for _, score in scored]
        clusters += [f"{benchmark} {key[0]}" for key, _ in scored]
    if not hits:
        return None
    interval = clustered_rate(hits, clusters)
    return sum(hits) / len(hits), interval.low, interval.high, len(hits)


@dataclass(frozen=True)
class Paired:
    """One metric of the same answers' prompts under two models; ``clusters``: a name a prompt."""

    before: list[float]
    after: list[float]
    clusters: list[str]
    is_mean: bool


def paired_values(study: Study, a: str, b: str, benchmarks: Sequence[str], metric: str) -> Paired | None:
    """Both models' values over the benchmarks, prompt by prompt; None where one was not measured."""
    found = Paired([], [], [], metric.startswith("mean_"))
    for benchmark in benchmarks:
        sides = sides_of(study, a, b, benchmark, metric)
        if sides is None:
            return None
        one, old, new = sides
        keys = paired_keys(one.judge, old, new).both
        found.before.extend(one.value(old.scores[one.judge][key]) for key in keys)
        found.after.extend(one.value(new.scores[one.judge][key]) for key in keys)
        found.clusters.extend(f"{benchmark} {key[0]}" for key in keys)
    return found if found.before else None


def difference(study: Study, a: str, b: str, benchmarks: Sequence[str], metric: str) -> Difference | None:
    """``b − a`` over the benchmarks, as a rate or a mean; None where one was not measured."""
    found = paired_values(study, a, b, benchmarks, metric)
    if found is None:
        return None
    before, after, clusters = found.before, found.after, found.clusters
    if found.is_mean:
        value, spread = clustered_paired_mean(before, after, clusters, SEED)
    else:
        value, spread = clustered_paired_difference([x > 0 for x in before], [x > 0 for x in after], clusters)
    if spread is None:
        return None
    means = (fmean(before), fmean(after))
    return Difference(a, b, *means, value, spread.low, spread.high, len(before), found.is_mean)


def paired_test(study: Study, a: str, b: str, benchmark: str, metric: str) -> dict[str, Any] | None:
    """One cell of a comparison (``fixed``, ``broken``, ``p``); None where one side was not measured."""
    sides = sides_of(study, a, b, benchmark, metric)
    if sides is None:
        return None
    found, old, new = sides
    keys = paired_keys(found.judge, old, new).both
    return compare_metric(found, old, new, keys) if keys else None


def sides_of(
    study: Study, a: str, b: str, benchmark: str, metric: str
) -> tuple[Metric, BenchmarkEval, BenchmarkEval] | None:
    """The metric by a judge that scored both, and both sides."""
    parts = [study.models[name].benchmarks.get(benchmark) for name in (a, b) if name in study.models]
    if len(parts) < 2 or parts[0] is None or parts[1] is None:
        return None
    old, new = parts[0], parts[1]
    judge = main_judge(metric, [judge for judge in old.scores if judge in new.scores])
    return (find_metric(judge, metric, benchmark), old, new) if judge else None


def measured(study: Study, name: str | None, benchmark: str, metric: str, needs: str = "a judge for it") -> str:
    """A measured cell with interval and n, or what it needs."""
    if name is None or name not in study.models:
        return f"not run: {study.not_run.get(name or '', 'not in this scale')}"
    summary = study.models[name].meta
    part = summary.get("benchmarks", {}).get(benchmark)
    if part is None:
        gaps = (gap for gap in summary.get("left_out", ()) if gap["benchmark"] == benchmark)
        return "not run: " + next((f"needs {gap['source']}" for gap in gaps), "not in this suite")
    judge = main_judge(metric, part["judges"])
    cell = part["judges"][judge]["metrics"].get(metric) if judge else None
    is_mean = metric.startswith("mean_")
    value = cell.get("mean" if is_mean else "rate") if cell else None
    if cell is None or value is None:
        return f"not run: needs {needs}"
    if is_mean:
        low, high = cell["ci95"] or (value, value)
        return f"{value:.3f} [{low:.3f}, {high:.3f}] (n = {cell['n']})"
    return f"{percent(value)} [{interval_text(cell['ci95'])}] (n = {cell['n']})"
