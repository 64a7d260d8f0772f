"""RAFT in recipes: checked before anything runs, planned, run with its samples' pairs, and its exit codes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.runs import read_json, read_jsonl
from safeserve.data.records import Prompt, user
from safeserve.data.sources import load_demonstrations
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score
from safeserve.pipeline import outlook
from safeserve.pipeline.plan import models_in_order, plan, plan_text
from safeserve.pipeline.probe import Rates
from safeserve.pipeline.raft import CostGuard, judge_maker
from safeserve.pipeline.recipe import parse_recipe
from safeserve.pipeline.rows import Sources, raft_pools
from safeserve.pipeline.run import Run
from safeserve.pipeline.train_stages import RaftStage
from safeserve.report.html import _curve_charts
from safeserve.training.selection import SWITCH_SAFETY

Tree = Callable[..., dict[str, Any]]
TOYS = """
import hashlib
from safeserve.judging.judge import Score

def harm(text):
    return hashlib.sha256(text.encode()).digest()[0] / 256

class Toy:
    sign, name = 1, "toy-good"
    identity = "1"
    def score(self, items):
        return [self.one(c.text) for _, c in items]
    def one(self, text):
        return Score(self.sign * (1 - harm(text)), "unsafe" if harm(text) > 0.5 else "safe")

class Bad(Toy):
    sign, name, identity = -1, "toy-bad", "2"

class Guard(Toy):
    name, identity = "guard-toy", "3"
    def one(self, text):
        return Score(harm(text), "unsafe" if harm(text) > 0.5 else "safe")

class Watch(Guard):
    name, identity = "guard-watch", "4"

class Blind(Toy):
    name, identity = "toy-blind", "5"
    def one(self, text):
        return Score(None, None, reason="cannot be read")
"""


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "raft_toys_here.py").write_text(TOYS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(outlook, "rates_of", lambda device, dtype: Rates(1e11, 1e10))


@pytest.fixture
def raft(tree: Tree, data: dict[str, Path]) -> Tree:
    """A recipe of a RAFT stage after SIT, without evaluation."""

    def make(**options: Any) -> dict[str, Any]:
        made = tree()
        del made["evaluate"], made["gate"]
        made["train"]["raft"] = {
            "method": "raft",
            "start": "sit",
            "harmful": str(data["safety"]),
            "benign": [str(data["look_alike"]), str(data["helpful"])],
            "reward": "raft_toys_here:Toy",
            "held_out_judge": "raft_toys_here:Watch",
            "iterations": 2,
            "prompts_per_iteration": 8,
            "samples_per_prompt": 3,
            "sample_tokens": 5,
            "held_out_prompts": 4,
            "kl_samples": 2,
            "lora_rank": 2,
            **options,
        }
        return made

    return make


def execute(made: dict[str, Any], folder: Path, **options: Any) -> Any:
    return Run(parse_recipe(made, "r"), folder, quiet=True, **options).execute()


def test_raft_then_dpo_on_its_samples(raft: Tree, tmp_path: Path) -> None:
    made = raft(rule="constrained", guard="raft_toys_here:Guard", tau=0.7)
    made["train"]["dpo"] = {"method": "dpo", "start": "sit", "pairs": "raft:raft", "lora_rank": 2}
    made["train"]["safe"] = {"method": "dpo", "start": "sit", "pairs": "raft:raft", "keep": "safe", "lora_rank": 2}
    folder = tmp_path / "run"
    execute(made, folder)
    stage = folder / "stages" / "train-raft"
    pairs = [row for path in sorted(stage.glob("iter-*/pairs.jsonl")) for row in read_jsonl(path)]
    metrics = {
        name: read_json(folder / "stages" / f"train-{name}" / "metrics.json") for name in ("raft", "dpo", "safe")
    }
    assert metrics["dpo"]["rows"] == len(pairs)
    assert metrics["safe"]["rows"] == sum(row["chosen_safe"] and not row["rejected_safe"] for row in pairs) < len(pairs)
    assert metrics["dpo"]["data"]["raft:raft"]["rows"] == len(pairs)
    assert set(metrics["raft"]["parts"]) >= {"sample", "judge", "train", "load"}
    assert metrics["raft"]["parts"]["sample"]["tokens"] > 0
    assert {path.name for path in (folder / "models").iterdir()} == {
        *("sit", "raft", "raft.iter-1", "raft.iter-2", "dpo", "safe")
    }
    labels = {row["label"] for row in read_jsonl(stage / "iter-1" / "samples.jsonl")}
    assert labels == {"harmful", "benign"}
    (drawn,) = _curve_charts({"train-raft": metrics["raft"]["curves"]})
    lines = {chart["quantity"]: chart["names"] for chart in drawn["charts"]}
    assert lines["reward"] == ["selected", "mean"]
    assert set(lines) >= {"safe_rate", "over_refusal_rate", "distinct_1", "distinct_2", "answer_tokens", "kl", "loss"}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if "iter-" in str(path)}
    execute(made, folder)  # nothing is done again
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_judge_makes_the_stage_stale(raft: Tree, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(raft(iterations=1), folder)
    changed = raft(iterations=1, reward={"raft_toys_here:Toy": 1.0, "raft_toys_here:Guard": -1.0})
    with pytest.raises(UserError, match=r"changed: judges, train\.raft\.reward"):
        execute(changed, folder)
    execute(changed, folder, redo=True)
    assert "raft_toys_here:Guard" in read_json(folder / "stages" / "train-raft" / "metrics.json")["judges"]


def test_another_rule_under_the_same_name_makes_the_stage_stale(raft: Tree, tmp_path: Path) -> None:
    made, folder, file = raft(iterations=1, rule="raft_rule_here:first"), tmp_path / "run", tmp_path / "path"
    code = "def first(candidates): return {c.id: [c.samples[0].k] for c in candidates if c.samples}"
    (file / "raft_rule_here.py").write_text(code)
    execute(made, folder)
    execute(made, folder)
    (file / "raft_rule_here.py").write_text(code.replace("samples[0]", "samples[-1]"))
    with pytest.raises(UserError, match=r"train-raft: made with other inputs; changed: rule\."):
        execute(made, folder)


def test_labelled_pairs_that_cannot_be_scored_are_said(raft: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    made = raft(iterations=1, labelled_pairs=str(data["pairs"]), n_labelled_pairs=10)
    execute(made, tmp_path / "run")
    found = read_json(tmp_path / "run" / "stages" / "train-raft" / "iter-1" / "preflight.json")
    assert found["labelled_pairs"]["n"] == 10
    made["train"]["raft"]["reward"] = {"raft_toys_here:Toy": 1.0, "raft_toys_here:Blind": 1.0}
    with pytest.raises(EvidenceError, match="nothing was picked"):
        execute(made, tmp_path / "blind")
    found = read_json(tmp_path / "blind" / "stages" / "train-raft" / "iter-1" / "preflight.json")
    assert any("none of the 10 labelled pairs could be scored" in warning for warning in found["warnings"])


def test_the_reward_and_the_guard_are_stages_of_the_recipe(raft: Tree, tmp_path: Path) -> None:
    """A reward model and a cost model, trained here: as reward, as guard under the switch, and a cost as the reward."""
    texts = [("no, {} is not for me", True), ("yes, do {} like this and like that", False)]
    pairs = [
        {
            "prompt": f"request {n}, please",
            **{key: text.format(n) for key, (text, _) in zip(("chosen", "rejected"), texts, strict=True)},
            **{f"{key}_safe": safe for key, (_, safe) in zip(("chosen", "rejected"), texts, strict=True)},
        }
        for n in range(32)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    small = {"pairs": str(path), "lora_rank": 4, "epochs": 3, "learning_rate": 1e-2, "batch_size": 8}
    scorers = {"preferred": {"method": "reward", **small}, "harm": {"method": "cost", **small}}
    made = raft(iterations=1, reward="preferred", guard="harm", combine="switch", start="base")
    switch = made["train"]["raft"]
    own = {**switch, "reward": "harm", "labelled_pairs": str(path)}
    del own["guard"], own["combine"]
    made["train"] = {**scorers, "switch": switch, "own": own}
    folder = tmp_path / "run"
    execute(made, folder)

    # What the names stand for: each judge tells the good answer from the bad one the right way round.
    recipe = parse_recipe(made, "r")
    asked = [
        (Prompt("p", user("request 3, please"), "harmful"), Completion("p", text.format(3), (), "stop", None))
        for text, _ in texts
    ]

    def values(stage: str, judge: str) -> list[float]:
        make = judge_maker(recipe.train[stage], recipe.train, lambda name: str(folder / "models" / name))  # type: ignore[arg-type]
        return [score.value or 0.0 for score in make(judge).score(asked)]

    good, bad = values("switch", "preferred")
    assert good > bad
    good, bad = values("switch", "harm")
    assert good < 0.5 < bad, "P(unsafe)"
    good, bad = values("own", "harm")
    assert good > 0 > bad, "as the reward, higher is better"

    by_stage = {
        name: {
            (row["id"], row["k"]): row
            for row in read_jsonl(folder / "stages" / f"train-{name}" / "iter-1" / "samples.jsonl")
        }
        for name in ("switch", "own")
    }
    assert len(by_stage["switch"]) == 24
    for key, row in by_stage["switch"].items():
        other = by_stage["own"][key]
        assert other["text"] == row["text"], "the same start, prompts and seed: the same samples"
        assert row["p_unsafe"] == pytest.approx(1 / (1 + math.exp(other["reward"])), abs=1e-5)
        by_safety = row["label"] == "harmful" or row["p_unsafe"] > 1 - SWITCH_SAFETY
        expected = other["reward"] if by_safety else row["scores"]["preferred"]
        assert row["reward"] == pytest.approx(expected, abs=1e-3)
    for name, rows in by_stage.items():
        best: dict[str, float] = {}
        for row in rows.values():
            if row["text"].strip():
                best[row["id"]] = max(row["reward"], best.get(row["id"], row["reward"]))
        selected = read_jsonl(folder / "stages" / f"train-{name}" / "iter-1" / "selected.jsonl")
        assert {row["id"]: row["reward"] for row in selected} == best
    found = read_json(folder / "stages" / "train-own" / "iter-1" / "preflight.json")["labelled_pairs"]
    assert (found["n"], found["unscored"]) == (32, 0)
    assert found["mean"] > 0.9


def test_only_the_raft_stage_and_what_it_starts_from(raft: Tree) -> None:
    made = raft()
    made["train"]["dpo"] = {"method": "dpo", "pairs": "raft:raft"}
    made["train"]["other"] = dict(made["train"]["sit"])
    recipe = parse_recipe(made, "r")
    assert models_in_order(recipe, ["raft"]) == ["base", "sit", "raft"]
    assert models_in_order(recipe, ["dpo"]) == ["base", "sit", "raft", "dpo"]


def test_the_plan_counts_prompts_samples_and_steps(raft: Tree, tmp_path: Path) -> None:
    made = raft(prompts_per_iteration=10, batch_size=4)
    made["train"]["dpo"] = {"method": "dpo", "start": "sit", "pairs": "raft:raft", "batch_size": 4}
    planned = plan(parse_recipe(made, "r"), tmp_path / "run")
    _, found, dpo = planned["stages"]
    assert (found["rows"], found["samples"], found["steps"]) == (20, 60, 2 * 3)
    assert found["tokens"]["sampled"] > 60
    assert found["seconds"] > 0
    assert (dpo["rows"], dpo["steps"]) == (20, 5)
    assert "raft from sit: 20 prompts, 60 samples, 6 steps" in plan_text(planned)
    assert "judge raft_toys_here:Toy" in planned["not_counted"]


def test_the_plan_counts_what_a_trained_reward_reads(raft: Tree, data: dict[str, Path], tmp_path: Path) -> None:
    def stage_of(reward: str) -> dict[str, Any]:
        made = raft(reward=reward, held_out_judge="refusal")
        made["train"] = {"own": {"method": "reward", "pairs": str(data["pairs"])}, **made["train"]}
        planned = plan(parse_recipe(made, "r"), tmp_path / "run")
        (stage,) = [stage for stage in planned["stages"] if stage["stage"] == "train-raft"]
        return {**stage, "not_counted": planned["not_counted"]}

    toy, own = stage_of("raft_toys_here:Toy"), stage_of("own")
    assert "judged" not in toy["tokens"]
    assert toy["not_counted"] == ["judge raft_toys_here:Toy"]
    assert own["not_counted"] == []
    assert own["tokens"]["judged"] > own["tokens"]["sampled"] > 0  # the answers, and their prompts
    assert own["seconds"] > toy["seconds"] + own["parts"]["judge"] - 0.1


def test_pools_hold_each_prompt_once_and_none_that_is_evaluated(
    raft: Tree, data: dict[str, Path], tmp_path: Path
) -> None:
    made = raft(benign=[str(data["helpful"]), str(data["look_alike"]), str(data["safety"])])
    recipe = parse_recipe(made, "r")
    stage = recipe.train["raft"]
    assert isinstance(stage, RaftStage)
    evaluated = load_demonstrations(str(data["helpful"])).rows[0]
    sources = Sources(recipe, [Prompt("e", evaluated.messages, "benign")], tmp_path)
    pools = raft_pools(stage, sources)
    texts = [prompt.text for prompt in [*pools.harmful, *pools.benign]]
    assert len(texts) == len(set(texts)) == 3 * 24 - 1  # the harmful source named as benign, too, gives nothing new
    assert evaluated.messages[0]["content"] not in texts
    assert sources.account[f"benign {data['safety']}"]["left_out"]["prompt repeated"] == 24
    assert all(prompt.reference for prompt in pools.harmful)


def test_prompts_labelled_otherwise_are_left_out(raft: Tree, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"number {n} of the herd of {n} zebras", "label": ("harmful", "benign")[n % 2]} for n in range(40)
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = raft(harmful=str(tmp_path / "mixed.jsonl"), benign=str(tmp_path / "mixed.jsonl"))
    recipe = parse_recipe(made, "r")
    sources = Sources(recipe, [], tmp_path)
    pools = raft_pools(recipe.train["raft"], sources)  # type: ignore[arg-type]
    assert (len(pools.harmful), len(pools.benign)) == (20, 20)
    assert {prompt.label for prompt in pools.harmful} == {"harmful"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"harmful": None}, "train.raft: harmful"),
        ({"harmful": []}, "train.raft: harmful: is missing"),
        ({"harmful_share": 1.0}, "benign: would be ignored"),
        ({"reward": "rewrd"}, 'train.raft: judge: unknown name "rewrd". Did you mean "reward"?'),
        ({"reward": "sit"}, '"sit" is no earlier stage that trains a reward or cost model'),
        ({"held_out_judge": "raft_toys_here:Toy"}, "which selects"),
        ({"held_out_judge": "short_answer"}, "held_out_judge: short_answer does not say what is unsafe"),
        ({"guard": "refusal"}, "guard: refusal gives no P(unsafe)"),
        ({"reward": "guard"}, "a positive weight rewards the worst answers. Write reward: {guard: -1.0}"),
        ({"reward": "refusal", "held_out_judge": "guard"}, "refusal gives 1 for unsafe compliance, else 0; lower is"),
        ({"reward": {"rouge_l": 1, "refusal": 1}, "held_out_judge": "guard"}, "Write reward: {refusal: -1.0}"),
        ({"reward": "perplexity", "held_out_judge": "refusal"}, "perplexity gives how unexpected an answer is; lower"),
        ({"reward": {"rouge_l": 1, "refusal": -1}, "held_out_judge": "modes"}, "modes is (or contains) refusal, which"),
        ({"reward": {"guard": -1}, "held_out_judge": "modes"}, "modes is (or contains) guard, which selects"),
        ({"reward": "rouge_l", "labelled_pairs": "x"}, "labelled_pairs: rouge_l compares an answer with a written one"),
        ({"kl_samples": 5}, "train.raft: kl_samples: 5 is more than held_out_prompts (4)"),
        ({"reward": {"rouge_l": 1, "modes": 0.5}, "held_out_judge": "refusal"}, "Write reward: {modes: -1.0}"),
        ({"rule": "raft_toys_here:nothing"}, 'has no "nothing"'),
        ({"iteration": 3}, 'unknown key "iteration". Did you mean "iterations"?'),
        ({"start": "raft"}, 'train.raft.start: no earlier model "raft"'),
    ],
)
def test_what_is_wrong_is_named(raft: Tree, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(raft(**options), "r")
    assert says in str(error.value)


def test_a_guard_that_selects_does_not_make_the_rules_partial(raft: Tree) -> None:
    """The value of ``modes`` is its guard's; the rules in it say which mode, and selecting does not look at that."""
    for options in (
        {"reward": {"rouge_l": 1, "modes": -1}, "held_out_judge": "refusal"},
        {"reward": "rouge_l", "rule": "constrained", "guard": "guard", "drop_refusals": True},
        {"reward": {"rouge_l": 1, "perplexity": -0.1, "refusal": -1}, "held_out_judge": "guard"},
    ):
        parse_recipe(raft(**{"held_out_judge": "refusal", **options}), "r")


def test_pairs_of_a_stage_that_is_no_raft(raft: Tree) -> None:
    made = raft()
    made["train"]["dpo"] = {"method": "dpo", "pairs": "raft:sit"}
    with pytest.raises(UserError, match=r'pairs: raft:sit: no raft stage "sit"'):
        parse_recipe(made, "r")
    made["train"]["dpo"] = {"method": "dpo", "pairs": "raft:raft", "keep": "paper"}
    with pytest.raises(UserError, match="keep: paper needs published preferences"):
        parse_recipe(made, "r")


def test_quantised_raft_is_refused(raft: Tree) -> None:
    made = raft()
    made["quantize"] = "4bit"
    made["train"]["sit"]["save"] = "merged"
    with pytest.raises(UserError, match=r"quantize: train\.raft samples the model that it trains"):
        parse_recipe(made, "r")


def test_exit_codes(raft: Tree, tmp_path: Path, cli_here: Callable[..., Any]) -> None:
    made = raft(reward="raft_toys_here:Bad", prompts_per_iteration=32, samples_per_prompt=6, iterations=1)
    (tmp_path / "own.yaml").write_text(json.dumps(made))  # JSON is YAML
    done = cli_here("train", "raft", "own.yaml", "--out", "run", "--quiet")
    assert done.code == 4, done.stderr
    assert "RAFT stopped in iteration 1" in done.stderr
    assert not (tmp_path / "run" / "models" / "raft").exists()
    wrong = cli_here("train", "raft", "own.yaml", "train.raft.rule=topk", "--out", "other")
    assert wrong.code == 2
    assert "top_share" in wrong.stderr
    dry = cli_here("train", "raft", "own.yaml", "--out", "other", "--dry-run")
    assert dry.code == 0
    assert "raft from sit: 32 prompts, 192 samples" in dry.stdout


def test_picks_of_people_in_a_recipe(raft: Tree, tmp_path: Path) -> None:
    picks, folder = tmp_path / "picks.jsonl", tmp_path / "run"
    made = raft(rule="human", picks=str(picks), iterations=1)
    del made["train"]["raft"]["reward"]
    with pytest.raises(UserError, match="no picks for iteration 1 yet"):
        execute(made, folder)
    samples = read_jsonl(folder / "stages" / "train-raft" / "iter-1" / "samples.jsonl")
    chosen = [row for row in samples if row["text"]][:2]
    picks.write_text("".join(json.dumps({"id": row["id"], "k": row["k"]}) + "\n" for row in chosen))
    execute(made, folder)
    execute(made, folder)
    picks.write_text(picks.read_text() + "\n")
    with pytest.raises(UserError, match=r"picks\.jsonl: has changed since"):
        execute(made, folder)


def test_a_cost_model_is_a_guard() -> None:
    class Cost:
        name, identity = "reward-cost", "1"

        def score(self, items: Any) -> list[Score]:
            return [Score(2.0, None), Score(-2.0, None), Score(None, None, reason="too long")]

    item = (Prompt("p", (), "harmful"), Completion("p", "t", (), "stop", None))
    high, low, none = CostGuard("cost", Cost()).score([item] * 3)
    assert (high.value, high.label) == (pytest.approx(0.880797), "unsafe")
    assert (low.value, low.label) == (pytest.approx(0.119203), "safe")
    assert none.value is None
