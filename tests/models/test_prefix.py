"""Rows that share a prompt: the layout by hand, and attention over it against one answer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safeserve.models import prefix
from safeserve.models.kernels import rotate
from safeserve.models.prefix import Layout, SharedRow, Span, attend, lay_out

EXAMPLE = [SharedRow((10, 11, 12), ((20, 21, 22), (30,), (40, 41))), SharedRow((50,), ((60, 61),))]
SHAPES = {
    "one answer": [(3, (4,))],
    "one-token answer": [(3, (1,))],
    "one-token answers only": [(3, (1, 1)), (2, (1,))],
    "ragged": [(3, (4, 2)), (1, (1, 6, 1)), (7, (2,))],
    "equally long": [(3, (4, 2)), (2, (3, 4))],
    "many answers": [(2, (3, 1, 4, 1, 5))],
}

Shape = Sequence[tuple[int, Sequence[int]]]
"""(tokens of the prompt, tokens of each answer) of every row."""


def rows_of(shape: Shape) -> list[SharedRow]:
    return [SharedRow(tuple(range(p)), tuple(tuple(range(100, 100 + n)) for n in lengths)) for p, lengths in shape]


def test_layout_by_hand() -> None:
    layout = lay_out(EXAMPLE, "cpu")
    assert [row.length for row in EXAMPLE] == [6, 2]
    # the last token of an answer is only predicted: 22, 30, 41 and 61 are no input
    assert layout.ids.tolist() == [10, 11, 12, 20, 21, 40, 50, 60]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    # the first token of each answer is predicted by the end of the prompt
    assert layout.predictors.tolist() == [2, 3, 4, 2, 2, 5, 6, 7]
    assert layout.targets.tolist() == [20, 21, 22, 30, 40, 41, 60, 61]
    assert layout.owners.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert (layout.answers, layout.rows, layout.width) == (4, 2, 6)
    assert layout.segments.tolist() == [[0, 0, 0, 1, 1, 3], [0, 1, -1, -1, -1, -1]]
    assert layout.slots is not None
    assert layout.slots.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    seen = (~layout.blocked[0]).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],  # the third answer sees prompt and itself, not the first answer
    ]
    assert (~layout.blocked[1, :2]).int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert (~layout.blocked[1]).any(1).all(), "a query that sees nothing has no softmax"


def test_spans_are_prompts_with_their_first_answer_then_each_other_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [Span(0, 5, 0, 0), Span(5, 1, 0, 3), Span(6, 2, 6, 0)]  # the one-token answer is no input
    assert lay_out(EXAMPLE, "cpu").spans == tuple(spans)
    monkeypatch.setattr(prefix, "SPAN", 2)
    parts = [Span(0, 1, 0, 0), Span(1, 2, 0, 1), Span(3, 2, 0, 3)]
    assert lay_out(EXAMPLE, "cpu").spans == (*parts, *spans[1:])


def test_slots_skip_the_padding_of_rows_before() -> None:
    layout = lay_out(EXAMPLE[::-1], "cpu")
    assert layout.slots is not None
    assert layout.slots.tolist() == [0, 1, 6, 7, 8, 9, 10, 11]
    x = torch.arange(1.0, 9.0).unsqueeze(1)
    assert layout.pad(x).squeeze(2).tolist() == [[1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]]
    assert torch.equal(layout.unpad(layout.pad(x)), x)


def test_equally_long_rows_need_no_slots() -> None:
    layout = lay_out(rows_of(SHAPES["equally long"]), "cpu")
    assert layout.slots is None
    x = torch.arange(14.0).unsqueeze(1)
    assert layout.pad(x).shape == (2, 7, 1)
    assert torch.equal(layout.unpad(layout.pad(x)), x)


def test_padding_and_back_are_differentiable() -> None:
    layout = lay_out(EXAMPLE, "cpu")
    x = torch.randn(8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layout.unpad(layout.pad(x) * 2.0), (x,))


def attended_alone(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, shape: Shape) -> Tensor:
    """Each answer with its prompt as a row of its own: causal attention, key heads repeated, a loop over all.

    Prompt tokens come from the row of the first answer (they see nothing after themselves in any).
    """
    group = q.shape[1] // k.shape[1]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(group, 1)
    v = v.repeat_interleave(group, 1)
    out, start = [], 0
    for prompt, lengths in shape:
        at = start + prompt
        for number, length in enumerate(lengths):
            own = [*range(start, start + prompt), *range(at, at + length - 1)]
            scores = torch.einsum("qhd,khd->hqk", q[own], k[own]) * q.shape[-1] ** -0.5
            later = torch.ones(len(own), len(own), dtype=torch.bool).triu(1)
            mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, float("-inf")).softmax(-1), v[own])
            out.append(mixed if number == 0 else mixed[prompt:])
            at += length - 1
        start = at
    return torch.cat(out).flatten(1)


def inputs(layout: Layout, query_heads: int, key_heads: int, seed: int = 0) -> list[Tensor]:
    """q, k, v, cos, sin in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (query_heads, key_heads, key_heads)
    q, k, v = (torch.randn(len(layout.ids), n, 4, generator=generator, dtype=torch.float64) for n in sizes)
    angle = layout.positions.double().view(-1, 1, 1) * torch.tensor([1.0, 0.3], dtype=torch.float64)
    return [q, k, v, angle.cos(), angle.sin()]


def assert_attends_alike(shape: Shape, query_heads: int, key_heads: int) -> None:
    layout = lay_out(rows_of(shape), "cpu")
    q, k, v, cos, sin = inputs(layout, query_heads, key_heads)
    for x in (q, k, v):
        x.requires_grad_()
    ours = attend(q, k, v, cos, sin, layout)
    theirs = attended_alone(q, k, v, cos, sin, shape)
    assert ours.shape == (len(layout.ids), query_heads * 4)
    assert torch.allclose(ours, theirs, atol=1e-12)
    slope = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = [torch.autograd.grad((out * slope).sum(), (q, k, v)) for out in (ours, theirs)]
    for name, a, b in zip("qkv", *gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-12), name


@pytest.fixture(params=[1, 256], ids=["computed again", "kept"])
def kept_width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Attention weights computed again in the backward pass, or kept for it."""
    monkeypatch.setattr(prefix, "KEPT_WIDTH", request.param)
    return request.param


@pytest.mark.usefixtures("kept_width")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_attention_is_that_of_each_answer_alone(name: str, heads: tuple[int, int]) -> None:
    assert_attends_alike(SHAPES[name], *heads)


answers = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 6), answers), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (4, 2)]),
    st.sampled_from([1, 256]),
    st.sampled_from([1, 3, 192]),
)
def test_attention_for_rows_of_any_shape(
    shape: list[tuple[int, list[int]]], heads: tuple[int, int], kept: int, span: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "KEPT_WIDTH", kept)
        patch.setattr(prefix, "SPAN", span)
        assert_attends_alike(shape, *heads)


@given(st.lists(st.tuples(st.integers(1, 6), answers), min_size=1, max_size=5))
def test_layout_of_rows_of_any_shape(shape: list[tuple[int, list[int]]]) -> None:
    rows = [
        SharedRow(tuple(range(1000 * n, 1000 * n + p)), tuple(tuple(range(100, 100 + m)) for m in lengths))
        for n, (p, lengths) in enumerate(shape)
    ]
    layout = lay_out(rows, "cpu")
    whole = [(row.prompt, answer) for row in rows for answer in row.answers]
    assert layout.answers == len(whole)
    assert len(layout.ids) == sum(row.length for row in rows)
    assert layout.targets.tolist() == [token for _, answer in whole for token in answer]
    for number, (prompt, answer) in enumerate(whole):
        at = layout.predictors[layout.owners == number]
        # what predicts an answer's tokens: the prompt's end, then the answer's tokens, one position on each time
        assert layout.ids[at].tolist() == [prompt[-1], *answer[:-1]]
        assert layout.positions[at].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
    assert torch.equal(layout.unpad(layout.pad(layout.ids)), layout.ids)
    assert int((layout.segments == -1).sum()) == layout.rows * layout.width - len(layout.ids)


@pytest.mark.usefixtures("kept_width")
def test_what_is_kept_for_the_backward_pass(kept_width: int) -> None:
    """Weights [key heads, own · group, keys] of a span are saved only up to KEPT_WIDTH keys."""
    layout = lay_out(rows_of([(5, (6, 6))]), "cpu")
    q, k, v, cos, sin = inputs(layout, 4, 2)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        attend(q.requires_grad_(), k, v, cos, sin, layout)
    assert ((2, 2 * 10, 10) in saved) == ((2, 2 * 5, 10) in saved) == (kept_width > 10)
