"""Run a recipe: base, training stages, evaluations, comparison, verdict, report; resumable, never stale."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from safeserve import __version__
from safeserve.core.costs import Costs
from safeserve.core.errors import UserError
from safeserve.core.memory import give_back
from safeserve.core.runs import Stage, lock, read_json, write_json, write_text
from safeserve.data.records import Prompt
from safeserve.evaluation.benchmarks import Benchmark, LeftOut, load_suite
from safeserve.evaluation.compare import compare
from safeserve.evaluation.evaluate import evaluate
from safeserve.evaluation.folder import read_eval
from safeserve.evaluation.gate import Verdict, decide, load_policy
from safeserve.generation.engine import WaveEngine
from safeserve.generation.llm_client import ClientOptions, ServerOptions
from safeserve.models.loading import LoadedModel, load
from safeserve.pipeline.machine import describe_machine, gib, peak_memory_bytes, reset_peak_memory
from safeserve.pipeline.markers import Markers
from safeserve.pipeline.missing import fitted
from safeserve.pipeline.plan import models_in_order
from safeserve.pipeline.raft import check_picks
from safeserve.pipeline.recipe import Recipe
from safeserve.pipeline.rows import Sources, stage_rows
from safeserve.pipeline.stages import stage_table, stage_times
from safeserve.pipeline.train_stages import TrainStage
from safeserve.pipeline.training import Workshop, train_stage


@dataclass
class Outcome:
    """What a run came to."""

    folder: Path
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdict: Verdict | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Run:
    """One recipe in one run folder.

    Attributes:
        recipe: what is run: the given one, without the stages that ``data.skip_missing`` takes out.

    Args:
        redo: discard stages whose inputs changed (and what was made from them) instead of refusing.
        only: train only these stages (and what they start from), and evaluate nothing.
        started: when the command began, by ``time.monotonic``; what comes before the first stage is told from it.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        command: str = "",
        redo: bool = False,
        quiet: bool = False,
        only: Sequence[str] | None = None,
        started: float | None = None,
    ) -> None:
        self.folder, self.command, self.redo, self.quiet = folder, command, redo, quiet
        self.recipe, self._not_run = fitted(recipe)
        self.only = only
        self._started = time.monotonic() if started is None else started
        self._overhead: dict[str, float] = {}
        self._costs = Costs()
        self._resumed = False
        self._markers = Markers(self.recipe, folder)
        self._prompts: dict[Benchmark, list[Prompt]] = {}
        self._benchmark_ids: dict[str, str] = {}
        self._left_out: tuple[LeftOut, ...] = ()
        self._data: dict[str, Any] = {}
        self._loaded: tuple[tuple[str, str | None], LoadedModel] | None = None
        self.outcome = Outcome(folder)

    def execute(self) -> Outcome:
        """Do what is not done yet, and return everything."""
        with lock(self.folder):
            self._read_prompts()
            path = self.folder / "recipe.yaml"
            before = path.read_text(encoding="utf-8") if path.exists() else None
            write_text(path, recipe_yaml(self.recipe))
            try:
                self._execute()
            except UserError:
                if before is not None:  # refused: the recipe goes on telling how the results here were made
                    write_text(path, before)
                raise
        return self.outcome

    def _execute(self) -> None:
        self._markers.begin(self._served(self.recipe.server).served if self.recipe.server is not None else None)
        for stage, reason in self._not_run.items():
            self._say(f"not run: {stage}: {reason}")
        self._overhead["start"] = round(time.monotonic() - self._started, 1)
        for name in models_in_order(self.recipe, self.only):
            if name in self.recipe.train:
                self._train(name, self.recipe.train[name])
            if self.recipe.evaluate and self.only is None and name in self.recipe.evaluate.models:
                self._evaluate(name)
        self._loaded = None
        if self.recipe.evaluate and self.only is None:
            before = time.monotonic()
            self._compare()
            self._decide()
            self._overhead["compare"] = round(time.monotonic() - before, 1)
        self._write_manifest()
        self._write_cards()
        if self.recipe.study and self.recipe.evaluate and self.only is None:
            self._write_study()
        if self.recipe.evaluate and self.only is None:
            self._report()
        if self.outcome.seconds:
            self._say("\n" + stage_table(stage_times(self.folder)))

    def _served(self, server: ServerOptions) -> ClientOptions:
        return ClientOptions(model=self.recipe.model, **server.model_dump())

    def _engine(self, name: str) -> WaveEngine:
        if self.recipe.server is not None:
            from safeserve.generation.server import ServerEngine

            return ServerEngine(self._served(self.recipe.server))
        from safeserve.generation.local import LocalEngine

        return LocalEngine(self._load(name))

    def _load(self, name: str, quantize: Literal["8bit", "4bit"] | None = None) -> LoadedModel:
        """A model of this run; the last one stays in memory, for the next stage often starts from it."""
        if self._loaded is None or self._loaded[0] != (name, quantize):
            self._forget()  # free the old one first
            with self._costs.timed("load"):
                self._loaded = ((name, quantize), self._load_named(self._markers.source_of(name), quantize))
        return self._loaded[1]

    def _load_named(self, source: str, quantize: Literal["8bit", "4bit"] | None = None) -> LoadedModel:
        recipe = self.recipe
        return load(source, dtype=recipe.dtype, template=recipe.template, quantize=quantize, quiet=self.quiet)

    def _forget(self) -> None:
        self._loaded = None

    def _load_start(self, name: str) -> LoadedModel:
        return self._load(name, self.recipe.quantize)

    def _refresh(self, stage: Stage, products: Sequence[Path], harmless: Sequence[str] = ()) -> None:
        """With --redo discard a stale stage, and its products unless only ``harmless`` changed."""
        if self.redo and (changed := stage.changed()):
            label = stage.folder.name.replace("-", " ", 1)
            self._say(f"{label}: inputs changed ({', '.join(changed)}), done again")
            self._discard_conclusions()
            for path in (stage.folder, *(() if set(changed) <= set(harmless) else products)):
                shutil.rmtree(path, ignore_errors=True)

    def _begin(self, stage: Stage) -> Path:
        """Begin the stage, and its account of costs."""
        self._costs, self._resumed = Costs(), (stage.folder / "INPUTS").exists()
        give_back()
        reset_peak_memory()
        return stage.begin()

    def _measured(self, key: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What ``work`` returns, and what the stage cost: metrics that every stage has."""
        started = time.monotonic()
        result = work()
        seconds = self.outcome.seconds[key] = round(time.monotonic() - started, 1)
        memory = {"peak_memory_gib": gib(peak_memory_bytes())}
        return result, {"stage_seconds": seconds, **memory, "parts": self._costs.parts, "resumed": self._resumed}

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    # --- training -------------------------------------------------------------------------------------------------

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self.recipe, [prompt for rows in self._prompts.values() for prompt in rows], self.folder)

    def _train(self, name: str, options: TrainStage) -> None:
        sources = self._sources.for_stage()
        rows = stage_rows(options, sources)
        self._data.update(sources.account)
        out = self.folder / "models" / name
        stage = self._markers.training(name, sources)
        self._refresh(stage, [out, *out.parent.glob(f"{name}.iter-*")])
        self._markers.hashes[name] = stage.hash
        if stage.done():
            check_picks(options, stage.folder)
            self._say(f"train {name}: done before")
            return
        folder = self._begin(stage)
        self._say(f"train {name}: {options.method} from {options.start}")
        for source, part in sources.account.items():
            for reason, count in part["left_out"].items():
                self._say(f"  {source}: {count} rows left out ({reason})")
        shop = Workshop(
            seed=self.recipe.seed_of(options),
            quiet=self.quiet,
            stages=self.recipe.train,
            load=self._load_start,
            load_named=self._load_named,
            forget=self._forget,
            model_name=self._markers.source_of,
            costs=self._costs,
            say=self._say,
        )
        metrics, cost = self._measured(f"train {name}", lambda: train_stage(options, rows, out, folder, shop))
        self._loaded = None  # full fine-tuning changes the weights in place
        write_json(folder / "metrics.json", {**metrics, "data": sources.account, **cost})
        stage.finish()

    # --- evaluation -----------------------------------------------------------------------------------------------

    def _read_prompts(self) -> None:
        options = self.recipe.evaluate
        if options is None:
            return
        loaded = load_suite(options.suite, self.recipe.data.root, options.limit, options.skip_missing)
        self._prompts, self._benchmark_ids = loaded.prompts, loaded.identities
        self._left_out = loaded.left_out
        for note in loaded.notes:
            self._say(note)

    def _evaluate(self, name: str) -> None:
        options = self.recipe.evaluate
        assert options is not None
        target = self.folder / "evals" / name
        stage = self._markers.evaluation(name, self._prompts, self._benchmark_ids)
        # Another judge reads the answers that are there: nothing is generated again for it.
        self._refresh(stage, [target], harmless=["evaluate.judges"])
        if stage.done():
            self._say(f"evaluate {name}: done before")
            self.outcome.summaries[name] = read_json(target / "summary.json")
            return
        folder = self._begin(stage)
        self._say(f"evaluate {name}: {sum(map(len, self._prompts.values()))} prompts")
        sampling = options.sampling.model_copy(update={"seed": self.recipe.seed})

        def work() -> dict[str, Any]:
            return evaluate(
                self._engine(name),
                name,
                self._prompts,
                sampling,
                options.judges,
                target,
                options.suite,
                self.quiet,
                self._left_out,
                self._costs,
            )

        self.outcome.summaries[name], cost = self._measured(f"evaluate {name}", work)
        write_json(folder / "metrics.json", cost)
        stage.finish()

    def _discard_conclusions(self) -> None:
        """Remove what rests on evaluations: it must not outlive them, nor a recipe that had another gate."""
        shutil.rmtree(self.folder / "compare", ignore_errors=True)
        for name in ("verdict.json", "report.html", "study.md", "study.json"):
            (self.folder / name).unlink(missing_ok=True)

    def _compare(self) -> None:
        assert self.recipe.evaluate is not None
        self._discard_conclusions()
        models = self.recipe.evaluate.models
        gate = self.recipe.gate
        wanted = [("base", name) for name in models if name != "base" and "base" in models]
        if gate and (gate.against, gate.candidate) not in wanted:
            wanted.append((gate.against, gate.candidate))
        for a, b in wanted:
            result = compare(read_eval(self.folder / "evals" / a), read_eval(self.folder / "evals" / b))
            write_json(self.folder / "compare" / f"{a}--{b}.json", result)
            self.outcome.comparisons[f"{a}--{b}"] = result

    def _decide(self) -> None:
        gate = self.recipe.gate
        if gate is None:
            return
        verdict = decide(
            read_eval(self.folder / "evals" / gate.candidate),
            read_eval(self.folder / "evals" / gate.against),
            load_policy(gate.policy),
        )
        write_json(self.folder / "verdict.json", verdict.to_json())
        self.outcome.verdict = verdict

    def _write_manifest(self) -> None:
        path = self.folder / "manifest.json"
        before = read_json(path) if path.exists() else {}
        seconds = {**before.get("seconds", {}), **self.outcome.seconds}
        stages = [read_json(path) for path in self.folder.glob("stages/*/metrics.json")]
        peaks = [stage["peak_memory_gib"] for stage in stages if "peak_memory_gib" in stage]
        write_json(
            path,
            {
                "safeserve": __version__,
                "command": self.command,
                "model": self.recipe.model,
                "note": self.recipe.note,
                "not_run": self._not_run,
                "seed": self.recipe.seed,
                "dtype": self._markers.dtype,
                "stages": [path.name for path in sorted((self.folder / "stages").glob("*/"))],
                "data": {**before.get("data", {}), **self._data, **self._benchmark_ids},
                "judges": next((s["judges"] for s in self.outcome.summaries.values()), {}),
                "seconds": seconds,
                "overhead_seconds": self._overhead if self.outcome.seconds else before.get("overhead_seconds", {}),
                "peak_memory_gib": max([gib(peak_memory_bytes()), *peaks]),
                "machine": describe_machine(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )

    def _write_cards(self) -> None:
        from safeserve.report.model_card import write_cards

        write_cards(self.folder)

    def _write_study(self) -> None:
        from safeserve.report.study import write_study

        self._say(f"study: {write_study(self.folder)}")

    def _report(self) -> None:
        from safeserve.report.html import render_report, report_from_run

        write_text(self.folder / "report.html", render_report(report_from_run(self.folder)))


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads again."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["train"] = {
        name: stage.model_dump(mode="json", exclude_unset=True)  # a null that switches a default off stays
        for name, stage in recipe.train.items()
    }
    for key in ("seed", "iteration"):  # the run's, not the recipe's
        tree.get("evaluate", {}).get("sampling", {}).pop(key, None)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
