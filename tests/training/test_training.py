"""train_sit and train_dpo on the tiny model: what is learned, saved, left out and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.data.records import Demonstration, PreferencePair, user
from safeserve.models.loading import load
from safeserve.training.batches import Row, shared_tokens
from safeserve.training.dpo import DpoOptions, order_by_safety, train_dpo
from safeserve.training.options import TrainOptions
from safeserve.training.policy import Policy
from safeserve.training.reference import check_step_zero, reference_logps
from safeserve.training.sit import SitOptions, train_sit

SIT = {"lora_rank": 4, "epochs": 2, "batch_size": 6, "learning_rate": 1e-2, "checkpoint_steps": None}
DPO = {"lora_rank": 4, "epochs": 3, "batch_size": 5, "learning_rate": 1e-2, "checkpoint_steps": None}
Tiny = Callable[..., Any]


def logits(loaded: Any, text: str = "sun moon tree") -> torch.Tensor:
    ids = torch.tensor([loaded.chat.prompt_ids(user(text))])
    with torch.no_grad():
        result: torch.Tensor = loaded.model(input_ids=ids).logits[0].float()
    return result


def test_sit_learns_and_load_gives_the_same_model(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, demonstrations: list[Demonstration]
) -> None:
    model = tiny()
    before = logits(model)
    result = train_sit(
        model, demonstrations, SitOptions(**SIT), tmp_path / "models" / "sit", seed=7, parent=str(tiny_folder)
    )
    curve = result.metrics["curves"]["train"]
    assert result.metrics["loss"] < curve[0]["loss"] - 0.3
    assert len(curve) == result.metrics["steps"] == 8
    assert curve[-1]["learning_rate"] < curve[1]["learning_rate"]
    rows = [model.chat.render(d.messages, d.response) for d in demonstrations]
    assert result.metrics["tokens"] == 2 * sum(len(row.ids) for row in rows)
    json.dumps(result.metrics, allow_nan=False)
    assert torch.equal(logits(model), before), "the given model was changed"
    assert not torch.allclose(logits(result.model), before, atol=1e-2)
    assert torch.equal(logits(load(result.folder, dtype="float32")), logits(result.model))
    files = {path.name for path in result.folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "safeserve.json", "chat_template.jinja"} <= files
    assert not files & {"training_args.bin", "README.md"}


def test_first_loss_is_the_mean_over_response_tokens(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, demonstrations: list[Demonstration]
) -> None:
    model = tiny()
    options = SitOptions(**{**SIT, "epochs": 1, "batch_size": len(demonstrations)})
    result = train_sit(model, demonstrations, options, tmp_path / "m" / "sit", seed=7, parent=str(tiny_folder))
    total = tokens = 0.0
    for demonstration in demonstrations:
        row = model.chat.render(demonstration.messages, demonstration.response)
        labels = torch.tensor([[-100] * len(row.prompt) + list(row.response)])
        with torch.no_grad():  # transformers' own loss
            loss = model.model(input_ids=torch.tensor([row.ids]), labels=labels).loss
        total += loss.item() * len(row.response)
        tokens += len(row.response)
    assert result.metrics["curves"]["train"][0]["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_token_budget_changes_nothing_but_speed(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    results = [
        train_dpo(
            tiny(), pairs, DpoOptions(**DPO, token_budget=budget), tmp_path / "m" / str(budget), seed=7,
            parent=str(tiny_folder),
        )
        for budget in (1, 300, 10_000)
    ]  # fmt: skip
    for other in results[1:]:
        for a, b in zip(results[0].metrics["curves"]["train"], other.metrics["curves"]["train"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert torch.allclose(logits(results[0].model), logits(other.model), atol=1e-3)


def test_dpo_starts_at_log_two_and_prefers_chosen(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    result = train_dpo(tiny(), pairs, DpoOptions(**DPO), tmp_path / "m" / "dpo", seed=7, parent=str(tiny_folder))
    first, last = result.metrics["curves"]["train"][0], result.metrics["curves"]["train"][-1]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["margin"] > 0.1
    assert last["accuracy"] == 1.0
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-5)


def test_sit_then_dpo_rests_on_the_merged_adapter(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, demonstrations: list[Demonstration], pairs: list[PreferencePair]
) -> None:
    models = tmp_path / "models"
    sit = train_sit(tiny(), demonstrations, SitOptions(**SIT), models / "sit", seed=7, parent=str(tiny_folder))
    dpo = train_dpo(sit.model, pairs, DpoOptions(**DPO), models / "dpo", seed=7, parent=str(models / "sit"))
    assert dpo.metrics["curves"]["train"][0]["margin"] == pytest.approx(0, abs=1e-5)
    again = load(models / "dpo", dtype="float32")
    assert torch.equal(logits(again), logits(dpo.model))
    assert not torch.allclose(logits(again), logits(sit.model), atol=1e-2)
    assert not torch.allclose(logits(sit.model), logits(tiny()), atol=1e-2)
    moved = models.rename(tmp_path / "moved")  # a run folder can be moved: the parent is named beside the adapter
    assert torch.equal(logits(load(moved / "dpo", dtype="float32")), logits(dpo.model))


@pytest.mark.parametrize("changes", [{"save": "merged"}, {"full": True, "learning_rate": 1e-3}])
def test_merged_and_full_load_without_a_parent(
    tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair], changes: dict[str, Any]
) -> None:
    options = {
        key: value for key, value in {**DPO, **changes}.items() if not (key == "lora_rank" and "full" in changes)
    }
    result = train_dpo(
        tiny(), pairs, DpoOptions(**options), tmp_path / "m" / "x", seed=7, parent=str(tiny_parent(tiny))
    )
    assert not (result.folder / "adapter_config.json").exists()
    assert torch.equal(logits(load(result.folder, dtype="float32")), logits(result.model))
    assert result.metrics["curves"]["train"][-1]["margin"] > 0.05
    assert result.metrics["curves"]["train"][0]["margin"] == pytest.approx(0, abs=1e-5)


def tiny_parent(tiny: Tiny) -> str:
    return str(tiny().name)


def test_merged_equals_the_adapter(tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair]) -> None:
    adapter, merged = (
        train_dpo(tiny(), pairs, DpoOptions(**DPO, save=save), tmp_path / "m" / save, seed=7, parent=tiny_parent(tiny))
        for save in ("adapter", "merged")
    )
    assert torch.equal(logits(adapter.model), logits(merged.model))


def test_trained_policy_equals_its_saved_form(tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair]) -> None:
    """The adapter switched on while training, and merged after loading, are one model."""
    import safeserve.training.policy as policy_module

    seen: dict[str, torch.Tensor] = {}
    original = policy_module.Policy.save_weights

    def spy(self: Policy, folder: Path) -> None:
        self.model.eval()
        ids = torch.tensor([self.loaded.chat.prompt_ids(user("sun moon tree"))])
        with torch.no_grad():
            seen["trained"] = self.model(input_ids=ids).logits[0]
        original(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_module.Policy, "save_weights", spy)
        result = train_dpo(tiny(), pairs, DpoOptions(**DPO), tmp_path / "m" / "x", seed=7, parent=tiny_parent(tiny))
    assert torch.allclose(seen["trained"], logits(result.model), atol=1e-4)


def test_bfloat16_base_keeps_adapter_and_optimiser_in_float32(
    tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    model = tiny("bfloat16")
    policy = Policy(model, DpoOptions(), seed=1)
    trainable = [p for p in policy.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    assert {p.dtype for p in policy.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    policy.release()
    assert not [name for name, _ in model.model.named_parameters() if "lora" in name]
    out = tmp_path / "models" / "dpo"
    result = train_dpo(
        model, pairs, DpoOptions(**{**DPO, "checkpoint_steps": 4}), out, seed=1, parent=tiny_parent(tiny)
    )
    assert result.model.dtype == "bfloat16"
    assert next(result.model.model.parameters()).dtype == torch.bfloat16
    assert abs(result.metrics["curves"]["train"][0]["margin"]) < 0.05
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}
    assert not list(tmp_path.rglob("training_args.bin"))


def test_step_zero_is_checked(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    policy = Policy(model, DpoOptions(), seed=1)
    rows = [Row(tuple(range(5, 20)), 4), Row(tuple(range(9, 40)), 8)]
    reference = reference_logps(policy, rows, tmp_path)
    assert check_step_zero(policy, rows, reference) <= 1e-5
    with pytest.raises(EnvironmentFault, match="cached reference differs"):
        check_step_zero(policy, rows, reference + 1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with pytest.raises(EnvironmentFault, match="fresh adapter changes the model"):
        check_step_zero(policy, rows, reference)
    # ... and with the adapter switched off the reference is still the step-0 policy
    assert torch.allclose(reference_logps(policy, rows, tmp_path / "other"), reference, atol=1e-6)


def test_reference_is_read_back_and_keyed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safeserve.training.reference as module

    monkeypatch.setattr(module, "WAVE", 2)
    policy = Policy(tiny(), DpoOptions(), seed=1)
    rows = [Row(tuple(range(5, 5 + n)), 2) for n in (9, 30, 12, 25, 7)]
    first = reference_logps(policy, rows, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    next(tmp_path.rglob("00001.safetensors")).unlink()  # as if killed before it was written
    calls: list[int] = []
    original = module._sums

    def spy(policy: Policy, rows: Any, progress: Any) -> torch.Tensor:
        calls.append(len(rows))
        return original(policy, rows, progress)

    monkeypatch.setattr(module, "_sums", spy)
    assert torch.equal(reference_logps(policy, rows, tmp_path), first)
    assert calls == [2]
    reference_logps(policy, [*rows[:4], Row(rows[4].ids, 3)], tmp_path)
    assert sum(calls) == 2 + 5


@pytest.mark.parametrize("flat", [True, False])
def test_many_answers_to_one_prompt_are_read_within_the_token_budget(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    rows = [Row((*range(5, 15), *range(20, 20 + n)), 10) for n in range(2, 22)]
    policy = Policy(tiny(), DpoOptions(token_budget=100), seed=1)
    if not flat:
        policy.decoder = None
    sizes: list[int] = []
    original = policy.response_logps

    def spy(some: Any) -> Any:
        sizes.append(shared_tokens(some) if flat else len(some) * max(row.length for row in some))
        return original(some)

    monkeypatch.setattr(policy, "response_logps", spy)
    found = reference_logps(policy, rows, tmp_path)
    assert len(sizes) > 2
    assert max(sizes) <= 100
    with policy.reference():
        alone = torch.stack([original([row]).sums()[0] for row in rows])
    assert torch.allclose(found, alone, atol=1e-4)


def test_overlong_rows_are_named_and_counted(
    tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair], capsys: pytest.CaptureFixture[str]
) -> None:
    long = replace(pairs[0], id="long-one", rejected="sun " * 100)
    options = DpoOptions(**DPO)  # the model has 256 positions, fewer than max_length
    result = train_dpo(tiny(), [*pairs, long], options, tmp_path / "m" / "x", seed=7, parent=tiny_parent(tiny))
    assert list(result.metrics["excluded"]) == ["long-one"]
    assert result.metrics["rows"] == len(pairs)
    captured = capsys.readouterr()
    assert "1 of 21 rows are longer than 256 tokens and are left out (long-one)" in captured.err
    assert captured.out == ""
    with pytest.raises(UserError, match="no row to train on"):
        train_dpo(tiny(), [long], options, tmp_path / "m" / "y", seed=7, parent=tiny_parent(tiny))


def test_validation_and_its_options(tiny: Tiny, tmp_path: Path, demonstrations: list[Demonstration]) -> None:
    parent = tiny_parent(tiny)
    options = SitOptions(**SIT, validation_share=0.25, eval_steps=2)
    result = train_sit(tiny(), demonstrations, options, tmp_path / "m" / "x", seed=7, parent=parent)
    assert (result.metrics["rows"], result.metrics["validation_rows"]) == (18, 6)
    assert [row["step"] for row in result.metrics["curves"]["validation"]] == [2, 4, 6]
    assert result.metrics["validation_loss"] == result.metrics["curves"]["validation"][-1]["eval_loss"]
    given = train_sit(
        tiny(), demonstrations[:18], SitOptions(**SIT), tmp_path / "m" / "y", seed=7, parent=parent,
        validation=demonstrations[18:],
    )  # fmt: skip
    assert [row["step"] for row in given.metrics["curves"]["validation"]] == [6]
    with pytest.raises(UserError, match="validation_share: would be ignored"):
        train_sit(tiny(), demonstrations, options, tmp_path / "z", seed=7, parent=parent, validation=demonstrations)
    with pytest.raises(UserError, match="eval_steps: would be ignored"):
        train_sit(tiny(), demonstrations, SitOptions(eval_steps=2), tmp_path / "z", seed=7, parent=parent)


def test_finished_training_is_returned_and_other_inputs_are_refused(
    tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    out, parent = tmp_path / "models" / "dpo", tiny_parent(tiny)
    first = train_dpo(tiny(), pairs, DpoOptions(**DPO), out, seed=7, parent=parent)
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    again = train_dpo(tiny(), pairs, DpoOptions(**DPO), out, seed=7, parent=parent)
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert again.metrics == first.metrics
    assert torch.equal(logits(again.model), logits(first.model))
    with pytest.raises(UserError, match="made with other inputs; changed: options, seed"):
        train_dpo(tiny(), pairs, DpoOptions(**{**DPO, "beta": 0.3}), out, seed=8, parent=parent)


def test_same_seed_same_bytes(tiny: Tiny, tmp_path: Path, demonstrations: list[Demonstration]) -> None:
    options = SitOptions(**SIT, lora_dropout=0.1)
    folders = [
        train_sit(tiny(), demonstrations, options, tmp_path / "m" / name, seed=seed, parent=tiny_parent(tiny)).folder
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    a, b, c = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert a == b
    assert a != c


def test_safedpo_orders_by_safety_and_needs_labels(tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair]) -> None:
    kinds = {(p.chosen_safe, p.rejected_safe): p for p in pairs}
    swapped = order_by_safety(kinds[False, True])
    assert (swapped.chosen, swapped.rejected) == (kinds[False, True].rejected, kinds[False, True].chosen)
    assert (swapped.chosen_safe, swapped.rejected_safe) == (True, False)
    for kept in ((True, True), (True, False), (False, False)):
        assert order_by_safety(kinds[kept]) == kinds[kept]
    options = DpoOptions(**DPO, loss="safedpo", delta=2.0)
    result = train_dpo(tiny(), pairs, options, tmp_path / "m" / "x", seed=7, parent=tiny_parent(tiny))
    assert result.metrics["reordered_pairs"] == sum(not p.chosen_safe and bool(p.rejected_safe) for p in pairs)
    # at step 0: log 2 where both are alike, -log sigmoid(-2) = 2.126928 where an unsafe response lost
    assert 0.6931 < result.metrics["curves"]["train"][0]["loss"] < 2.127
    with pytest.raises(UserError, match="pair p0: loss: safedpo needs"):
        train_dpo(tiny(), [replace(pairs[0], chosen_safe=None)], options, tmp_path / "y", seed=7, parent="x")


@pytest.mark.parametrize("changes", [{"loss": "ipo"}, {"label_smoothing": 0.2}, {"sft_weight": 1.0}])
def test_loss_options_act(tiny: Tiny, tmp_path: Path, pairs: list[PreferencePair], changes: dict[str, Any]) -> None:
    options = DpoOptions(**{**DPO, "learning_rate": 3e-3, **changes})
    result = train_dpo(tiny(), pairs, options, tmp_path / "m" / "x", seed=7, parent=tiny_parent(tiny))
    losses = [row["loss"] for row in result.metrics["curves"]["train"]]
    if options.loss == "ipo":
        assert losses[0] == pytest.approx(25.0, abs=1e-3)  # (0 - 1/(2 * 0.1))^2
    elif options.sft_weight:
        assert losses[0] > 0.6932 + 1
    else:
        assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing: would be ignored by loss: ipo"),
        ({"delta": 1.0}, "delta: would be ignored by loss: dpo"),
        ({"full": True, "lora_rank": 8}, "lora_rank: would be ignored"),
        ({"full": True, "save": "adapter"}, "save: adapter needs an adapter"),
        ({"bta": 0.1}, 'unknown key "bta". Did you mean "beta"'),
        ({"label_smoothing": 0.7}, "label_smoothing"),
    ],
)
def test_wrong_options_are_user_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DpoOptions.parse(options, "recipe.yaml: train.dpo")
    assert str(caught.value).startswith("recipe.yaml: train.dpo: ")


def test_wrong_layer_names_and_nan_loss(tiny: Tiny, tmp_path: Path, demonstrations: list[Demonstration]) -> None:
    model = tiny()
    with pytest.raises(UserError, match="lora_targets"):
        Policy(model, SitOptions(lora_targets=("nowhere",)), seed=1)
    options = SitOptions(**{**SIT, "learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step \d+. Lower learning_rate"):
        train_sit(model, demonstrations, options, tmp_path / "m" / "x", seed=7, parent=tiny_parent(tiny))
    assert not [name for name, _ in model.model.named_parameters() if "lora" in name], "adapter left in the model"


def test_lora_options_act(tiny: Tiny) -> None:
    options = TrainOptions(lora_rank=3, lora_alpha=6, lora_targets=("q_proj",), gradient_checkpointing=True)
    policy = Policy(tiny(), options, seed=1)
    adapted = {name.split(".")[-4] for name, p in policy.model.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj"}
    assert policy.model.peft_config["default"].r == 3
    policy.model.train()
    logps = policy.response_logps([Row(tuple(range(5, 20)), 4)]).values
    logps.sum().backward()
    gradients = [p.grad for n, p in policy.model.named_parameters() if "lora_B" in n]
    assert gradients
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_quantised_base_needs_cuda(tiny_folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA GPU is here")
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        load(tiny_folder, quantize="4bit")


def test_full_training_of_a_quantised_base_is_refused(tiny: Tiny) -> None:
    model = tiny()
    model.model.is_quantized = True
    with pytest.raises(UserError, match="cannot train a quantised base"):
        Policy(model, SitOptions(full=True), seed=1)
