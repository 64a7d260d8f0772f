"""What a run would do, without doing it: stages with rows, prompts and tokens, about how long, and how much memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safeserve.core.errors import SafeserveError
from safeserve.core.progress import clock
from safeserve.core.runs import DONE
from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import Benchmark, load_suite
from safeserve.models import embedded
from safeserve.models.loading import local_folder
from safeserve.pipeline.counts import Answers
from safeserve.pipeline.machine import gib
from safeserve.pipeline.markers import Markers
from safeserve.pipeline.missing import fitted
from safeserve.pipeline.outlook import Outlook
from safeserve.pipeline.recipe import Recipe
from safeserve.pipeline.rows import Sources, stage_rows
from safeserve.pipeline.train_stages import DpoStage, RaftStage, TrainStage, with_parents
from safeserve.training.raft_prompts import draws, split_pools


def models_in_order(recipe: Recipe, only: Sequence[str] | None = None) -> list[str]:
    """The base and the trained models as a run makes them; with ``only``, these stages and what they start from."""
    names = ["base", *recipe.train]
    if only is None:
        return names
    wanted = {"base", *with_parents(recipe.train, only)}
    return [name for name in names if name in wanted]


@dataclass
class _Planner:
    """Collects the stages of one run.

    Attributes:
        outlook: tells tokens, time and memory; None where the model's files are not here.
        answers: how long each model's answers are expected to be.
        held: the model that the stages so far leave in memory, by name and how it was loaded.
        markers: tell what was made with other inputs; None where the model cannot be looked at.
        identities: of the prompts of each benchmark.
    """

    recipe: Recipe
    folder: Path
    outlook: Outlook | None
    prompts: Mapping[Benchmark, list[Prompt]]
    markers: Markers | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    held: tuple[str, str | None] | None = None

    def training(self, name: str) -> dict[str, Any]:
        """A training stage."""
        stage = self.recipe.train[name]
        sources = self._sources.for_stage()
        rows = self._rows(stage, sources)
        told = self._stage(f"train-{name}", lambda markers: self._trained(markers, name, sources))
        found: dict[str, Any] = {}
        if self.outlook is not None:
            held = self.held == (stage.start, self.recipe.quantize)
            start = self.answers.get(stage.start, Answers())
            found, self.answers[name] = self.outlook.training(stage, rows, start, held)
        if not told["done"]:
            self.held = None  # training may change the weights in place
        return {
            **told,
            "method": stage.method,
            "start": stage.start,
            "rows": len(rows),
            "epochs": stage.epochs,
            "steps": _steps(stage, round(len(rows) * (1 - stage.validation_share))),
            **({"samples": len(rows) * stage.samples_per_prompt} if isinstance(stage, RaftStage) else {}),
            **found,
        }

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self.recipe, [prompt for rows in self.prompts.values() for prompt in rows], self.folder)

    def _rows(self, stage: TrainStage, sources: Sources) -> Sequence[Any]:
        """What a stage works on, as far as it is there; for RAFT, the prompts of all iterations."""
        if isinstance(stage, DpoStage) and stage.from_raft:
            sampled = self.recipe.train[stage.from_raft]
            if not self._has(f"train-{stage.from_raft}"):  # then at most a pair a prompt
                assert isinstance(sampled, RaftStage)
                return self._rows(sampled, sources)[: stage.n_pairs]
        rows = stage_rows(stage, sources)
        if isinstance(stage, RaftStage):
            seed = self.recipe.seed_of(stage)
            pools, _ = split_pools(rows, stage, seed)
            return [prompt for drawn in draws(pools, stage, seed) for prompt in drawn]
        found: Sequence[Any] = [row for part in rows.values() for row in part] if isinstance(rows, dict) else rows
        return found

    def evaluation(self, name: str) -> dict[str, Any]:
        """An evaluation stage."""
        options = self.recipe.evaluate
        assert options is not None
        most = {b: min(b.max_new_tokens, options.sampling.max_new_tokens) for b in self.prompts}
        written = sum(len(rows) * most[b] for b, rows in self.prompts.items())
        told = self._stage(
            f"eval-{name}", lambda markers: markers.evaluation(name, self.prompts, self.identities).changed()
        )
        found = {}
        if self.outlook is not None:
            held = self.held == (name, None)
            found = self.outlook.evaluation(options, self.prompts, most, self.answers.get(name, Answers()), held)
        if not told["done"]:
            self.held = (name, None)
        return {
            **told,
            "prompts": sum(map(len, self.prompts.values())),
            "max_new_tokens": written * options.sampling.n,
            **found,
        }

    def _has(self, stage: str) -> bool:
        return (self.folder / "stages" / stage / DONE).exists()

    def _stage(self, stage: str, changed_of: Callable[[Markers], list[str]]) -> dict[str, Any]:
        """Whether the stage is done, and what changed since it was made or begun."""
        changed: list[str] = []
        if self.markers is not None:
            with suppress(SafeserveError):  # it needs a judge that a stage before it has yet to make
                changed = changed_of(self.markers)
        done = self._has(stage) and not changed
        return {"stage": stage, "done": done, **({"changed": changed} if changed else {})}

    @staticmethod
    def _trained(markers: Markers, name: str, sources: Sources) -> list[str]:
        markers.hashes[name] = "not made"  # for what is made from it, should this one's inputs not be there yet
        stage = markers.training(name, sources)
        markers.hashes[name] = stage.hash
        return stage.changed()


def _steps(stage: TrainStage, rows: int) -> int:
    """Optimiser steps over ``rows``, which a RAFT stage takes in iterations."""
    parts = stage.iterations if isinstance(stage, RaftStage) else 1
    return parts * -(-rows // parts // stage.batch_size) * stage.epochs


def plan(recipe: Recipe, folder: Path, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Stages in order, each with what it works on, what it would cost, and whether a finished one is there already.

    Args:
        only: train only these stages (and what they start from), and evaluate nothing.
    """
    recipe, not_run = fitted(recipe)
    prompts: dict[Benchmark, list[Prompt]] = {}
    identities: dict[str, str] = {}
    if recipe.evaluate:
        options = recipe.evaluate
        loaded = load_suite(options.suite, recipe.data.root, options.limit, options.skip_missing)
        prompts, identities = loaded.prompts, loaded.identities
    outlook, reason = _outlook(recipe)
    planner = _Planner(recipe, folder, outlook, prompts, _markers(recipe, folder) if outlook else None, identities)
    stages = []
    for name in models_in_order(recipe, only):
        if name in recipe.train:
            stages.append(planner.training(name))
        if recipe.evaluate and only is None and name in recipe.evaluate.models:
            stages.append(planner.evaluation(name))
    planned: dict[str, Any] = {"run": str(folder), "model": recipe.model, "stages": stages, "not_run": not_run}
    if outlook is None:
        return {**planned, "not_predicted": reason}
    ahead = [stage for stage in stages if not stage["done"]]
    for stage in ahead[1:]:
        stage["peak_memory_bytes"] += round(outlook.machine.kept_bytes())
    return {
        **planned,
        "tokens": _summed(stage["tokens"] for stage in ahead),
        "seconds": round(sum(stage["seconds"] for stage in ahead) + outlook.start_seconds) if ahead else 0,
        "peak_memory_bytes": max((stage["peak_memory_bytes"] for stage in ahead), default=0),
        "free_memory_bytes": outlook.free_bytes(),
        "machine": outlook.described(),
        "assumptions": outlook.assumptions,
        "not_counted": sorted(outlook.not_counted),
    }


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Tokens by kind over all stages."""
    total: Counter[str] = Counter()
    for tokens in counts:
        total.update(tokens)
    return dict(total)


def _outlook(recipe: Recipe) -> tuple[Outlook | None, str | None]:
    """What predicts, or why nothing can.

    Raises:
        UserError: the model is a folder that is not there, or holds no model.
    """
    if recipe.server is not None:
        return None, "the server renders and decodes, so its tokens and time are not known here"
    if recipe.model != embedded.NAME:  # that one is only fetched by a run
        local_folder(recipe.model, quiet=True)
    try:
        return Outlook.of(recipe), None
    except SafeserveError as error:
        return None, str(error).splitlines()[0].rstrip(".")


def _markers(recipe: Recipe, folder: Path) -> Markers | None:
    markers = Markers(recipe, folder)
    try:
        markers.begin()
    except SafeserveError:
        return None
    return markers


def plan_text(planned: dict[str, Any]) -> str:
    """The plan for a person."""
    lines = [f"run {planned['run']} with {planned['model']}"]
    for stage in planned["stages"]:
        lines.append(f"  {stage['stage']:20} {_work(stage)}{'  (done before)' if stage['done'] else ''}")
        if "changed" in stage:
            what = ", ".join(stage["changed"])
            lines.append(f"  {'':20} made with other inputs: refused, or with --redo made again; changed: {what}")
        if "tokens" in stage and not stage["done"]:
            cost = f"about {clock(stage['seconds'])}, {gib(stage['peak_memory_bytes']):.1f} GiB"
            lines.append(f"  {'':20} tokens: {_tokens(stage)}; {cost}")
    lines += [f"  not run: {stage}: {reason}" for stage, reason in planned["not_run"].items()]
    if "not_predicted" in planned:
        return "\n".join([*lines, f"Tokens, time and memory are not predicted: {planned['not_predicted']}."])
    machine, free = planned["machine"], planned["free_memory_bytes"]
    room = f" of {gib(free):.1f} GiB free" if free is not None else ""
    tokens = f"tokens: {_tokens(planned)}; " if planned["tokens"] else ""
    cost = f"about {clock(planned['seconds'])}, {gib(planned['peak_memory_bytes']):.1f} GiB{room}"
    lines.append(f"  {'all':20} {tokens}{cost}")
    if free is not None and planned["peak_memory_bytes"] > free:
        lines.append("Too little memory: lower token_budget, close other programs, or take a smaller model.")
    gemm = machine["gemm_flops"] / 1e9
    lines.append(
        f"In {machine['dtype']} on {machine['name']}, {gemm:,.0f} GFLOP/s measured in matrix products. Assumed:"
    )
    lines += [f"  {assumption}" for assumption in planned["assumptions"]]
    if planned["not_counted"]:
        lines.append(f"Not counted: {', '.join(planned['not_counted'])}.")
    return "\n".join(lines)


def _tokens(counted: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counted["tokens"].items())


def _work(stage: Mapping[str, Any]) -> str:
    if "rows" not in stage:
        return f"{stage['prompts']} prompts, at most {stage['max_new_tokens']:,} new tokens"
    long = f" ({stage['too_long']} too long)" if stage.get("too_long") else ""
    what = f"{stage['rows']} prompts, {stage['samples']} samples" if "samples" in stage else f"{stage['rows']} rows"
    return f"{stage['method']} from {stage['start']}: {what}{long}, {stage['steps']} steps"
