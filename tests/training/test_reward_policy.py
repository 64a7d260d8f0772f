"""The scorer's two forms, and that nothing but the text decides a score: not batch, padding, order or pad token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeserve.core.errors import UserError
from safeserve.models.decoder import Decoder
from safeserve.models.loading import LoadedModel, load
from safeserve.training.batches import Row
from safeserve.training.reward_options import RewardOptions
from safeserve.training.reward_policy import RewardPolicy, classifier_of, load_reward, pad_id, save_reward

Tiny = Callable[..., LoadedModel]
MESSAGE = "train: rows are padded and run by transformers, which is slower: "
ENDS_WITH_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The end token is the last one; in the tiny tokenizer it is the padding token too."""


def disturb(policy: RewardPolicy) -> RewardPolicy:
    """Random values for adapter and head, so that both act."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in sorted(policy.model.named_parameters()):
        if parameter.requires_grad and ("lora_" in name or "score" in name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def policy_of(model: LoadedModel, **options: Any) -> RewardPolicy:
    adapter = {} if options.get("full") else {"lora_rank": 4}
    return disturb(RewardPolicy(model, RewardOptions(**adapter, **options), seed=1))


def some_rows() -> list[Row]:
    """Pairs that begin alike, a row alone, one that is the beginning of another, and rows of one length."""
    chance = random.Random(3)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.choices(range(3, 250), k=chance.randint(least, most)))

    rows = [Row(prompt + ids(1, 15), len(prompt)) for _ in range(4) for prompt in [ids(1, 12)] * 2]
    start = ids(5, 5)
    return [
        *rows,
        Row(ids(9, 9), 1),
        Row(start, 5),
        Row((*start, 7, 8), 5),
        Row((*start, 2), 5),
        Row((*start, 2, 2), 5),
    ]


def gradients(policy: RewardPolicy, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [p for p in policy.model.parameters() if p.requires_grad]))


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Each tensor within 1e-3 of its own norm."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= 1e-3 * b.norm()


def plainly(policy: RewardPolicy, rows: Sequence[Row]) -> Tensor:
    decoder, policy.decoder = policy.decoder, None
    try:
        return policy.scores(rows)
    finally:
        policy.decoder = decoder


@pytest.mark.parametrize("full", [False, True])
def test_scores_and_gradients_are_the_plain_form_s(tiny: Tiny, full: bool) -> None:
    policy, rows = policy_of(tiny(), full=full), some_rows()
    assert policy.decoder is not None
    weights = torch.linspace(-1, 2, len(rows))
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        ours, plain = policy.scores(rows), plainly(policy, rows)
        assert torch.allclose(ours, plain, atol=1e-4)
        assert ours.std() > 0.05
    assert_close(gradients(policy, weights @ ours), gradients(policy, weights @ plain))


def test_the_score_is_the_last_token_s(tiny: Tiny) -> None:
    """Against transformers' own classifier on one row at a time, where nothing is padded."""
    policy = policy_of(tiny())
    whole = policy.merged()
    whole.config.pad_token_id = None
    for row, score in zip(some_rows(), policy.scores(some_rows()).detach(), strict=True):
        with torch.no_grad():
            expected = whole(input_ids=torch.tensor([row.ids])).logits[0, 0]
        assert float(score) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("form", ["flat", "plain"])
def test_batches_and_order_change_nothing(tiny: Tiny, form: str) -> None:
    policy, rows = policy_of(tiny()), some_rows()
    if form == "plain":
        policy.decoder = None
    with torch.no_grad():
        together = policy.scores(rows)
        backwards = policy.scores(rows[::-1]).flip(0)
        alone = torch.cat([policy.scores([row]) for row in rows])
    assert torch.allclose(together, backwards, atol=1e-5)
    assert torch.allclose(together, alone, atol=1e-5)


def test_it_begins_at_zero_and_the_given_model_stays(tiny: Tiny) -> None:
    model = tiny()
    ids = torch.tensor([some_rows()[0].ids])
    before = model.model(input_ids=ids).logits
    policy = RewardPolicy(model, RewardOptions(lora_rank=4), seed=1)
    assert policy.scores(some_rows()).abs().max() == 0
    assert policy._head.weight.dtype == torch.float32
    disturb(policy)
    policy.merged()
    policy.release()
    assert torch.equal(model.model(input_ids=ids).logits, before)
    assert not any("lora" in name for name, _ in model.model.named_parameters())


def test_the_head_is_trained_in_float32_over_a_bfloat16_base(tiny: Tiny) -> None:
    policy, rows = policy_of(tiny("bfloat16")), some_rows()
    scores = policy.scores(rows)
    assert scores.dtype == torch.float32
    slopes = dict(
        zip(
            (n for n, p in policy.model.named_parameters() if p.requires_grad),
            gradients(policy, scores.sum()),
            strict=True,
        )
    )
    heads = [name for name in slopes if ".score." in name]
    assert len(heads) == 1
    assert all(slope.dtype == torch.float32 for slope in slopes.values())
    whole = policy.merged()
    assert whole.score.weight.dtype == torch.float32
    assert whole.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.allclose(scores, plainly(policy, rows), atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"full": True}, {"gradient_checkpointing": True}])
def test_probe_keeps_our_form_where_it_is_right(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], options: dict[str, Any], dtype: str
) -> None:
    if dtype == "bfloat16" and options.get("full"):
        pytest.skip("never takes our form")
    policy = RewardPolicy(tiny(dtype), RewardOptions(**options), seed=1)  # as training begins: B and head are zero
    policy.probe(some_rows()[:2])
    assert policy.decoder is not None
    assert capsys.readouterr().err == ""


def scaled(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, layout: 1.05 * original(self, layout)


def doubled_slope(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Right values, gradients a tenth too large."""

    def changed(self: Decoder, layout: Any) -> Tensor:
        states = original(self, layout)
        return states + 0.1 * (states - states.detach())

    return changed


@pytest.mark.parametrize("wrong", [scaled, doubled_slope])
def test_probe_takes_the_plain_form_where_ours_is_wrong(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: Any
) -> None:
    policy, rows = policy_of(tiny()), some_rows()
    monkeypatch.setattr(Decoder, "shared", wrong(Decoder.shared))
    policy.probe(rows[:2])
    assert policy.decoder is None
    assert capsys.readouterr().err.startswith(f"{MESSAGE}its states differ from transformers' by ")


def test_pad_token(tiny: Tiny) -> None:
    tokenizer = tiny().tokenizer
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id) == (2, 0, 1)
    assert pad_id(tokenizer, {13}) == 2, "its own wherever that is possible"
    assert pad_id(tokenizer, {2}) == 0
    assert pad_id(tokenizer, {2, 0}) == 1
    assert pad_id(tokenizer, {2, 0, 1}) == 3
    tokenizer.pad_token = None
    assert pad_id(tokenizer, {2}) == 0


@pytest.mark.parametrize("template", ["newline after the end token", "end token last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_reads_the_same_scores_from_padded_batches(
    tiny: Tiny, tmp_path: Path, template: str, side: str
) -> None:
    model = tiny()
    if template == "end token last":
        model.tokenizer.chat_template = ENDS_WITH_END
    talks = [
        [{"role": "user", "content": "Hm" * n}, {"role": "assistant", "content": "Yes. " * m}]
        for n, m in ((1, 1), (9, 1), (2, 8), (3, 3))
    ]
    texts = [model.tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    rows = [Row(tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"]), 1) for text in texts]
    ends = {row.ids[-1] for row in rows}
    assert (ends == {model.tokenizer.pad_token_id}) == (template == "end token last")
    policy = policy_of(model)
    with torch.no_grad():
        ours = policy.scores(rows)
    saved = tmp_path / "models" / "r"
    trained = policy.merged().score.weight.clone()
    save_reward(policy, saved, "parent", "reward", ends)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved, padding_side=side)
    classifier = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32).eval()
    assert classifier.config.num_labels == 1
    assert classifier.config.pad_token_id == tokenizer.pad_token_id not in ends
    again = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert again == texts
    batch = tokenizer(again, add_special_tokens=False, padding=True, return_tensors="pt")
    assert 0 in batch["attention_mask"]
    with torch.no_grad():
        theirs = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert ours.std() > 0.01
    assert torch.equal(load_reward(saved, model).model.score.weight, trained)


def test_a_reward_model_is_no_language_model(tiny: Tiny, tmp_path: Path) -> None:
    saved = tmp_path / "models" / "r"
    save_reward(policy_of(tiny()), saved, "parent", "reward", {2})
    with pytest.raises(UserError, match="is a classifier"):
        load(saved)


def test_other_architectures(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2 in the plain form; a model without a classifier is refused."""
    from transformers import AutoTokenizer, BloomConfig, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load(tmp_path, dtype="float32", device="cpu")
    policy = policy_of(model)
    assert policy.decoder is None
    assert capsys.readouterr().err == f"{MESSAGE}model type gpt2.\n"
    rows = some_rows()
    with torch.no_grad():
        together, alone = policy.scores(rows), torch.cat([policy.scores([row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    policy.release()
    model.model.config = type("Unknown", (BloomConfig,), {"model_type": "unknown"})()
    with pytest.raises(UserError, match="no sequence classifier with one linear output for models of type unknown"):
        classifier_of(model)


def test_a_quantised_base_is_refused(tiny: Tiny) -> None:
    model = tiny()
    model.model.is_quantized = True
    with pytest.raises(UserError, match="Remove quantize"):
        RewardPolicy(model, RewardOptions(), seed=1)
