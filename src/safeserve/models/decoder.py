"""A Llama-family model's layers, run on flat tokens with this project's kernels instead of the library's modules.

The weights stay where they are: in the transformers model, with the adapter that peft put into it. What a
:class:`Decoder` computes is what the model computes, without padding and with less kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from safeserve.models.kernels import LowRank, gated_mlp, project, rms_norm
from safeserve.models.packed import FEW, PackedLayer, can_pack, fill
from safeserve.models.prefix import Layout, attend

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

Attention = Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v, cos, sin) to [tokens, query heads · head_dim]; q, k and v not yet rotated."""


class Unsupported(Exception):
    """Why a model's layers cannot be run this way; they are run by transformers then."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the attention."""

    layers: int
    query_heads: int
    key_heads: int
    head_dim: int


class Decoder:
    """The body of a causal language model: embedding, layers, final norm.

    Args:
        causal: a transformers model, possibly with peft's layers inside.

    Raises:
        Unsupported: another architecture, or something in it that this code does not compute.
    """

    def __init__(self, causal: Any) -> None:
        config = causal.config
        if config.model_type not in FAMILIES:
            raise Unsupported(f"model type {config.model_type}")
        if config.hidden_act != "silu":
            raise Unsupported(f"activation {config.hidden_act}")
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
            raise Unsupported("sliding window attention")
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise Unsupported("sliding window attention")
        if getattr(config, "attention_dropout", 0):
            raise Unsupported("attention dropout")
        self._body = causal.get_decoder()
        for layer in self._body.layers:
            for module in (*_attention_projections(layer), layer.self_attn.o_proj, *_mlp_projections(layer)):
                _check(module)
        first = self._body.layers[0].self_attn
        dim = first.head_dim
        heads = config.num_attention_heads, config.num_key_value_heads
        self.shape = Shape(len(self._body.layers), heads[0], heads[1], dim)
        self.recompute = False
        """True keeps only each layer's input for the backward pass."""
        self._packed: list[PackedLayer] = []

    def pack(self) -> bool:
        """Copy the weights into the layout in which few tokens are multiplied fastest, where that can be done.

        For a model that will not change, and only used where no gradient is asked for. Doubles the weights' memory.
        """
        layers = list(self._body.layers)
        if not self._packed and all(
            can_pack(part)
            for layer in layers[:1]
            for part in (_attention_projections(layer), [layer.self_attn.o_proj], _mlp_projections(layer))
        ):
            self._packed = [
                PackedLayer(_attention_projections(layer), layer.self_attn.o_proj, _mlp_projections(layer))
                for layer in layers
            ]
        return bool(self._packed)

    @property
    def device(self) -> torch.device:
        """Where the embedding is."""
        found: torch.device = self._body.embed_tokens.weight.device
        return found

    def filled(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``ids`` and ``positions`` with tokens added that belong to no row, by 1 % on average and only on a CPU in
        bfloat16: oneDNN keeps some 300 KB of code for each product with a number of rows that it has not met before,
        which was a gigabyte in a training of 2,000 rows. What is computed for the others does not change.

        The attention must give something finite for them, and nobody may look at them.
        """
        count = len(ids)
        half = self._body.embed_tokens.weight.dtype == torch.bfloat16 and ids.device.type == "cpu"
        more = fill(count, 32) if half and count > FEW else 0
        return (pad(ids, (0, more)), pad(positions, (0, more))) if more else (ids, positions)

    def states(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """States after the final norm, [tokens, hidden].

        Args:
            ids, positions: [tokens].
        """
        x = self._body.embed_tokens(ids)
        cos, sin = self._rotation(x, positions)
        for number, layer in enumerate(self._body.layers):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self._layer, number, layer, x, cos, sin, attention, use_reentrant=False)
            else:
                x = self._layer(number, layer, x, cos, sin, attention)
        return rms_norm(x, self._body.norm.weight, self._body.norm.variance_epsilon)

    def shared(self, layout: Layout) -> Tensor:
        """States of rows that share prefixes, [at least so many tokens, hidden]; see :meth:`filled`."""
        ids, positions = self.filled(layout.ids, layout.positions)
        return self.states(ids, positions, lambda _, q, k, v, cos, sin: attend(q, k, v, cos, sin, layout))

    def _layer(self, number: int, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        shape, block = self.shape, layer.self_attn
        packed = self._packed[number] if self._packed and not torch.is_grad_enabled() else None
        normed = rms_norm(x, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        if packed:
            flat = packed.qkv(normed)
        else:
            flat = project(normed, tuple(self._weights(module) for module in _attention_projections(layer)))
        q = flat[0].view(len(x), shape.query_heads, shape.head_dim)
        k, v = (part.view(len(x), shape.key_heads, shape.head_dim) for part in flat[1:])
        if hasattr(block, "q_norm"):  # Qwen3
            q = rms_norm(q, block.q_norm.weight, block.q_norm.variance_epsilon)
            k = rms_norm(k, block.k_norm.weight, block.k_norm.variance_epsilon)
        mixed = attention(number, q, k, v, cos, sin)
        x = x + (packed.out(mixed) if packed else project(mixed, (self._weights(block.o_proj),))[0])
        norm = layer.post_attention_layernorm
        normed = rms_norm(x, norm.weight, norm.variance_epsilon)
        if packed:
            return x + packed.mlp(normed)
        gate, up, down = (self._weights(module) for module in _mlp_projections(layer))
        return x + gated_mlp(normed, gate, up, down)

    def _rotation(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each [tokens, 1, head_dim / 2]; transformers repeats them over the two halves of a head."""
        cos, sin = self._body.rotary_emb(x, positions.unsqueeze(0))
        half = self.shape.head_dim // 2
        return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    def _weights(self, module: Any) -> LowRank:
        if not hasattr(module, "lora_A"):
            return LowRank(module.weight, module.bias)
        base = module.base_layer
        if module.disable_adapters or module.merged:
            return LowRank(base.weight, base.bias)
        (name,) = module.active_adapters
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        return LowRank(base.weight, base.bias, a, b, float(module.scaling[name]))


def _attention_projections(layer: Any) -> Sequence[Any]:
    block = layer.self_attn
    return block.q_proj, block.k_proj, block.v_proj


def _mlp_projections(layer: Any) -> Sequence[Any]:
    return layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj


def _check(module: Any) -> None:
    """Raise Unsupported unless ``module`` is a plain linear layer, or one with a plain low-rank update."""
    base = getattr(module, "base_layer", module)
    if type(base) is not torch.nn.Linear:
        raise Unsupported(f"layers of class {type(base).__name__}")
    if base is module:
        return
    if not hasattr(module, "lora_A") or len(module.active_adapters) != 1:
        raise Unsupported("an adapter that is not one plain LoRA")
    name = module.active_adapters[0]
    dropout = getattr(module.lora_dropout[name], "p", 0.0)
    if dropout or getattr(module, "lora_variant", {}).get(name) is not None or module.lora_A[name].bias is not None:
        raise Unsupported("LoRA with dropout, DoRA or another variant")
    if module.lora_B[name].bias is not None:
        raise Unsupported("LoRA with a bias")
