"""The policy's two forms, ours on flat rows and transformers' on padded ones: equal, and which is taken when."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeserve.data.records import Demonstration, PreferencePair
from safeserve.models.decoder import Decoder
from safeserve.models.loading import LoadedModel, load
from safeserve.training.batches import Row
from safeserve.training.dpo import DpoObjective, DpoOptions, EncodedPair, train_dpo
from safeserve.training.logprobs import plain_logps
from safeserve.training.options import TrainOptions
from safeserve.training.policy import Policy, excerpt, probes, stretched
from safeserve.training.sit import SitObjective, SitOptions, train_sit

Tiny = Callable[..., LoadedModel]
MESSAGE = "train: rows are padded and run by transformers, which is slower: "


def disturb(model: Any) -> None:
    """Random values for the adapter, so that it acts and all its matrices have gradients."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def policy_of(model: LoadedModel, **options: Any) -> Policy:
    adapter = {} if options.get("full") else {"lora_rank": 4}
    policy = Policy(model, TrainOptions(**adapter, **options), seed=1)
    disturb(policy.model)
    return policy


def some_rows(kind: str) -> list[Row]:
    """Pairs with one prompt each; single rows; rows with few prompts, mixed; the same with one-token answers."""
    chance = random.Random(3)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.choices(range(3, 250), k=chance.randint(least, most)))

    if kind == "pairs":
        prompts = [prompt for _ in range(5) for prompt in [ids(1, 12)] * 2]
    elif kind == "single rows":
        prompts = [ids(1, 12) for _ in range(8)]
    else:
        prompts = [(5, 6, 7), (8,), (5, 6, 7), (9, 10), (8,), (5, 6, 7), (5, 6, 7)]
    longest = 1 if kind == "one-token answers" else 15
    return [Row(prompt + ids(1, longest), len(prompt)) for prompt in prompts]


def gradients(policy: Policy, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in policy.model.parameters() if p.requires_grad]))


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Each tensor within 1e-3 of its own norm."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= 1e-3 * b.norm()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "single rows", "repeated prompts", "one-token answers"])
def test_response_logps_are_the_plain_form_s(tiny: Tiny, kind: str, full: bool) -> None:
    policy = policy_of(tiny(), full=True) if full else policy_of(tiny())
    assert policy.decoder is not None
    rows = some_rows(kind)
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        ours, plain = policy.response_logps(rows), plain_logps(policy.model, rows, "cpu")
        for number in range(len(rows)):
            values = [form.values[form.owners == number] for form in (ours, plain)]
            assert torch.allclose(*values, atol=1e-4)
    weights = torch.linspace(-1, 2, len(rows))
    assert_close(*(gradients(policy, (weights * form.sums()).sum()) for form in (ours, plain)))


def test_the_reference_is_the_model_without_adapter_in_both_forms(tiny: Tiny) -> None:
    rows = some_rows("pairs")
    before = plain_logps(tiny().model, rows, "cpu").sums().detach()
    policy = policy_of(tiny())
    assert not torch.allclose(policy.response_logps(rows).sums(), before, atol=0.01)
    with policy.reference():
        assert torch.allclose(policy.response_logps(rows).sums(), before, atol=1e-4)
    assert not torch.allclose(policy.response_logps(rows).sums(), before, atol=0.01)


def scaled(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """States a little too large: seen in the values."""
    return lambda self, layout: 1.05 * original(self, layout)


def not_a_number(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, layout: original(self, layout) * float("nan")


def doubled_slope(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Right values, gradients a tenth too large: what only a comparison of gradients can see."""

    def changed(self: Decoder, layout: Any) -> Tensor:
        states = original(self, layout)
        return states + 0.1 * (states - states.detach())

    return changed


@pytest.mark.parametrize("wrong", [scaled, not_a_number, doubled_slope])
def test_probe_takes_the_plain_form_where_ours_is_wrong(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
) -> None:
    monkeypatch.setattr(Decoder, "shared", wrong(Decoder.shared))
    policy, rows = policy_of(tiny()), some_rows("pairs")
    assert capsys.readouterr().err == ""
    policy.probe(rows[:2])
    assert policy.decoder is None
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{MESSAGE}they differ from transformers' by ")
    assert captured.out == ""
    assert torch.equal(policy.response_logps(rows).values, plain_logps(policy.model, rows, "cpu").values)
    policy.probe(rows[:2])
    assert capsys.readouterr().err == "", "said once"


def test_an_excerpt_keeps_the_beginnings_of_prompt_and_response() -> None:
    """The beginning of a prompt carries much of the attention; behind another first token bfloat16 tells little."""
    row = Row(tuple(range(20)), 12)
    assert excerpt(row, 3) == Row((0, 1, 2, 12, 13, 14), 3)
    assert excerpt(row, 50) == row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"full": True}, {"gradient_checkpointing": True}])
def test_probe_keeps_our_form_where_it_is_right(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], options: dict[str, Any], dtype: str
) -> None:
    if dtype == "bfloat16" and options.get("full"):
        pytest.skip("never takes our form")
    policy = Policy(tiny(dtype), TrainOptions(**options), seed=1)  # as training begins: B is zero
    for rows in (some_rows("pairs")[:2], some_rows("repeated prompts"), some_rows("one-token answers")):
        policy.probe(rows)
        assert policy.decoder is not None
    assert all(p.grad is None for p in policy.model.parameters()), "the probe leaves no gradients behind"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({"lora_dropout": 0.1}, "float32", "LoRA with dropout, DoRA or another variant"),
        ({"full": True}, "bfloat16", "full training in bfloat16, which is autocast's"),
        ({"lora_targets": ("lm_head",)}, "float32", "a head that is not one linear layer"),
    ],
)
def test_options_that_need_the_plain_form_say_so(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], options: dict[str, Any], dtype: str, reason: str
) -> None:
    policy = Policy(tiny(dtype), TrainOptions(**options), seed=1)
    assert policy.decoder is None
    assert capsys.readouterr().err == f"{MESSAGE}{reason}.\n"
    logps = policy.response_logps(some_rows("pairs"))
    assert any(slope.abs().sum() > 0 for slope in gradients(policy, logps.values.sum()))


def test_adapter_on_the_embedding_is_trained(tiny: Tiny) -> None:
    policy, rows = policy_of(tiny(), lora_targets=("embed_tokens", "q_proj")), some_rows("pairs")
    policy.probe(rows[:2])
    assert_close(
        *(gradients(policy, form.sums().sum()) for form in (policy.response_logps(rows), policy._plain_logps(rows)))
    )


@pytest.fixture
def plain_form(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``plain_form()`` makes every policy after it take transformers' layers."""
    return lambda: monkeypatch.setattr(Policy, "_own_layers", lambda self: None)


def curves(result: Any, name: str = "loss") -> list[float]:
    return [row[name] for row in result.metrics["curves"]["train"]]


def test_a_whole_training_is_one_in_both_forms(
    tiny: Tiny, tiny_folder: Path, tmp_path: Path, pairs: list[PreferencePair], plain_form: Callable[[], None]
) -> None:
    """Ours; ours found wrong by the probe (which then is transformers'); transformers' from the start."""
    options = DpoOptions(lora_rank=4, epochs=1, batch_size=5, learning_rate=1e-2, checkpoint_steps=None)

    def train(name: str) -> Any:
        return train_dpo(tiny(), pairs, options, tmp_path / "m" / name, seed=7, parent=str(tiny_folder))

    ours = train("ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "shared", scaled(Decoder.shared))
        probed = train("probed")
    plain_form()
    plain = train("plain")
    assert curves(probed) == curves(plain)
    assert curves(ours) == pytest.approx(curves(plain), abs=1e-4)
    assert curves(ours, "margin") == pytest.approx(curves(plain, "margin"), abs=1e-3)
    assert abs(curves(ours, "margin")[-1]) > 0.05
    assert ours.metrics["tokens"] == plain.metrics["tokens"]


def dpo_step(policy: Policy, rows: Sequence[Row]) -> tuple[float, list[Tensor], int]:
    """Loss and gradients of one whole optimiser step, and how many micro-batches it was cut into."""
    pairs = [EncodedPair(*rows[at : at + 2]) for at in range(0, len(rows), 2)]
    objective = DpoObjective(DpoOptions(sft_weight=0.5), dict.fromkeys(pairs, (-30.0, -25.0)))
    return step(policy, objective, pairs)


def step(policy: Policy, objective: Any, items: Sequence[Any]) -> tuple[float, list[Tensor], int]:
    weight = sum(objective.weight(item) for item in items)
    groups = policy.micro_batches(items, objective.rows)
    total = torch.zeros(())
    for group in groups:
        total = total + objective.loss(policy, group)[0] / weight
    return float(total.detach()), gradients(policy, total), len(groups)


def sit_step(policy: Policy, rows: Sequence[Row]) -> tuple[float, list[Tensor], int]:
    return step(policy, SitObjective(), rows)


@pytest.mark.parametrize("form", ["shared", "plain"])
@pytest.mark.parametrize("run", [dpo_step, sit_step])
def test_the_token_budget_changes_neither_loss_nor_gradients(
    tiny: Tiny, plain_form: Callable[[], None], run: Callable[..., tuple[float, list[Tensor], int]], form: str
) -> None:
    if form == "plain":
        plain_form()
    model, cuts = tiny(), []
    expected: tuple[float, list[Tensor]] | None = None
    for budget in (10_000, 70, 1):
        policy = policy_of(model, token_budget=budget)
        assert (policy.decoder is None) == (form == "plain")
        loss, slopes, cut = run(policy, some_rows("pairs"))
        expected = expected or (loss, slopes)
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert_close(slopes, expected[1])
        cuts.append(cut)
        policy.release()
    assert cuts[0] == 1
    assert cuts[0] < cuts[1] < cuts[2] == (5 if run is dpo_step else 10)


@pytest.mark.parametrize("form", ["shared", "plain"])
def test_gradient_checkpointing_changes_no_gradient(tiny: Tiny, plain_form: Callable[[], None], form: str) -> None:
    if form == "plain":
        plain_form()
    model, found = tiny(), []
    for again in (False, True):
        policy = policy_of(model, gradient_checkpointing=again)
        policy.model.train()
        assert (policy.decoder is None) == (form == "plain")
        if policy.decoder is not None:
            assert policy.decoder.recompute is again
        found.append(sit_step(policy, some_rows("repeated prompts")))
        policy.release()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])


def test_another_architecture_is_trained_in_the_plain_form(
    tiny_folder: Path, tmp_path: Path, demonstrations: list[Demonstration], capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma 2: local and global attention in turn, capped logits."""
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    folder = tmp_path / "gemma2"
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=16,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,  # logits of tied weights that are large enough to learn from
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    model = load(folder, dtype="float32", device="cpu")
    options = SitOptions(lora_rank=4, epochs=10, batch_size=6, learning_rate=2e-2, checkpoint_steps=None)
    capsys.readouterr()
    result = train_sit(model, demonstrations, options, tmp_path / "m" / "sit", seed=7, parent=str(folder))
    err = capsys.readouterr().err
    assert err.count(MESSAGE) == 1
    assert f"{MESSAGE}a head that is not one linear layer.\n" in err or f"{MESSAGE}model type gemma2.\n" in err
    assert curves(result)[-1] < curves(result)[0] - 0.3
    row = Row.of(model.chat.render(demonstrations[0].messages, demonstrations[0].response))
    labels = torch.tensor([[-100] * row.start + list(row.response)])
    with torch.no_grad():  # transformers' own loss of the trained model
        theirs = result.model.model(input_ids=torch.tensor([row.ids]), labels=labels).loss
        ours = -plain_logps(result.model.model, [row], "cpu").values.mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_on_a_gpu_rows_of_several_blocks_are_compared_too() -> None:
    rows = some_rows("pairs")[:2]
    assert probes(rows, "cpu") == [[excerpt(row) for row in rows]]
    short, long = probes(rows, "cuda")
    assert short == probes(rows, "cpu")[0]
    assert [row.prompt for row in long] == [row.prompt for row in rows], "the pair still shares its prompt"
    assert all(257 <= row.length < 257 + before.response_length for row, before in zip(long, rows, strict=True))
    whole = Row(tuple(range(300)), 8)
    assert stretched(whole) == whole


def test_a_kernel_that_fails_in_its_backward_pass_gives_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from safeserve.models import gpu_attention

    policy, calls = policy_of(tiny()), []

    def once(form: Any, rows: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        calls.append(form.__name__)
        if len(calls) == 1:
            raise RuntimeError("no backward kernel")
        return torch.zeros(len(rows)), (torch.ones(3),)

    monkeypatch.setattr(policy, "_with_slopes", once)
    monkeypatch.setattr(gpu_attention, "_flex_works", True)
    with pytest.raises(RuntimeError, match="no backward kernel"):  # on a CPU it is no kernel of a compiler's
        policy.probe(some_rows("pairs")[:2])
    calls.clear()
    monkeypatch.setattr(Policy, "device", "cuda")
    policy.probe(some_rows("pairs")[:2])
    assert calls == ["response_logps", "response_logps", "_plain_logps", "response_logps", "_plain_logps"]
    assert not gpu_attention.flex_in_use()
    assert policy.decoder is not None


def test_weights_that_were_trained_in_place_have_another_identity(tiny: Tiny) -> None:
    kept, changed = tiny(), tiny()
    before = kept.identity
    policy_of(kept).release()
    assert kept.identity == before
    policy_of(changed, full=True).release()
    assert changed.identity != before
