"""Time and memory of work that has not been done: operations by a model's sizes, over what this machine reaches.

A part's seconds are its floating-point operations over (the measured rate of large matrix products × the share of it
that this kind of work reaches). A share is given for one kind of number; in another the products go at that one's rate,
and what comes beside them (norms, attention, choosing tokens, the optimiser) takes the time that it takes in the first:
bfloat16 units multiply faster, and do nothing else faster. Memory is what must be held at once, summed. Both are told
within about a factor 1.5.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json
from safeserve.pipeline.probe import Rates
from safeserve.training.options import TrainOptions, default_token_budget

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shares:
    """Share of the matrix-product rate that each kind of work reaches, and what a decoding step costs beside it.

    ``python tools/forecast_check.py RUN`` prints what a finished run implies for these.

    Attributes:
        dtype: the kind of number that the shares are given for.
    """

    dtype: str
    train: float
    reference: float
    prefill: float
    decode: float
    guard: float
    step_seconds: float
    """A decoding step's cost that does not depend on its rows: calls, choosing tokens."""


SHARES = {
    "cpu": Shares("float32", train=0.65, reference=0.8, prefill=0.7, decode=0.45, guard=0.7, step_seconds=0.002),
    "cuda": Shares("bfloat16", train=0.35, reference=0.4, prefill=0.4, decode=0.3, guard=0.3, step_seconds=0.01),
}
"""By device. On a CPU from runs of ``quickstart`` on two cores; on a GPU assumed, for none has been measured."""

SLOTS = {"cpu": 64, "cuda": 256}
"""Answers that are decoded at once."""
LOAD_SECONDS = 1.0
"""Putting any model into memory, or saving one, beside the bytes it has."""
DISK_BYTES_PER_SECOND = 1e9
"""Rate of reading weights that are in the file cache, and of converting them."""
START_SECONDS = 8.0
"""Importing torch and transformers, reading data, and at the end comparing and writing the page."""
RUNTIME_BYTES = 0.6e9
"""Resident memory of Python with torch and transformers before any model is loaded (on a GPU it is not counted)."""
CODE_BYTES = 0.35e9
"""What oneDNN compiles and keeps in a training in bfloat16 on a CPU; float32 is multiplied by another library."""
KEPT_BYTES = 0.6e9
"""What a process on a CPU still holds of the stages before: compiled code, pieces of freed memory (0.5 to 0.7e9 in runs
of ``quickstart`` and ``paper`` at tiny size, in float32 and in bfloat16)."""
CACHE_BYTES = 1 << 30
"""Most that the engine takes for keys and values on a CPU."""
PREFILL_TOKENS = 2048
"""Most prompt tokens that the engine reads at once."""
KEPT_HIDDEN, KEPT_INNER = 7, 4
"""Values that a layer keeps a token for the backward pass, in widths of the model and of its MLP: measured by
summing the tensors saved by autograd, SmolLM2-135M with adapters, 1.21 MB a token in float32."""
KEPT_KEYS = 256
"""Longest row whose attention weights are kept too."""
HEAD_BLOCK = {"cpu": 64 << 20, "cuda": 768 << 20}
"""The head's block of logits in training (on a GPU in bfloat16, and once more in float32)."""
GUARD_BATCH = 4096
"""Tokens that the guard reads at once."""


@dataclass(frozen=True)
class ModelSize:
    """What the cost of a model depends on.

    Attributes:
        body: weights in matrices that every token passes, without embedding and head.
        sides: summed rows + columns of those matrices; an adapter of rank r has r times as many weights.
        head: weights of the output head (the embedding where they are one).
        weights: all weights.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    query_width: int
    key_width: int
    vocabulary: int
    body: int
    sides: int
    head: int
    weights: int

    @classmethod
    def of(cls, folder: Path) -> ModelSize:
        """Sizes of a model in a folder, from its config and the headers of its safetensors; no weight is read.

        Raises:
            UserError: not a model whose sizes can be told (no safetensors, an unusual config).
        """
        config = read_json(folder / "config.json")
        config = config.get("text_config", config)
        shapes = [shape for path in sorted(folder.glob("*.safetensors")) for shape in tensor_shapes(path).values()]
        try:
            layers = _first(config, "num_hidden_layers", "n_layer")
            hidden = _first(config, "hidden_size", "n_embd")
            heads = _first(config, "num_attention_heads", "n_head")
            vocabulary = int(config["vocab_size"])
        except KeyError as error:
            raise UserError(f"{folder / 'config.json'}: has no {error}, so the model's size is not known.") from None
        if not shapes:
            raise UserError(f"{folder}: no *.safetensors, so the model's size is not known.")
        wide = head_dim = int(config.get("head_dim") or hidden // heads)
        tables = [shape for shape in shapes if len(shape) == 2 and shape[0] >= vocabulary and shape[1] == hidden]
        matrices = [shape for shape in shapes if len(shape) == 2 and shape not in tables]
        return cls(
            layers=layers,
            hidden=hidden,
            inner=int(config.get("intermediate_size") or 4 * hidden),
            heads=heads,
            query_width=heads * head_dim,
            key_width=int(config.get("num_key_value_heads") or heads) * wide,
            vocabulary=vocabulary,
            body=sum(rows * columns for rows, columns in matrices),
            sides=sum(rows + columns for rows, columns in matrices),
            head=vocabulary * hidden,
            weights=sum(_product(shape) for shape in shapes),
        )

    def forward(self, tokens: float, context: float) -> float:
        """FLOP of the body for ``tokens`` that each attend to ``context`` others on average."""
        return tokens * (2 * self.body + 4 * self.layers * self.query_width * context)

    def through_head(self, tokens: float) -> float:
        """FLOP of the output head."""
        return 2.0 * self.head * tokens

    def adapter(self, options: TrainOptions) -> float:
        """Weights of the adapter that ``options`` ask for; a list of layers is taken as all of them."""
        return 0.0 if options.full else float(options.lora_rank * self.sides)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file, from its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except (struct.error, ValueError, OSError):
        raise UserError(f"{path}: not a readable safetensors file.") from None
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


@dataclass(frozen=True)
class Machine:
    """Where the work will run, and what that reaches.

    Attributes:
        base_gemm: rate of products in the kind of number that the shares are given for, in FLOP/s; None where that is
            ``dtype``.
    """

    device: str
    dtype: str
    rates: Rates
    base_gemm: float | None = None

    @property
    def kind(self) -> str:
        """cuda or cpu, as the tables here have it."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def shares(self) -> Shares:
        """What each kind of work reaches there."""
        return SHARES[self.kind]

    def seconds(self, flop: float, kind: str) -> float:
        """Of ``flop`` operations of one kind of work, an attribute of :class:`Shares`: the products, and the rest."""
        share, base = float(getattr(self.shares, kind)), self.base_gemm or self.rates.gemm
        return flop / self.rates.gemm + flop * (1 / share - 1) / base

    def share(self, kind: str) -> float:
        """Share of the rate in ``dtype`` that a kind of work reaches."""
        return 1 / (self.rates.gemm * self.seconds(1, kind))

    def implied_share(self, kind: str, ratio: float) -> float:
        """What :class:`Shares` should hold for a kind of work that took ``ratio`` times its predicted seconds."""
        base = self.base_gemm or self.rates.gemm
        return 1 / (1 + base * (ratio * self.seconds(1, kind) - 1 / self.rates.gemm))

    def runtime_bytes(self) -> float:
        """What is taken before any model."""
        return RUNTIME_BYTES if self.device == "cpu" else 0.0

    def kept_bytes(self) -> float:
        """What is still taken after a stage."""
        return KEPT_BYTES if self.device == "cpu" else 0.0

    def load_seconds(self, size: ModelSize) -> float:
        """Putting a model into memory, or saving it."""
        return LOAD_SECONDS + 4 * size.weights / DISK_BYTES_PER_SECOND


@dataclass(frozen=True)
class TrainingWork:
    """Tokens of one pass over a stage's rows.

    Attributes:
        items: rows, or pairs.
        tokens: that go through the model; a prompt that two answers share counts once.
        responses: of them those with a loss.
        context: tokens that a token attends to, on average.
        longest: tokens of the longest item.
    """

    items: int
    tokens: float
    responses: float
    context: float
    longest: int


def training_seconds(size: ModelSize, machine: Machine, work: TrainingWork, options: TrainOptions) -> float:
    """All epochs of optimiser steps.

    An adapter costs one pass forward and one back to the inputs, and six operations a weight of its own; full
    training a third pass, for the gradients of the weights. The frozen head makes logits and gradient at once.
    """
    passes = (3 if options.full else 2) + (1 if options.gradient_checkpointing else 0)
    head = (4 if options.full else 2) * size.through_head(work.responses)
    flop = passes * size.forward(work.tokens, work.context) + 6 * size.adapter(options) * work.tokens + head
    return options.epochs * machine.seconds(flop, "train")


def reference_seconds(size: ModelSize, machine: Machine, work: TrainingWork) -> float:
    """One pass without gradient."""
    flop = size.forward(work.tokens, work.context) + size.through_head(work.responses)
    return machine.seconds(flop, "reference")


def training_bytes(size: ModelSize, machine: Machine, work: TrainingWork, options: TrainOptions) -> float:
    """Most memory in training, and in reading what was trained, which is merged in float32.

    Weights with gradient and the two moments of AdamW take 16 bytes each. On a CPU the attention of rows that are not
    long keeps its weights, for every token one a head and a token of its row.
    """
    width = 4 if options.full else BYTES[machine.dtype]
    states = (12 * size.weights) if options.full else 16 * size.adapter(options)
    budget = options.token_budget or default_token_budget(machine.kind, machine.dtype)
    batch = max(min(budget, options.batch_size * work.tokens / max(1, work.items)), work.longest)
    cpu = machine.kind == "cpu"
    seen = size.heads * min(KEPT_KEYS, 2 * work.context) if cpu else 0.0
    layer = width * (KEPT_HIDDEN * size.hidden + KEPT_INNER * size.inner + seen)
    kept = layer * (2 if options.gradient_checkpointing else size.layers)
    code = CODE_BYTES if cpu and machine.dtype == "bfloat16" else 0.0
    step = states + batch * kept + HEAD_BLOCK[machine.kind] + code
    return machine.runtime_bytes() + width * size.weights + max(step, 4 * size.weights)


@dataclass(frozen=True)
class GenerationWork:
    """Answers to make.

    Attributes:
        prompts: tokens of the prompts, each counted once however many answers it gets.
        written: tokens of the answers.
        longest_prompt: in tokens.
        longest_answer: that is allowed, in tokens.
        rows: answers.
        likelihood: tokens of given continuations with their contexts, read instead of written.
    """

    prompts: float
    written: float
    longest_prompt: int
    longest_answer: int
    rows: int
    likelihood: float = 0.0


def generation_seconds(size: ModelSize, machine: Machine, work: GenerationWork) -> float:
    """Reading the prompts, then writing: bound by arithmetic, or by reading all weights in every step."""
    context = work.longest_prompt / 2
    read = size.forward(work.prompts + work.likelihood, context) + size.through_head(work.likelihood)
    slots = min(SLOTS[machine.kind], max(1, work.rows))
    steps = work.written / slots
    flop = size.forward(work.written, work.longest_prompt + work.longest_answer / 2) + size.through_head(work.written)
    moved = steps * BYTES[machine.dtype] * (size.body + size.head) / machine.rates.bandwidth
    writing = max(machine.seconds(flop, "decode"), moved)
    return machine.seconds(read, "prefill") + writing + steps * machine.shares.step_seconds


def generation_bytes(size: ModelSize, machine: Machine, work: GenerationWork) -> float:
    """Weights, the cache of keys and values, logits of a step with three copies, and the activations of a prefill."""
    width = BYTES[machine.dtype]
    slots = min(SLOTS[machine.kind], max(1, work.rows))
    cache = slots * (work.longest_prompt + work.longest_answer) * 2 * size.layers * size.key_width * width
    if machine.kind == "cpu":
        cache = min(cache, CACHE_BYTES)
    logits = 4 * slots * size.vocabulary * 4
    read = min(slots * work.longest_prompt, max(PREFILL_TOKENS, work.longest_prompt))
    layer = read * (6 * size.hidden + 3 * size.inner) * width
    return machine.runtime_bytes() + engine_bytes(size, machine) + cache + logits + layer


def engine_bytes(size: ModelSize, machine: Machine) -> float:
    """Weights of a model that answers: on a CPU body and head are there once more, packed for decoding."""
    packed = size.body + size.head if machine.kind == "cpu" else 0
    return BYTES[machine.dtype] * (size.weights + packed)


def guard_seconds(size: ModelSize, machine: Machine, tokens: float, depth: int) -> float:
    """The guard's layers over ``tokens``, on the embedded model's sizes."""
    return machine.seconds(size.forward(tokens, 64) * depth / size.layers, "guard")


def guard_bytes(size: ModelSize, machine: Machine) -> float:
    """The guard beside the model that it judges: its weights, and its batch or, before, the file that it is read from
    (the embedded model's, in float32, which counts as resident while it is read)."""
    width = BYTES[machine.dtype]
    return width * size.weights + max(4 * size.weights, GUARD_BATCH * (8 * size.hidden + 4 * size.inner) * width)


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise KeyError(names[0])


def _product(shape: Sequence[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result
