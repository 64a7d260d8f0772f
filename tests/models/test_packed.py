"""Packed linear layers against plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeserve.models import packed
from safeserve.models.decoder import Decoder
from safeserve.models.packed import Packed, can_pack
from safeserve.training.batches import Row
from safeserve.training.options import TrainOptions
from safeserve.training.policy import Policy

Tiny = Callable[..., Any]


def layers(bias: bool, *outputs: int) -> list[torch.nn.Linear]:
    torch.manual_seed(0)
    return [torch.nn.Linear(48, n, bias=bias) for n in outputs]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, packed.FEW, packed.FEW + 1, 300])
def test_products_are_those_of_the_layers(bias: bool, rows: int) -> None:
    parts = layers(bias, 32, 16, 7)
    assert can_pack(parts)
    x = torch.randn(rows, 48)
    with torch.no_grad():
        found = torch.split(Packed(parts)(x), [32, 16, 7], dim=1)
        for ours, layer in zip(found, parts, strict=True):
            assert torch.allclose(ours, layer(x), atol=1e-5)


def test_what_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(torch.nn.Linear):
        pass

    assert not can_pack([Changed(4, 4)])
    assert not can_pack([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)])
    assert not can_pack([torch.nn.Linear(4, 4, dtype=torch.float64)])

    class Wrong(Packed):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) + 1

    monkeypatch.setattr(packed, "Packed", Wrong)
    assert not can_pack([torch.nn.Linear(4, 4)]), "a product that is not the layer's"


def test_packed_states_are_the_plain_ones(tiny: Tiny) -> None:
    from safeserve.models.reading import Batch, plan

    model = tiny()
    texts = [[5, 6, 7, 8, 9], [5, 6, 7], [30, 31]]
    plain, fast = Decoder(model.model), Decoder(model.model)
    assert fast.pack()
    assert fast.pack(), "a second call changes nothing"
    batch = Batch(texts, plan(texts, [0, 0, 1], 100)[0], "cpu")
    with torch.no_grad():
        assert torch.allclose(batch.states(plain), batch.states(fast), atol=1e-5)
    rows = [Row((5, 6, 7, 8), 2)]
    policy = Policy(model, TrainOptions(lora_rank=2), seed=1)
    assert policy.decoder is not None
    assert not policy.decoder.pack(), "an adapter that is trained is not packed"
    assert policy.response_logps(rows).values.requires_grad


def test_gradients_never_go_through_packed_weights(tiny: Tiny) -> None:
    """Packed weights have no backward pass: with gradients on, the plain layers run."""
    model = tiny().model
    model.requires_grad_(True)
    decoder = Decoder(model)
    assert decoder.pack()
    from safeserve.models.prefix import SharedRow, lay_out

    decoder.shared(lay_out([SharedRow((5, 6), ((7, 8),))], "cpu")).sum().backward()
    assert model.get_decoder().layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
