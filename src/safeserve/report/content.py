"""What the page shows: read from a run directory, nothing computed here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeserve.core.errors import EvidenceError
from safeserve.core.options import stable_hash
from safeserve.core.runs import read_json
from safeserve.core.yaml_files import read_yaml
from safeserve.evaluation.folder import EvalFolder, Key, read_eval
from safeserve.evaluation.metrics import Metric
from safeserve.judging.judge import Score
from safeserve.judging.registry import mode_judge
from safeserve.report.opinions import contradiction, counted_metric, is_right, is_share
from safeserve.report.seeds import repetitions


@dataclass(frozen=True)
class ReportInput:
    """Everything the page shows; the shapes are those of the run directory's files.

    Attributes:
        title: the run's name.
        verdict: verdict.json, or None.
        summaries: model name to summary.json, in the order of training.
        comparison: compare/A--B.json of the models shown side by side, or None.
        samples: rows of :func:`sample_rows`.
        curves: stage name to the ``curves`` of its metrics.json: ``{"train": [{"step": 1, "loss": ...}], ...}``.
        command: what to type to get the same result.
        manifest: manifest.json; any key may be missing.
        doses: SIT models by how many safety demonstrations they saw.
        repeats: stages by those that repeat them with another seed.
        preflights: RAFT stages by what their pre-flight found (iter-1/preflight.json).
        analysis: analysis/analysis.json, or None where there is none of these evaluations.
        study: study.json without its table of seeds, or None where the run is no study.
    """

    title: str
    verdict: Mapping[str, Any] | None
    summaries: Mapping[str, Mapping[str, Any]]
    comparison: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    analysis: Mapping[str, Any] | None = None
    doses: Mapping[str, int] = field(default_factory=dict)
    repeats: Mapping[str, Sequence[str]] = field(default_factory=dict)
    preflights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    study: Mapping[str, Any] | None = None

    @property
    def candidate(self) -> str:
        """The model that the verdict is about, else the last one."""
        return str(self.verdict["candidate"]) if self.verdict else list(self.summaries)[-1]


def report_from_run(run_dir: Path) -> ReportInput:
    """Read a run directory; what a run has not produced yet is left out of the page.

    Raises:
        EvidenceError: nothing has been evaluated yet.
        UserError: a file in it is broken (file and line).
    """
    recipe = recipe_of(run_dir)
    measured = _part(recipe, "evaluate").get("models")
    folders = [
        read_eval(path.parent)
        for path in sorted((run_dir / "evals").glob("*/summary.json"))
        if not measured or path.parent.name in measured  # what an earlier recipe measured is no part of this one
    ]
    if not folders:
        raise EvidenceError(
            f"{run_dir}: nothing has been evaluated yet, so there is nothing to report. Run `safeserve run`."
        )
    manifest = read_optional(run_dir / "manifest.json") or {}
    verdict = read_optional(run_dir / "verdict.json")
    train = _part(recipe, "train")
    trained = ["base", *train]
    folders.sort(key=lambda folder: _position(trained, folder.path.name))
    stages = sorted((run_dir / "stages").glob("*/metrics.json"), key=lambda path: path.parent.name)
    stages.sort(key=lambda path: _position(trained, path.parent.name.partition("-")[2]))
    curves = {path.parent.name: found for path in stages if isinstance(found := read_json(path).get("curves"), dict)}
    comparison = _main_comparison(run_dir, verdict)
    shown = (comparison["a"], comparison["b"]) if comparison else ()
    sides = [folder for name in shown for folder in folders if folder.model == name] or folders[:2]
    return ReportInput(
        title=run_dir.resolve().name,
        verdict=verdict,
        summaries={folder.model: folder.meta for folder in folders},
        comparison=comparison,
        samples=list(sample_rows(sides)),
        curves=curves,
        command=str(manifest.get("command") or reproduce_command(run_dir)),
        manifest=manifest,
        analysis=_analysis(run_dir, folders),
        doses=doses(train),
        repeats=repetitions(train),
        preflights=preflights(run_dir, train),
        study=_study(run_dir) if recipe.get("study") else None,
    )


def _study(run_dir: Path) -> dict[str, Any] | None:
    """study.json without its table of seeds, which every run has a place for."""
    found: dict[str, Any] | None = read_optional(run_dir / "study.json")
    return found and {**found, "tables": [table for table in found["tables"] if table["name"] != "between_seeds"]}


def preflights(run_dir: Path, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the pre-flight of each RAFT stage among a recipe's stages found, where it got so far."""
    paths = {name: run_dir / "stages" / f"train-{name}" / "iter-1" / "preflight.json" for name in stages}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def doses(stages: Mapping[str, Any]) -> dict[str, int]:
    """How many safety demonstrations each SIT model of a recipe's stages saw, where the recipe says a number.

    One seed stands for a dose: stages that repeat another one are left out.
    """
    return {
        name: stage["dose"]
        for name, stage in stages.items()
        if isinstance(stage, dict) and stage.get("method") == "sit" and isinstance(stage.get("dose"), int)
        if not stage.get("repeats")
    }


def sample_rows(folders: Sequence[EvalFolder]) -> Iterator[dict[str, Any]]:
    """One row a prompt and sample: the prompt, and each model's answer with what the judges made of it.

    ``counted`` names the rate by which its answers are right or wrong.
    """
    names = dict.fromkeys(name for side in folders for name in side.benchmarks)
    metrics = {name: counted_metric([p for s in folders if (p := s.benchmarks.get(name))]) for name in names}
    keys: dict[tuple[str, Key], None] = {
        (name, key): None for side in folders for name, part in side.benchmarks.items() for key in part.completions
    }
    for name, key in keys:
        prompt = next(p.prompts[key[0]] for side in folders if (p := side.benchmarks.get(name)) and key[0] in p.prompts)
        yield {
            "id": key[0],
            "k": key[1],
            "benchmark": name,
            "label": prompt.label,
            "category": prompt.category,
            "prompt": "\n\n".join(message["content"] for message in prompt.messages),
            "counted": metric.title if (metric := metrics[name]) else "",
            "answers": {s.model: answer for s in folders if (answer := _answer(s, name, key, metric))},
        }


def _answer(side: EvalFolder, benchmark: str, key: Key, metric: Metric | None) -> dict[str, Any] | None:
    part = side.benchmarks.get(benchmark)
    if part is None or key not in part.completions:
        return None
    judged = {judge: scores[key] for judge, scores in part.scores.items() if key in scores}
    main = mode_judge(judged)
    modes = judged[main] if main else None
    return {
        "text": part.completions[key].text,
        "mode": modes.label if modes and modes.label else "unscored" if modes else "",
        "right": is_right(metric, judged) if metric else None,
        "opposed": contradiction(judged, part.prompts[key[0]].label),
        "flags": sorted({flag for score in judged.values() for flag in score.flags}),
        "guard": _guard_part(modes) if modes else None,
        "evidence": [text for judge, score in judged.items() if (text := _explain(judge, score, judge == main))],
    }


def _guard_part(modes: Score) -> dict[str, Any] | None:
    """What the guard said of an answer, and what the rules alone would have called it.

    None without a guard, or where it was not asked; ``p_unsafe`` None where it could not tell and was needed.
    """
    detail, threshold = modes.detail, modes.detail.get("threshold")
    p_unsafe = p if is_share(p := detail.get("p_unsafe")) else None
    if not is_share(threshold) or (p_unsafe is None and modes.value is not None):
        return None
    return {
        "p_unsafe": p_unsafe,
        "threshold": threshold,
        "rule_mode": str(detail.get("rule_mode", "")),
        "category": str(detail.get("category", "")),
    }


def _explain(judge: str, score: Score, gives_the_mode: bool) -> str:
    """What a judge says beyond the response mode, which stands above the answer already."""
    said = score.label or f"{score.value:.3g}" if score.value is not None else score.reason
    words = ", ".join(filter(None, ("" if gives_the_mode and score.label else said, score.evidence)))
    return f"{judge}: {words}" if words else ""


def _main_comparison(run_dir: Path, verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verdict's two models if they were compared, else the last comparison of the run."""
    paths = sorted((run_dir / "compare").glob("*--*.json"))
    if verdict and (wanted := run_dir / "compare" / f"{verdict['against']}--{verdict['candidate']}.json").exists():
        paths = [wanted]
    return read_json(paths[-1]) if paths else None


def _analysis(run_dir: Path, folders: Sequence[EvalFolder]) -> dict[str, Any] | None:
    """The run's analysis, unless something was evaluated or judged again since."""
    found = read_optional(run_dir / "analysis" / "analysis.json")
    now = {folder.path.name: stable_hash(folder.meta) for folder in folders}
    made_from = found.get("inputs", {}) if found else {}
    return found if made_from and all(now.get(model) == inputs for model, inputs in made_from.items()) else None


def recipe_of(run_dir: Path) -> dict[str, Any]:
    """The run's recipe.yaml; empty where the folder holds evaluations alone.

    Raises:
        UserError: it is not valid YAML.
    """
    path = run_dir / "recipe.yaml"
    content = read_yaml(path) if path.exists() else None
    return content if isinstance(content, dict) else {}


def reproduce_command(run_dir: Path) -> str:
    """The command that makes a run again, from the folder in which it was made.

    The run's recipe is found from there alone, and without a folder of its own the command would end at once, because
    everything is done, or write to ``runs/recipe``.
    """
    run_dir = run_dir if run_dir.name not in ("", "..") else run_dir.resolve()
    return shlex.join(["safeserve", "run", str(run_dir / "recipe.yaml"), "--out", f"{run_dir}-again"])


def _part(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = recipe.get(name)
    return part if isinstance(part, dict) else {}


def _position(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def read_optional(path: Path) -> dict[str, Any] | None:
    """A JSON file of a run that may not be there yet."""
    return read_json(path) if path.exists() else None
