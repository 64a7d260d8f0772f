"""Training the built-in guard: lower layers run once and cached, updates and a head learned on the layers above.

Rows are split by prompt; what the guard will be tested on is left out of its training by prompt, and the calibration
is fitted on prompts that no update has seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safeserve.core.agreement import auroc
from safeserve.core.errors import UserError
from safeserve.core.options import seed_for, stable_hash
from safeserve.core.progress import Progress
from safeserve.core.runs import Stage, read_json, sha256_file, write_json
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import get_set, load_labels
from safeserve.judging.guard_network import (
    PROJECTIONS,
    GuardNetwork,
    GuardSpec,
    Reader,
    Reading,
    batches,
    body,
    padded,
    pooled,
    write_guard,
)
from safeserve.models import embedded
from safeserve.models.loading import bf16_is_fast
from safeserve.training.batches import Row, padded_batches
from safeserve.training.options import GuardRecipe
from safeserve.training.trainer import fit

Item = TypeVar("Item")
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Window:
    """One reading with the lower layers' states, bfloat16 or float32 [tokens, hidden]."""

    reading: Reading
    states: Tensor

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.reading.ids)


@dataclass(frozen=True, eq=False)
class Example:
    """A labelled window (``target`` is the share of raters who said unsafe), or a pair (better, worse)."""

    windows: tuple[Window, ...]
    target: float | None


class LowRank(nn.Module):
    """A frozen linear layer plus alpha / rank · B A (Hu et al. 2021), A and B in float32, multiplied in its dtype.

    peft multiplies float32 adapters by inputs that it first casts to float32, which doubles the time of a step here.
    """

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, alpha / rank
        self.a = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        update = nn.functional.linear(nn.functional.linear(x, self.a.to(x.dtype)), (self.scale * self.b).to(x.dtype))
        out: Tensor = self.frozen(x) + update
        return out


class GuardPolicy:
    """The upper layers with low-rank updates and the head; what ``fit`` needs of a policy."""

    def __init__(self, folder: Path, recipe: GuardRecipe, dtype: torch.dtype) -> None:
        from transformers import set_seed

        self.options = recipe.training
        self.device: Literal["cpu"] = "cpu"
        self.token_budget = recipe.training.token_budget or 2048
        set_seed(recipe.seed)
        upper = body(folder, slice(recipe.adapted_from, recipe.depth), dtype)
        upper.embed_tokens = nn.Embedding(1, 1)  # never asked: the lower layers' states come in
        # On a CPU the fused bfloat16 kernel's backward costs more than all of a short row's attention done plainly.
        upper.set_attn_implementation("eager")
        for layer in upper.layers:
            for name in PROJECTIONS:
                part = layer.self_attn if name in PROJECTIONS[:4] else layer.mlp
                setattr(part, name, LowRank(getattr(part, name), recipe.training.lora_rank, recipe.training.lora_alpha))
        self.layers = upper
        self.head = nn.Linear(2 * upper.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.model = nn.ModuleDict({"layers": self.layers, "head": self.head})
        self._dtype, self._from = dtype, recipe.adapted_from

    def logits(self, windows: Sequence[Window]) -> Tensor:
        """One logit a window."""
        _, attention = padded([window.reading for window in windows])
        states = torch.zeros(*attention.shape, windows[0].states.shape[-1], dtype=self._dtype)
        for row, window in enumerate(windows):
            states[row, : window.length] = window.states
        out = self.layers(inputs_embeds=states, attention_mask=attention, use_cache=False).last_hidden_state
        logits: Tensor = self.head(pooled(out, [window.reading for window in windows])).squeeze(1)
        return logits

    def micro_batches(self, items: Sequence[Item], rows: Callable[[Item], Sequence[Row]]) -> list[list[Item]]:
        """Padded, within the token budget."""
        return padded_batches(items, rows, self.token_budget)

    def tensors(self) -> dict[str, Tensor]:
        """The updates and the head under the names of a guard file."""
        found = {"head.weight": self.head.weight.detach()[0], "head.bias": self.head.bias.detach()}
        for index, layer in enumerate(self.layers.layers):
            for name in PROJECTIONS:
                part = getattr(layer.self_attn if name in PROJECTIONS[:4] else layer.mlp, name)
                stem = f"layers.{self._from + index}.{name}"
                found[f"{stem}.a"] = part.a.detach()
                found[f"{stem}.b"] = part.b.detach()
        return found

    def save_weights(self, folder: Path) -> None:
        """A checkpoint's weights, which ``transformers.Trainer`` reads back by their names in the model."""
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class GuardObjective:
    """Cross-entropy against the raters' share, and Bradley-Terry on pairs (Bradley & Terry 1952)."""

    def __init__(self, pair_weight: float) -> None:
        self.pair_weight = pair_weight

    def rows(self, item: Example) -> Sequence[Any]:
        """The windows of an example."""
        return item.windows

    def weight(self, item: Example) -> int:
        """Every example counts once."""
        return 1

    def loss(self, policy: Any, items: Sequence[Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a micro-batch."""
        logits = policy.logits([window for item in items for window in item.windows])
        total = torch.zeros(())
        at = 0
        for item in items:
            if item.target is None:
                total = total - self.pair_weight * nn.functional.logsigmoid(logits[at + 1] - logits[at])
            else:
                target = torch.tensor(item.target)
                total = total + nn.functional.binary_cross_entropy_with_logits(logits[at], target)
            at += len(item.windows)
        return total, {}


def gather(recipe: GuardRecipe, root: str | None) -> dict[str, list[LabelledAnswer]]:
    """The rows of every source without those whose prompt is held out; at most as many as the recipe says.

    Raises:
        UserError: a set that is both source and held out, or a source that is not there.
    """
    both = sorted(set(recipe.sources) & set(recipe.held_out))
    if both:
        raise UserError(f"{', '.join(both)}: both a source and held out. A guard is not tested on what it learned.")
    tested = {row.group for name in recipe.held_out for row in load_labels(name, root)}
    found = {}
    for name, limit in recipe.sources.items():
        rows = [row for row in load_labels(name, root) if row.unsafe is not None and row.group not in tested]
        found[name] = _unique(rows, limit, recipe.seed)
    return found


def _unique(rows: Sequence[LabelledAnswer], limit: int | None, seed: int) -> list[LabelledAnswer]:
    """Without repetitions of prompt and answer; a pair is drawn whole."""
    kept: dict[tuple[str, str, str | None], LabelledAnswer] = {}
    for row in rows:
        kept.setdefault((row.group, row.response, row.pair), row)
    units: dict[str, list[LabelledAnswer]] = {}
    for row in kept.values():
        units.setdefault(row.pair or row.id, []).append(row)
    names = sorted(units)
    random.Random(seed_for("guard rows", seed)).shuffle(names)
    chosen: list[LabelledAnswer] = []
    for name in names:
        if limit is not None and len(chosen) + len(units[name]) > limit:
            break
        chosen += units[name]
    return chosen


def is_validation(row: LabelledAnswer, share: float, seed: int) -> bool:
    """Whether the row's prompt is among those kept for calibration: decided by the prompt, the same in every source."""
    return seed_for("guard split", seed, row.group) % 10_000 < share * 10_000


def platt(logits: Sequence[float], targets: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """(slope, intercept) of P = σ(slope · logit + intercept), by weighted maximum likelihood (Platt 1999).

    Raises:
        ValueError: nothing to fit.
    """
    from scipy.optimize import minimize

    z, y, w = (np.asarray(values, dtype=float) for values in (logits, targets, weights))
    if not len(z):
        raise ValueError("nothing to calibrate on")
    w = w / w.sum()

    def negative_log_likelihood(theta: np.ndarray[Any, Any]) -> float:
        margin = np.exp(theta[0]) * z + theta[1]  # exp: a calibration never turns the order round
        return float((w * (np.logaddexp(0.0, margin) - y * margin)).sum())

    best = minimize(negative_log_likelihood, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    return float(np.exp(best.x[0])), float(best.x[1])


def train_guard(recipe: GuardRecipe, root: str | None, out: Path, quiet: bool = False) -> dict[str, Any]:
    """Train, calibrate and write ``out`` (safetensors) with ``.json`` metrics beside it; resumes if killed.

    Returns:
        Rows per source, training curves, validation AUROC per source, the file's sha256.
    """
    found = gather(recipe, root)
    digest = stable_hash([[row.id, row.prompt, row.response, row.unsafe] for rows in found.values() for row in rows])
    stage = Stage(out.with_suffix(".work"), {"recipe": recipe.model_dump(mode="json"), "rows": digest})
    metrics_file = out.with_suffix(".json")
    if stage.done() and out.is_file() and metrics_file.is_file():
        return read_json(metrics_file)
    work = stage.begin()
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    folder = embedded.fetch(quiet=quiet)
    spec = spec_of(recipe)
    rows = [row for part in found.values() for row in part]
    cached = _lower_states(folder, spec, rows, dtype, quiet)
    learn = [row for row in rows if not is_validation(row, recipe.validation_share, recipe.seed)]
    held = [row for row in rows if is_validation(row, recipe.validation_share, recipe.seed)]
    policy = GuardPolicy(folder, recipe, dtype)
    objective = GuardObjective(recipe.pair_weight)
    result = fit(policy, objective, _examples(learn, cached), [], work / "checkpoints", recipe.seed)  # type: ignore[arg-type]
    tensors = policy.tensors()
    write_guard(out, spec, tensors)
    logits = GuardNetwork(out, dtype, quiet=True).logits([(row.prompt, row.response) for row in held])
    final = calibrated(spec, held, logits, recipe.sensitivity)
    write_guard(out, final, tensors)
    metrics = {
        "name": recipe.name,
        "rows": {name: len(part) for name, part in found.items()},
        "licences": {name: get_set(name).licence for name in found},
        "validation_rows": len(held),
        "validation": validation_report(held, logits, {row.id: name for name, part in found.items() for row in part}),
        "calibration": {"slope": final.slope, "intercept": final.intercept, "threshold": final.threshold},
        "training": result,
        "sha256": sha256_file(out),
        "bytes": out.stat().st_size,
    }
    write_json(metrics_file, metrics)
    stage.finish()
    return metrics


def calibrated(
    spec: GuardSpec, held: Sequence[LabelledAnswer], logits: Sequence[float] | Floats, sensitivity: float
) -> GuardSpec:
    """The description with calibration and threshold from held-out prompts; pairs say nothing of a probability.

    The threshold is the largest P(unsafe), rounded down to hundredths, that catches ``sensitivity`` of the held-out
    answers that most raters called unsafe.

    Raises:
        UserError: no held-out row has a label of its own, or none is unsafe.
    """
    used = [(float(z), float(row.unsafe or 0.0)) for row, z in zip(held, logits, strict=True) if row.pair is None]
    unsafe = sorted(z for z, y in used if y >= 0.5)
    if not unsafe:
        raise UserError("no unsafe answer is left for calibration. Add a source, or raise validation_share.")
    slope, intercept = platt([z for z, _ in used], [y for _, y in used], [1.0] * len(used))
    caught = unsafe[math.floor((1 - sensitivity) * len(unsafe))]
    threshold = math.floor(100 / (1 + math.exp(-(slope * caught + intercept)))) / 100
    return spec.model_copy(
        update={"slope": slope, "intercept": intercept, "threshold": min(max(threshold, 0.01), 0.99)}
    )


def validation_report(
    held: Sequence[LabelledAnswer], logits: Sequence[float] | Floats, origin: Mapping[str, str]
) -> dict[str, Any]:
    """AUROC on the held-out prompts of each labelled set (``origin``: row id to set); None where a class is missing."""
    groups: dict[str, list[tuple[bool, float]]] = {}
    for row, z in zip(held, logits, strict=True):
        if row.pair is None:
            groups.setdefault(origin[row.id], []).append(((row.unsafe or 0.0) >= 0.5, float(z)))
    report: dict[str, Any] = {}
    for name, rows in sorted(groups.items()):
        unsafe = [u for u, _ in rows]
        both = len(set(unsafe)) == 2
        report[name] = {
            "n": len(rows),
            "unsafe": sum(unsafe),
            "auroc": float(auroc(unsafe, [z for _, z in rows])) if both else None,
        }
    return report


def spec_of(recipe: GuardRecipe) -> GuardSpec:
    """The description of the guard that a recipe makes, not yet calibrated."""
    return GuardSpec(
        name=recipe.name,
        licence=recipe.licence,
        sources=tuple(sorted(recipe.sources)),
        depth=recipe.depth,
        adapted_from=recipe.adapted_from,
        rank=recipe.training.lora_rank,
        alpha=recipe.training.lora_alpha,
        window_tokens=recipe.window_tokens,
        prompt_tokens=recipe.prompt_tokens,
    )


def _lower_states(
    folder: Path, spec: GuardSpec, rows: Sequence[LabelledAnswer], dtype: torch.dtype, quiet: bool
) -> dict[str, Window]:
    """Row id to its first window with the states below ``adapted_from``, computed once."""
    from transformers import AutoTokenizer

    reader = Reader(AutoTokenizer.from_pretrained(folder), spec)
    readings = [reader.readings(row.prompt, row.response)[0] for row in rows]
    lower = body(folder, slice(0, spec.adapted_from), dtype)
    lower.norm = nn.Identity()
    cached: dict[str, Window] = {}
    with Progress("lower layers", len(rows), quiet=quiet) as progress, torch.no_grad():
        for batch in batches([len(reading.ids) for reading in readings], 6144):
            ids, attention = padded([readings[i] for i in batch])
            states = lower(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
            for row, i in enumerate(batch):
                cached[rows[i].id] = Window(readings[i], states[row, : len(readings[i].ids)].clone())
            progress.advance(len(batch), int(attention.sum()))
    return cached


def _examples(rows: Sequence[LabelledAnswer], cached: Mapping[str, Window]) -> list[Example]:
    examples = [Example((cached[row.id],), float(row.unsafe or 0.0)) for row in rows if row.pair is None]
    pairs: dict[str, list[LabelledAnswer]] = {}
    for row in rows:
        if row.pair is not None:
            pairs.setdefault(row.pair, []).append(row)
    for both in pairs.values():
        if len(both) == 2:
            better, worse = sorted(both, key=lambda row: row.unsafe or 0.0)
            examples.append(Example((cached[better.id], cached[worse.id]), None))
    return examples
