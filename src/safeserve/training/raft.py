"""RAFT and iterative DPO: sample the policy, score, select, learn, and the same again with what came of it.

RAFT (Dong et al. 2023) learns from the picked samples by SIT; iterative DPO from the picked against the worst samples.
Each iteration has a folder of its own, ``iter-N``; everything in it is made once, so a killed run goes on where it was
and ends in the same selected rows.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.costs import Costs
from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.extensions import source_hash
from safeserve.core.options import seed_for, stable_hash
from safeserve.core.runs import Stage, disk_errors, iter_jsonl, read_json, write_json, write_jsonl
from safeserve.data.records import Prompt
from safeserve.judging.judge import Judge
from safeserve.judging.registry import is_own, make_judge
from safeserve.models.loading import identity_of
from safeserve.training import raft_watch, selection
from safeserve.training.preflight import HeldOut, held_out_stop, pair_accuracy
from safeserve.training.raft_numbers import curves, iteration_row, told, training_totals
from safeserve.training.raft_options import RAFT_CODE, RaftOptions
from safeserve.training.raft_prompts import Pools, draws, split_pools
from safeserve.training.raft_rows import demonstrations, pair_rows, pairs_of, selected_rows
from safeserve.training.raft_samples import (
    Answer,
    Panel,
    Sampler,
    candidates_of,
    labelled_rewards,
    sample_row,
)
from safeserve.training.selection import Candidate, Selection

if TYPE_CHECKING:
    from safeserve.generation.local import LocalEngine
    from safeserve.models.loading import LoadedModel
    from safeserve.training.run import TrainResult


@dataclass(frozen=True)
class RaftResult:
    """Where the policy is saved that the last good iteration made, and what happened (JSON)."""

    folder: Path
    metrics: dict[str, Any]


def run_raft(
    load: Callable[[str], LoadedModel],
    parent: str,
    pools: Pools,
    options: RaftOptions,
    out: Path,
    *,
    seed: int,
    work: Path,
    make: Callable[[str], Judge] = make_judge,
    costs: Costs | None = None,
    say: Callable[[str], None] = lambda text: None,
    quiet: bool = False,
) -> RaftResult:
    """Run all iterations, or go on with them, and save the result to ``out``.

    Args:
        load: loads a model by name or folder; one at a time is in memory.
        parent: what the first iteration samples and trains.
        out: folder of the result, ``RUN/models/NAME``; iteration N is kept beside it as ``NAME.iter-N``, because its
            successor's adapter rests on it.
        work: folder of the stage.
        make: a judge by the name that it has in ``options``.

    Raises:
        UserError: options, judges or picks that do not fit, too few prompts, or ``work`` holds other inputs.
        EvidenceError: before or after the first iteration the checks say that this selection does harm or nothing.
    """
    return _Raft(load, parent, pools, options, out, seed, work, make, costs or Costs(), say, quiet).run()


class _Raft:
    def __init__(
        self,
        load: Callable[[str], LoadedModel],
        parent: str,
        pools: Pools,
        options: RaftOptions,
        out: Path,
        seed: int,
        work: Path,
        make: Callable[[str], Judge],
        costs: Costs,
        say: Callable[[str], None],
        quiet: bool,
    ) -> None:
        self.load, self.parent, self.options, self.out = load, parent, options, out
        self.seed, self.work, self.make, self.costs, self.say, self.quiet = seed, work, make, costs, say, quiet
        self.pools, self.held = split_pools(pools, options, seed)
        self.current = parent
        self._policy: tuple[str, LoadedModel] | None = None
        self._judges: Panel | None = None

    # --- what is in memory ----------------------------------------------------------------------------------------

    @property
    def panel(self) -> Panel:
        """The judges; they load their weights at first use and are gone while the policy learns."""
        if self._judges is None:
            self._judges = Panel.of(self.options, self.make)
        return self._judges

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.options, self.panel, self.seed, self._engine, self.costs, self.quiet)

    def _engine(self) -> LocalEngine:
        from safeserve.generation.local import LocalEngine

        return LocalEngine(self._model())

    def _model(self) -> LoadedModel:
        """The current policy."""
        if self._policy is None or self._policy[0] != self.current:
            self._policy = None
            with self.costs.timed("load"):
                self._policy = (self.current, self.load(self.current))
        return self._policy[1]

    def _folder_of(self, number: int) -> Path:
        """Where iteration ``number`` saves its policy."""
        return self.out.with_name(f"{self.out.name}.iter-{number}")

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> RaftResult:
        start, numbers = self._start()
        rows: list[dict[str, Any]] = []
        stopped = None
        for number, prompts in enumerate(draws(self.pools, self.options, self.seed), 1):
            row = self._iteration(number, prompts, start)
            rows.append(row)
            if reason := row["stopped"]:
                if number == 1:
                    raise EvidenceError(f"RAFT stopped in iteration 1: {reason}. Numbers: {self.work / 'iter-1'}.")
                stopped = {"iteration": number, "reason": reason, "kept": number - 1}
                self.say(f"  stopped in iteration {number}, the policy of iteration {number - 1} is kept: {reason}")
                break
            self.current = str(self._folder_of(number))
        self._policy = None
        publish(Path(self.current), self.out)
        metrics = {
            "iterations": rows,
            "stopped": stopped,
            "held_out_start": numbers,
            "judges": {name: judge.identity for name, judge in self.panel.judges.items()},
            **training_totals(rows),
            "curves": curves(rows, numbers),
        }
        return RaftResult(self.out, metrics)

    def _start(self) -> tuple[HeldOut, dict[str, Any]]:
        """The start's answers to the held-out prompts; every policy is compared with them."""
        held_out_judge = self.options.held_out_judge
        stage = Stage(
            self.work / "start",
            {
                "policy": identity_of(self.parent),
                "held-out prompts": self._held_prompts(),
                "sample_tokens": self.options.sample_tokens,
                "held_out_judge": [held_out_judge, self.panel.judges[held_out_judge].identity],
                "seed": self.seed,
            },
        )
        done = stage.done()
        if not done:
            stage.begin()
        found: tuple[HeldOut, dict[str, Any]]
        found = raft_watch.watch(self.sampler, self.held, stage.folder, "start, held out")  # read where it is there
        if not done:
            stage.finish()
        return found

    def _held_prompts(self) -> list[list[Any]]:
        return [[prompt.id, prompt.label, list(prompt.messages)] for prompt in self.held]

    def _iteration(self, number: int, prompts: Sequence[Prompt], start: HeldOut) -> dict[str, Any]:
        folder = self.work / f"iter-{number}"
        stage = Stage(folder, self._inputs(number, prompts))
        if stage.done():
            row = read_json(folder / "metrics.json")
            if row["picks"] != self._picks_identity(number):
                raise UserError(
                    f"{self.options.picks}: its lines for iteration {number} are not those that were learned. Choose "
                    "another run with --name, or restore them."
                )
            if row["stopped"] or self._folder_of(number).exists():
                return row
        stage.begin()
        answers = self.sampler.iteration(number, prompts, folder)
        write_jsonl(folder / "samples.jsonl", (sample_row(self.panel, answer) for answer in answers))
        candidates = candidates_of(self.panel, answers)
        usable, _ = selection.usable_samples(candidates, self.options.needs)
        chosen = self._select(number, candidates, folder)
        pairs = self._pairs(usable, chosen)
        write_jsonl(folder / "selected.jsonl", selected_rows(self.panel, answers, chosen))
        write_jsonl(folder / "pairs.jsonl", pair_rows(self.panel, answers, pairs, number))
        labelled = None
        if number == 1 and self.pools.labelled:
            labelled = pair_accuracy(labelled_rewards(self.panel, self.pools.labelled, folder / "labelled"))
        row, verdict = iteration_row(self.panel, number, answers, chosen, len(pairs), labelled)
        row["picks"] = self._picks_identity(number)
        if number == 1:
            write_json(folder / "preflight.json", {**row["checks"], **asdict(verdict)})
        for warning in verdict.warnings:
            self.say(f"  iteration {number}: warning: {warning}")
        for note in verdict.notes:
            self.say(f"  iteration {number}: {note}")
        if verdict.stop is None:
            row.update(self._learn(number, answers, chosen, pairs, folder))
            held, row["held_out"] = self._watched(number, folder)
            row["kl"] = self._divergence(number, folder)
            row["stopped"] = held_out_stop(start, held)
        self.say(f"  iteration {number}: {told(row)}")
        write_json(folder / "metrics.json", row)
        stage.finish()
        return row

    def _inputs(self, number: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return {
            "options": self.options.model_dump(mode="json"),
            "seed": self.seed,
            "iteration": number,
            "prompts": [[prompt.id, prompt.label, list(prompt.messages)] for prompt in prompts],
            "held-out prompts": self._held_prompts(),
            "policy": identity_of(self.current),
            "judges": {name: judge.identity for name, judge in self.panel.judges.items()},
            "code": RAFT_CODE,
            **({"rule": source_hash(self.options.rule)} if is_own(self.options.rule) else {}),
        }

    # --- selecting ------------------------------------------------------------------------------------------------

    def _select(self, number: int, candidates: Sequence[Candidate], folder: Path) -> Selection:
        options = self.options
        least = math.inf if options.at_least is None else options.at_least
        wanted = "is safe enough and answers" if options.drop_refusals else "is safe enough"
        rules: dict[str, tuple[Callable[[Sequence[Candidate]], selection.Picks], str]] = {
            "top1": (selection.top1, "nothing of it was picked"),
            "topk": (partial(selection.topk, share=options.top_share, count=options.top_count), "others are better"),
            "threshold": (partial(selection.threshold, at_least=least), "no sample reaches the threshold"),
            "constrained": (partial(selection.constrained, tau=options.tau), f"no sample {wanted}"),
        }
        if options.rule == "human":
            picked = self._people(number, candidates, folder)
            rules["human"] = (partial(selection.by_people, picked=picked), "nobody picked one")
        rule, none = rules.get(options.rule) or (selection.own_rule(options.rule), "nothing of it was picked")
        return selection.select(candidates, rule, options.needs, none)

    def _people(self, number: int, candidates: Sequence[Candidate], folder: Path) -> dict[str, tuple[int, ...]]:
        path = Path(self.options.picks or "").expanduser()
        samples = folder / "samples.jsonl"
        found = selection.read_picks(iter_jsonl(path), str(path), candidates, number) if path.exists() else {}
        if not found:
            raise UserError(
                f"{path}: no picks for iteration {number} yet. Its samples are in {samples}. Write a line "
                f'{{"iteration": {number}, "id": ..., "k": ...}} for each pick, then run the same command again.'
            )
        return found

    def _picks_identity(self, number: int) -> str | None:
        path = Path(self.options.picks or "").expanduser()
        if self.options.picks is None or not path.exists():
            return None
        return stable_hash([row for _, row in iter_jsonl(path) if row.get("iteration", 1) == number])

    def _pairs(self, usable: Sequence[Candidate], chosen: Selection) -> list[tuple[str, int, int]]:
        """Prompt with its best and worst sample."""
        tau = self.options.tau if self.options.rule == "constrained" else None
        found = []
        for candidate in usable:
            if candidate.id in chosen.picks:
                ends = selection.best_and_worst(candidate, chosen.picks[candidate.id][0], tau)
                found += [(candidate.id, *ends)] if ends else []
        return found

    # --- learning and looking -------------------------------------------------------------------------------------

    def _learn(
        self,
        number: int,
        answers: Sequence[Answer],
        chosen: Selection,
        pairs: Sequence[tuple[str, int, int]],
        folder: Path,
    ) -> dict[str, Any]:
        target, model = self._folder_of(number), self._model()
        learned = pairs_of(pair_rows(self.panel, answers, pairs, number))
        self._policy = self._judges = None
        common: dict[str, Any] = {
            "seed": seed_for(self.seed, "raft", number),
            "parent": self.current,
            "work": folder / "checkpoints",
        }
        result: TrainResult
        with self.costs.timed("train"):
            if self.options.update == "sit":
                from safeserve.training.sit import train_sit

                result = train_sit(model, demonstrations(answers, chosen), self.options.sit_options(), target, **common)
            else:
                from safeserve.training.dpo import train_dpo

                result = train_dpo(model, learned, self.options.dpo_options(), target, **common)
        self.costs.add("train", tokens=result.metrics["tokens"])
        kept = ("loss", "validation_loss", "steps", "rows", "tokens", "seconds")
        return {"training": {key: result.metrics[key] for key in kept}}

    def _watched(self, number: int, folder: Path) -> tuple[HeldOut, dict[str, Any]]:
        title = f"iteration {number}, held out"
        watched: tuple[HeldOut, dict[str, Any]]
        watched = self._with(number, lambda: raft_watch.watch(self.sampler, self.held, folder, title))
        return watched

    def _divergence(self, number: int, folder: Path) -> dict[str, Any] | None:
        """KL(policy || start); loads the start for a moment."""
        if not self.options.kl_samples:
            return None
        if (kept := raft_watch.kept_kl(folder)) is not None:
            return kept
        prompts = raft_watch.kl_prompts(self.held, self.options.kl_samples)

        def policy() -> tuple[list[Any], list[list[float]]]:
            made = raft_watch.kl_answers(self.sampler, prompts, folder, f"iteration {number}, divergence")
            rows = raft_watch.rows_of(self._model(), prompts, made)
            return rows, raft_watch.token_logps(self._model(), rows)

        rows, mine = self._with(number, policy)
        self._policy = None
        with self.costs.timed("load"):
            start = self.load(self.parent)
        found = raft_watch.kl_estimate(mine, raft_watch.token_logps(start, rows))
        raft_watch.keep_kl(folder, found)
        return found

    def _with(self, number: int, work: Callable[[], Any]) -> Any:
        """Do ``work`` with the policy that iteration ``number`` made."""
        before, self.current = self.current, str(self._folder_of(number))
        try:
            return work()
        finally:
            self.current = before


def publish(source: Path, out: Path) -> None:
    """Make ``out`` the same model as ``source``, whole or not at all; the files are shared where the disk allows it."""
    temporary = out.with_name(f".{out.name}.tmp")
    with disk_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
