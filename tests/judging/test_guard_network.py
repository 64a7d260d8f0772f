"""The guard's network on a tiny model: what is read, how updates are merged, what a file must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeserve.core.errors import UserError
from safeserve.judging import guard_network as network
from safeserve.judging.guard_network import (
    PROJECTIONS,
    GuardNetwork,
    GuardSpec,
    Reader,
    Reading,
    batches,
    body,
    merge_updates,
    padded,
    pooled,
    read_guard,
    tensor_names,
    windows,
    write_guard,
)
from safeserve.models import embedded

SPEC = GuardSpec(
    name="tiny", licence="MIT", sources=("a",), depth=2, adapted_from=1, rank=2, alpha=4.0, window_tokens=16
)


def tensors(folder: Path, seed: int = 0, scale: float = 0.2) -> dict[str, torch.Tensor]:
    """Random updates and head that fit the tiny model."""
    model = body(folder, slice(0, 2), torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hidden = model.config.hidden_size
    made = {"head.weight": torch.randn(2 * hidden, generator=generator), "head.bias": torch.tensor([0.3])}
    layer = model.layers[1]
    for name in PROJECTIONS:
        weight = getattr(layer.self_attn if name in PROJECTIONS[:4] else layer.mlp, name).weight
        made[f"layers.1.{name}.a"] = scale * torch.randn(2, weight.shape[1], generator=generator)
        made[f"layers.1.{name}.b"] = scale * torch.randn(weight.shape[0], 2, generator=generator)
    return made


@pytest.fixture
def tiny_guard(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guard file on the tiny model, which stands in for the embedded one."""
    monkeypatch.setattr(embedded, "fetch", lambda quiet=False: tiny_folder)
    file = tmp_path / "tiny.safetensors"
    write_guard(file, SPEC, tensors(tiny_folder))
    return file


@given(st.lists(st.integers(), max_size=200), st.integers(2, 40), st.integers(1, 5))
def test_windows_cover_short_answers_and_the_ends_of_long_ones(tokens: list[int], size: int, limit: int) -> None:
    cut = windows(tokens, size, limit)
    assert 1 <= len(cut) <= max(limit, 1)
    assert all(len(part) <= size for part in cut)
    assert list(cut[0]) == tokens[:size] or limit == 1
    assert list(cut[-1]) == (tokens[-size:] if len(tokens) > size else tokens)
    if len(tokens) <= size * limit:
        assert set(tokens) == {token for part in cut for token in part}


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 300))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    made = list(batches(lengths, budget))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= budget for batch in made)


def test_text_never_becomes_a_control_token(tiny_guard: Path) -> None:
    guard = GuardNetwork(tiny_guard, torch.float32)
    tokenizer = guard.reader._tokenizer
    special = set(tokenizer.all_special_ids)
    reading = guard.reader.readings("a <|im_end|> b", "c <|im_end|> d")[0]
    inside = reading.ids[reading.start : reading.end]
    assert not special & set(inside)
    assert tokenizer.decode(inside) == "c <|im_end|> d"


def test_long_prompts_keep_their_end(tiny_guard: Path) -> None:
    guard = GuardNetwork(tiny_guard, torch.float32)
    one = guard.reader.readings("x" * 500 + "the question", "yes")[0]
    two = guard.reader.readings("y" * 500 + "x" * 500 + "the question", "yes")[0]
    assert one == two


def test_pooling_is_the_mean_over_the_answer_and_the_last_state() -> None:
    states = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
    rows = [Reading((1, 2, 3, 4), 1, 3), Reading((1, 2, 3), 0, 1)]
    out = pooled(states, rows)
    torch.testing.assert_close(out[0], torch.cat([states[0, 1:3].mean(0), states[0, 3]]))
    torch.testing.assert_close(out[1], torch.cat([states[1, 0], states[1, 2]]))


def test_merged_updates_equal_a_b_beside_the_layer(tiny_folder: Path) -> None:
    made = tensors(tiny_folder)
    plain, merged = (body(tiny_folder, slice(0, 2), torch.float32) for _ in range(2))
    merge_updates(merged, made, SPEC)
    x = torch.randn(3, plain.config.hidden_size)
    before, after = plain.layers[1].self_attn.q_proj, merged.layers[1].self_attn.q_proj
    a, b = made["layers.1.q_proj.a"], made["layers.1.q_proj.b"]
    torch.testing.assert_close(after(x), before(x) + (4.0 / 2) * x @ a.T @ b.T)
    torch.testing.assert_close(merged.layers[0].mlp.up_proj.weight, plain.layers[0].mlp.up_proj.weight)


def test_a_logit_does_not_depend_on_its_batch(tiny_guard: Path) -> None:
    guard = GuardNetwork(tiny_guard, torch.float32)
    items = [("how", "sun and moon"), ("why do you ask me that", "tree"), ("x", "river " * 9)]
    together = guard.logits(items)
    alone = np.array([guard.logits([item], token_budget=1)[0] for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(guard.logits(items[::-1]), together[::-1], atol=1e-5)


def test_a_long_answer_is_as_unsafe_as_its_worst_window(tiny_guard: Path) -> None:
    guard = GuardNetwork(tiny_guard, torch.float32)
    answer = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOP"
    rows = guard.reader.readings("p", answer)
    assert len(rows) == 4
    values = []
    for row in rows:
        ids, attention = padded([row])
        states = guard.model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        values.append(float((pooled(states, [row]) @ guard.weight + guard.bias)[0].detach()))
    assert guard.logits([("p", answer)])[0] == pytest.approx(max(values), abs=1e-5)


def test_calibration_is_a_line_in_the_logit(tiny_folder: Path, tiny_guard: Path) -> None:
    write_guard(tiny_guard, SPEC.model_copy(update={"slope": 2.0, "intercept": -1.0}), tensors(tiny_folder))
    guard = GuardNetwork(tiny_guard, torch.float32)
    np.testing.assert_allclose(guard.probabilities(np.array([0.5, 3.0])), [0.5, 1 / (1 + np.exp(-5.0))])


def test_a_file_reads_back(tiny_folder: Path, tiny_guard: Path) -> None:
    spec, found = read_guard(tiny_guard)
    assert spec == SPEC
    assert set(found) == set(tensor_names(SPEC)) == set(tensors(tiny_folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_sha256": "0" * 64}, "made for other weights"),
        ({"format": "safeserve-guard-9"}, "format safeserve-guard-9"),
        ({"depth": 3}, "lacks 14 tensors"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "other.safetensors"
    write_guard(file, SPEC.model_copy(update=change), tensors(tiny_folder))
    with pytest.raises(UserError, match=message):
        read_guard(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="no such guard file"):
        read_guard(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_guard(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="not a guard"):
        read_guard(tmp_path / "plain.safetensors")


def test_the_reader_is_the_same_in_training_and_use(tiny_guard: Path, tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    reader = Reader(AutoTokenizer.from_pretrained(tiny_folder), SPEC)
    assert reader.readings("p", "answer") == GuardNetwork(tiny_guard, torch.float32).reader.readings("p", "answer")
    assert SPEC.format == network.FORMAT
