"""RAFT on the tiny model with toy judges: the whole loop, killed and resumed, inverted rewards, picks of people."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.costs import Costs
from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.runs import read_json, read_jsonl
from safeserve.data.records import Prompt, user
from safeserve.generation.engine import Completion
from safeserve.generation.local import LocalEngine
from safeserve.judging.judge import Judge, Score
from safeserve.judging.modes import RefusalJudge
from safeserve.models.loading import LoadedModel, identity_of, load
from safeserve.training import raft_watch
from safeserve.training.batches import Row
from safeserve.training.raft import run_raft
from safeserve.training.raft_options import RaftOptions
from safeserve.training.raft_prompts import Pools, draws, split_pools
from safeserve.training.raft_rows import pairs_of, read_pairs
from safeserve.training.raft_samples import Panel, Sampler


def harm(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the toy's harm."""
    return hashlib.sha256(text.encode()).digest()[0] / 256


class Toy:
    """A judge whose value is a function of the text; labels are those of a guard."""

    def __init__(self, name: str, value: Callable[[str], float], fails: Callable[[str], bool] = lambda text: False):
        self.name, self.identity, self.value, self.fails = name, f"toy {name}", value, fails
        self.seen: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        self.seen += [(prompt.id, completion.text) for prompt, completion in items]
        return [self._score(completion.text) for _, completion in items]

    def _score(self, text: str) -> Score:
        if self.fails(text):
            return Score(None, None, reason="cannot be read")
        return Score(self.value(text), "unsafe" if self.value(text) > 0.5 else "safe")


def judges() -> dict[str, Judge]:
    return {
        "good": Toy("reward-good", lambda text: 1 - harm(text)),
        "bad": Toy("reward-bad", harm),
        "guard": Toy("guard-toy", harm),
        "watch": Toy("guard-watch", harm),
        "unscored": Toy("reward-none", harm, fails=lambda text: True),
        "refusal": RefusalJudge(),
    }


def pools(count: int = 24) -> Pools:
    def some(label: Any) -> list[Prompt]:
        return [Prompt(f"{label}-{n}", user(f"{label} question {n}"), label, f"c{n % 3}") for n in range(count)]

    return Pools(some("harmful"), some("benign"))


SMALL = {
    "reward": "good",
    "held_out_judge": "watch",
    "iterations": 2,
    "prompts_per_iteration": 8,
    "samples_per_prompt": 3,
    "sample_tokens": 6,
    "held_out_prompts": 4,
    "kl_samples": 2,
    "lora_rank": 2,
    "batch_size": 4,
    "checkpoint_steps": 1,
    "learning_rate": 0.01,
}
Run = Callable[..., Any]


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Run:
    """``run("name", key=value)`` runs RAFT with small options in a run folder of that name."""

    def start(name: str = "run", made: dict[str, Judge] | None = None, **options: Any) -> Any:
        found = made or judges()
        folder = tmp_path / name
        (folder / "models").mkdir(parents=True, exist_ok=True)
        given = {key: value for key, value in {**SMALL, **options}.items() if value is not None}
        return run_raft(
            lambda source: load(source, dtype="float32", device="cpu"),
            str(tiny_folder),
            pools(),
            RaftOptions.parse(given, "options"),
            folder / "models" / "raft",
            seed=5,
            work=folder / "stages" / "train-raft",
            make=found.__getitem__,
            quiet=True,
        )

    return start


def rows(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    """The lines of a file of every iteration."""
    return [read_jsonl(path) for path in sorted(folder.glob(f"stages/train-raft/iter-*/{name}"))]


def test_the_whole_loop(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    result = run()
    folder = tmp_path / "run"
    samples, selected, pairs = (rows(folder, f"{name}.jsonl") for name in ("samples", "selected", "pairs"))
    assert [len(part) for part in samples] == [24, 24]
    asked = [{row["id"] for row in part} for part in samples]
    assert not asked[0] & asked[1]  # without replacement
    for iteration in range(2):
        assert sum(name.startswith("harmful") for name in asked[iteration]) == 4
        rewards: dict[str, list[float]] = {}
        for row in samples[iteration]:
            if row["text"]:
                rewards.setdefault(row["id"], []).append(row["reward"])
        assert {row["id"]: row["reward"] for row in selected[iteration]} == {k: max(v) for k, v in rewards.items()}
        for pair in pairs[iteration]:
            assert pair["chosen_reward"] > pair["rejected_reward"] == min(rewards[pair["id"].partition("@")[0]])
    metrics = result.metrics
    assert metrics["stopped"] is None
    assert [row["step"] for row in metrics["curves"]["train"]] == [1, 2]
    assert [row["step"] for row in metrics["curves"]["validation"]] == [0, 1, 2]
    assert metrics["steps"] == sum(-(-len(part) // 4) for part in selected)
    for row in metrics["iterations"]:
        assert row["reward_selected"] > row["reward_mean"]
        assert row["kl"]["per_answer"]["mean"] >= 0
        assert row["held_out"]["n_harmful"] == row["held_out"]["n_benign"] == 2
    assert metrics["iterations"][1]["kl"]["per_token"] > 0
    json.dumps(metrics, allow_nan=False)
    # Each iteration's adapter rests on the one before; the last one is the result.
    one, two, last = (folder / "models" / name for name in ("raft.iter-1", "raft.iter-2", "raft"))
    assert read_json(one / "adapter_config.json")["base_model_name_or_path"] == str(tiny_folder)
    assert read_json(two / "adapter_config.json")["base_model_name_or_path"] == "../raft.iter-1"
    assert load(last, dtype="float32").identity == load(two, dtype="float32").identity
    assert len({identity_of(path) for path in (tiny_folder, one, two)}) == 3
    found, _ = read_pairs(folder / "stages" / "train-raft")
    assert [pair.id for pair in found] == [pair["id"] for part in pairs for pair in part]


@pytest.mark.parametrize("rule", [{}, {"rule": "constrained", "guard": "guard", "tau": 0.1, "resample": 2}])
def test_equal_answers_are_scored_once_and_a_finished_run_does_nothing(run: Run, rule: dict[str, Any]) -> None:
    made = judges()
    options = {"sample_tokens": 1, "samples_per_prompt": 12, **rule}  # of one token, so that many are equal
    first = run(made=made, **options)
    seen = list(made["good"].seen)  # type: ignore[attr-defined]
    assert len(seen) == len(set(seen)) < 2 * 8 * 12
    again = run(made=made, **options)
    assert made["good"].seen == seen  # type: ignore[attr-defined]
    assert again.metrics == first.metrics


def test_samples_are_those_of_the_current_policy(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    """The second iteration samples what the first one made: that model gives its samples again, the start does not."""
    changes = {"sample_tokens": 4, "samples_per_prompt": 2, "learning_rate": 0.05}
    run(**changes)
    _, second = rows(tmp_path / "run", "samples.jsonl")
    options = RaftOptions.parse({**SMALL, **changes}, "options")
    kept, _ = split_pools(pools(), options, 5)
    _, prompts = draws(kept, options, 5)
    panel = Panel.of(options, judges().__getitem__)

    def sampled(folder: Path) -> list[str]:
        engine = LocalEngine(load(folder, dtype="float32", device="cpu"))
        sampler = Sampler(options, panel, 5, lambda: engine, Costs(), quiet=True)
        found = sampler.iteration(2, prompts, tmp_path / "again" / folder.name)
        assert [(a.prompt.id, a.completion.k) for a in found] == [(row["id"], row["k"]) for row in second]
        return [answer.completion.text for answer in found]

    texts = [row["text"] for row in second]
    assert sampled(tmp_path / "run" / "models" / "raft.iter-1") == texts
    assert sampled(tiny_folder) != texts


def test_cut_off_samples_are_learned_without_an_end(tiny: Callable[..., LoadedModel]) -> None:
    chat = tiny().chat
    rendered = chat.render(user("question"), "answer")
    whole, cut = Row.of(rendered), Row.of(rendered, complete=False)
    assert whole.ids == (*cut.ids, chat.end_id)
    assert cut.start == whole.start
    empty = chat.render(user("question"), "")
    assert Row.of(empty, complete=False).response_length == 1  # something must remain to be learned


KILLS = 6


def test_killed_anywhere_it_ends_in_the_same_selected_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.core import runs

    replace, done = runs.os.replace, 0
    stop_at: int | None = None

    def counted(source: Any, target: Any) -> None:
        nonlocal done
        done += 1
        if done == stop_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(runs.os, "replace", counted)
    options = {"rule": "constrained", "guard": "guard", "tau": 0.6, "resample": 1}
    whole = run("whole", **options)
    writes = done
    names = ("selected.jsonl", "pairs.jsonl", "samples.jsonl")
    expected = {name: rows(tmp_path / "whole", name) for name in names}
    for kill in range(KILLS):
        name, done, stop_at = f"killed-{kill}", 0, 1 + (2 * kill + 1) * writes // (2 * KILLS)
        with pytest.raises(KeyboardInterrupt):
            run(name, **options)
        stop_at = None
        again = run(name, **options)
        assert {name_: rows(tmp_path / name, name_) for name_ in names} == expected, f"killed at write {kill}"
        assert identity_of(again.folder) == identity_of(whole.folder)


def test_constrained_picks_are_safe_and_dropped_prompts_are_sampled_again(run: Run, tmp_path: Path) -> None:
    result = run(rule="constrained", reward="bad", guard="guard", tau=0.2, resample=2, samples_per_prompt=2)
    folder = tmp_path / "run"
    for samples, selected, row in zip(
        rows(folder, "samples.jsonl"), rows(folder, "selected.jsonl"), result.metrics["iterations"], strict=True
    ):
        assert all(picked["p_unsafe"] <= 0.2 for picked in selected)
        assert len(selected) + sum(row["dropped"].values()) == 8
        by_prompt: dict[str, list[dict[str, Any]]] = {}
        for sample in samples:
            by_prompt.setdefault(sample["id"], []).append(sample)
        for name, found in by_prompt.items():
            safe = [sample["k"] for sample in found if sample["p_unsafe"] <= 0.2 and sample["text"]]
            assert [sample["k"] for sample in found] == list(range(len(found)))
            assert [sample["round"] for sample in found] == [k // 2 for k in range(len(found))]
            assert (name in {picked["id"] for picked in selected}) == bool(safe)
            # Sampled until one is safe: at most three rounds of two.
            assert len(found) == 6 or min(safe) >= len(found) - 2
    assert result.metrics["iterations"][0]["checks"]["coverage_by"] == "guard"


def test_an_inverted_reward_stops_on_a_start_that_is_nearly_always_unsafe(run: Run, tmp_path: Path) -> None:
    """There whatever is picked is unsafe, so the picks alone do not give the reward away."""
    made = {**judges(), "watch": Toy("guard-watch", lambda text: 0.6 if harm(text) > 0.1 else 0.4)}
    options = {"reward": "bad", "prompts_per_iteration": 40, "samples_per_prompt": 8, "held_out_prompts": 4}
    with pytest.raises(EvidenceError, match="a safe sample above an unsafe one of the same prompt only 0% of the time"):
        run(made=made, **options)
    found = read_json(tmp_path / "run" / "stages" / "train-raft" / "iter-1" / "preflight.json")
    assert found["unsafe_change"]["mean"] < found["unsafe_change"]["by_chance"]
    assert not list((tmp_path / "run" / "models").iterdir())


@pytest.mark.parametrize("rule", [{"rule": "top1"}, {"rule": "topk", "top_share": 0.3}])
def test_an_inverted_reward_stops_before_it_is_learned(run: Run, tmp_path: Path, rule: dict[str, Any]) -> None:
    options = {**rule, "reward": "bad", "prompts_per_iteration": 32, "samples_per_prompt": 6}
    with pytest.raises(EvidenceError, match="RAFT stopped in iteration 1: by the held-out judge, picked answers"):
        run(**options)
    found = read_json(tmp_path / "run" / "stages" / "train-raft" / "iter-1" / "preflight.json")
    assert any("favours harm" in warning for warning in found["warnings"])
    assert found["agreement"]["high"] < 0.5
    assert not list((tmp_path / "run" / "models").iterdir())
    with pytest.raises(EvidenceError):  # and again, from what is on disk
        run(**options)


def test_five_sound_runs_give_no_alarm(run: Run) -> None:
    for number in range(5):
        options = {
            "prompts_per_iteration": 32,
            "samples_per_prompt": 4,
            "iterations": 1,
            "held_out_prompts": 10 + number,
        }
        row = run(f"run-{number}", **options).metrics["iterations"][0]
        assert row["warnings"] == []
        assert row["stopped"] is None
        assert row["checks"]["unsafe_change"]["high"] < 0


def test_unscored_samples_are_never_picked(run: Run) -> None:
    with pytest.raises(EvidenceError, match="nothing was picked"):
        run(reward="unscored")


def test_a_policy_that_got_worse_is_not_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeserve.training import raft

    answers = iter([None, "it got worse"])
    monkeypatch.setattr(raft, "held_out_stop", lambda start, now: next(answers))
    result = run(iterations=3)
    assert result.metrics["stopped"] == {"iteration": 2, "reason": "it got worse", "kept": 1}
    models = tmp_path / "run" / "models"
    assert identity_of(models / "raft") == identity_of(models / "raft.iter-1")
    assert not (models / "raft.iter-3").exists()
    monkeypatch.setattr(raft, "held_out_stop", lambda start, now: "it got worse")
    with pytest.raises(EvidenceError, match="stopped in iteration 1: it got worse"):
        run("other")


def test_iterative_dpo(run: Run, tmp_path: Path) -> None:
    result = run(update="dpo", beta=0.2)
    pairs = rows(tmp_path / "run", "pairs.jsonl")
    assert [row["training"]["rows"] for row in result.metrics["iterations"]] == list(map(len, pairs))
    assert read_json(tmp_path / "run" / "models" / "raft" / "safeserve.json")["method"] == "dpo"
    assert pairs_of(pairs[0])[0].chosen_safe is None  # no guard, no label


def test_picks_of_people(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    options = {"rule": "human", "reward": None, "picks": str(path), "iterations": 1}
    with pytest.raises(UserError, match="no picks for iteration 1 yet"):
        run(**options)
    (samples,) = rows(tmp_path / "run", "samples.jsonl")
    wanted = {row["id"]: row for row in samples if row["text"]}  # the last sample with a text
    path.write_text(
        "".join(json.dumps({"id": name, "text": row["text"]}) + "\n" for name, row in list(wanted.items())[:5])
    )
    result = run(**options)
    (selected,) = rows(tmp_path / "run", "selected.jsonl")
    assert {row["id"]: row["response"] for row in selected} == {
        name: row["text"] for name, row in list(wanted.items())[:5]
    }
    assert result.metrics["iterations"][0]["dropped"] == {"nobody picked one": 3}
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="are not those that were learned"):
        run(**options)


def test_other_options_in_the_same_folder_are_refused(run: Run) -> None:
    run(iterations=1)
    with pytest.raises(UserError, match="changed: options"):
        run(iterations=1, sample_temperature=0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"held_out_judge": "good"}, "held_out_judge: good is .or contains. good, which selects"),
        ({"reward": {"good": 1.0, "guard": -1.0}, "held_out_judge": "guard"}, "which selects"),
        ({"prompts_per_iteration": 60}, "harmful: 24 prompts, and 30 an iteration with 2 held out"),
    ],
)
def test_judges_and_prompts_that_do_not_fit(run: Run, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(**options)


def test_prompts_come_again_only_when_all_were_used() -> None:
    options = RaftOptions(reward="x", iterations=7, prompts_per_iteration=6, held_out_prompts=4)
    kept, held = split_pools(pools(10), options, seed=3)
    assert len(held) == 4
    assert not {prompt.id for prompt in held} & {prompt.id for prompt in [*kept.harmful, *kept.benign]}
    drawn = list(draws(kept, options, seed=3))
    assert all(len({prompt.id for prompt in part}) == 6 for part in drawn)
    harmful = [prompt.id for part in drawn for prompt in part if prompt.label == "harmful"]
    assert len(set(harmful[:8])) == 8  # the whole pool before any again
    assert drawn == list(draws(kept, options, seed=3)) != list(draws(kept, options, seed=4))
    only = RaftOptions(reward="x", harmful_share=1, prompts_per_iteration=5, held_out_prompts=4)
    kept, held = split_pools(Pools(pools(10).harmful, []), only, seed=3)
    assert {prompt.label for part in draws(kept, only, 3) for prompt in part} == {"harmful"}


def test_a_start_of_other_inputs_is_not_compared_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first iteration and begun again otherwise: the old answers must not be the reference."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(raft_watch, "held_out_numbers", killed)
        with pytest.raises(KeyboardInterrupt):
            run(iterations=1)
    answers = tmp_path / "run" / "stages" / "train-raft" / "start" / "held_out" / "harmful" / "completions.jsonl"
    assert answers.exists()
    with pytest.raises(UserError, match="start: made with other inputs; changed: sample_tokens"):
        run(iterations=1, sample_tokens=3)
    before = answers.stat().st_mtime_ns
    run(iterations=1)
    assert answers.stat().st_mtime_ns == before


def test_an_own_rule_is_part_of_an_iteration(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_rule_of_raft.py"
    file.write_text("def first(candidates): return {c.id: [c.samples[0].k] for c in candidates if c.samples}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"rule": "own_rule_of_raft:first", "iterations": 1}
    run(**options)
    run(**options)
    file.write_text(file.read_text().replace("samples[0]", "samples[-1]"))
    with pytest.raises(UserError, match="iter-1: made with other inputs; changed: rule"):
        run(**options)


def test_divergence_by_hand() -> None:
    found = raft_watch.kl_estimate([[-1.0, -2.0], [-0.5]], [[-1.5, -1.0], [-0.5]])
    first = (math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0)
    assert found["per_answer"]["mean"] == pytest.approx(first / 2)
    assert found["per_token"] == pytest.approx(first / 3)


def test_divergence_estimates_the_true_one(tiny: Callable[..., LoadedModel]) -> None:
    """For one token the divergence can be summed over the vocabulary; the estimate comes near it."""
    import copy

    import torch

    start = tiny()
    policy = copy.deepcopy(start.model)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=chance))
    ids = start.chat.prompt_ids(user("question"))
    logps = [
        torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1).detach()
        for model in (policy, start.model)
    ]
    true = float((logps[0].exp() * (logps[0] - logps[1])).sum())
    drawn = torch.multinomial(logps[0].exp(), 4000, replacement=True, generator=chance)
    found = raft_watch.kl_estimate(*[[[float(part[token])] for token in drawn] for part in logps])
    assert true > 1e-3
    interval = found["per_answer"]
    assert interval["low"] <= true <= interval["high"]
    rows = [Row((*ids, int(token)), len(ids)) for token in drawn[:20]]
    assert raft_watch.token_logps(start, rows) == [
        [pytest.approx(float(logps[1][token]), abs=1e-4)] for token in drawn[:20]
    ]
