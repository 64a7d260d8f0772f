"""Choosing the next token: by hand, by brute force, by simulation."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safeserve.generation.decoding import nucleus_sample, penalise, token_logprobs  # noqa: E402


def sample(probabilities: list[float], top_p: float, uniform: float, temperature: float = 1.0) -> int:
    logits = torch.tensor([[math.log(p) for p in probabilities]], dtype=torch.float32)
    return int(nucleus_sample(logits, temperature, top_p, torch.tensor([uniform])))


def by_brute_force(probabilities: list[float], top_p: float, uniform: float) -> tuple[int, float]:
    """The token that inverse transform gives, in plain numbers, and how near the draw or the cut is to a border."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    nucleus: list[int] = []
    before, distance = 0.0, 1.0
    for token in order:
        if before >= top_p:
            break
        nucleus.append(token)
        before += probabilities[token]
        distance = min(distance, abs(before - top_p))
    mass = sum(probabilities[token] for token in nucleus)
    reached, chosen = 0.0, None
    for token in nucleus:
        reached += probabilities[token]
        distance = min(distance, abs(reached - uniform * mass))
        if chosen is None and uniform * mass < reached:
            chosen = token
    assert chosen is not None
    return chosen, distance


@pytest.mark.parametrize(
    ("top_p", "uniform", "token"),
    [
        (0.999, 0.0, 2),  # order: token 2 (.5), token 0 (.3), token 3 (.15), token 1 (.05)
        (0.999, 0.49, 2),
        (0.999, 0.51, 0),
        (0.999, 0.79, 0),
        (0.999, 0.81, 3),
        (0.999, 0.96, 1),
        (0.7, 0.61, 2),  # nucleus {2, 0}, mass .8: token 2 up to .625
        (0.7, 0.64, 0),
        (0.7, 0.999, 0),
        (0.5, 0.999, 2),  # the first token alone already has the mass
        (0.01, 0.999, 2),
        (1.0, 0.0, 0),  # all tokens, in their own order
        (1.0, 0.29, 0),
        (1.0, 0.31, 1),
        (1.0, 0.36, 2),
        (1.0, 0.86, 3),
        (1.0, 1.0 - 2**-24, 3),
    ],
)
def test_nucleus_by_hand(top_p: float, uniform: float, token: int) -> None:
    assert sample([0.3, 0.05, 0.5, 0.15], top_p, uniform) == token


def test_temperature_sharpens_and_flattens() -> None:
    """At temperature 1/2 probabilities are squared: .25 and .75 become .1 and .9."""
    assert sample([0.25, 0.75], 1.0, 0.24) == 0
    assert sample([0.25, 0.75], 1.0, 0.09, temperature=0.5) == 0
    assert sample([0.25, 0.75], 1.0, 0.11, temperature=0.5) == 1


@settings(max_examples=300, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12, unique=True),
    top_p=st.floats(0.01, 0.999),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)
def test_nucleus_against_brute_force(weights: list[float], top_p: float, uniform: float) -> None:
    probabilities = [weight / sum(weights) for weight in weights]
    assume(all(abs(a - b) > 1e-4 for i, a in enumerate(probabilities) for b in probabilities[:i]))
    expected, distance = by_brute_force(probabilities, top_p, uniform)
    assume(distance > 1e-5)  # float32 may decide a draw on the very border either way
    assert sample(probabilities, top_p, uniform) == expected


def test_nucleus_frequencies() -> None:
    """20,000 draws: each share within four standard errors of the renormalised probability, none outside."""
    draws = 20_000
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(draws, 1)
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(nucleus_sample(logits, 1.0, 0.9, uniform), minlength=4).tolist()
    assert counts[3] == 0
    for count, probability in zip(counts, (0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95), strict=False):
        assert abs(count / draws - probability) < 4 * math.sqrt(probability * (1 - probability) / draws)


def test_rows_do_not_see_each_other() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(2))
    together = nucleus_sample(logits, 0.8, 0.9, uniform).tolist()
    alone = [int(nucleus_sample(logits[i : i + 1], 0.8, 0.9, uniform[i : i + 1])) for i in range(6)]
    assert together == alone


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_unit_interval_are_tokens_too(uniform: float) -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(3))
    tokens = nucleus_sample(logits, 1.0, 1.0, torch.full((4,), uniform))
    assert bool(((tokens >= 0) & (tokens < 1000)).all())


def test_equal_logits_and_impossible_tokens() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]])
    drawn = {int(nucleus_sample(logits, 1.0, 1.0, torch.tensor([u]))) for u in (0.0, 0.3, 0.49, 0.51, 0.7, 0.99999)}
    assert drawn == {0, 2}


def test_frequency_penalty_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    earlier = torch.tensor([[2, 1, 2, 2], [-1, -1, -1, -1]])
    assert penalise(logits, earlier, 0.5).tolist() == [[1.0, 1.5, 1.5], [1.0, 2.0, 3.0]]
    assert penalise(logits, earlier, -1.0).tolist() == [[1.0, 3.0, 6.0], [1.0, 2.0, 3.0]]
    assert logits.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]


def test_log_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    logprobs = token_logprobs(logits, torch.tensor([1, 0])).tolist()
    assert logprobs == pytest.approx([math.log(0.75), math.log(0.5)])


def test_large_logits_do_not_overflow() -> None:
    assert float(token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))) == pytest.approx(-1e4)
