"""What training returns, and the frame that SIT and DPO share: encode, leave out, fit, save, resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from safeserve.core.errors import UserError
from safeserve.core.runs import Stage, read_json, write_json
from safeserve.training.batches import Row, rows_digest, split_validation
from safeserve.training.options import TrainOptions

if TYPE_CHECKING:
    from safeserve.models.loading import LoadedModel
    from safeserve.training.policy import Policy
    from safeserve.training.trainer import Objective


class HasId(Protocol):
    """A demonstration or a preference pair."""

    @property
    def id(self) -> str: ...


Record = TypeVar("Record", bound=HasId)
Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainResult:
    """A trained model.

    Attributes:
        folder: where the adapter or the merged model is saved.
        metrics: losses, steps, tokens, tokens_per_second, seconds, peak_memory_bytes, excluded, curves; JSON.
        load: reads it from there.
    """

    folder: Path
    metrics: dict[str, Any]
    load: Callable[[], LoadedModel]

    @cached_property
    def model(self) -> LoadedModel:
        """Adapter merged in float32, then in the dtype of the parent, ready to generate; read when first asked for."""
        return self.load()


@dataclass(frozen=True)
class Training(Generic[Record, Item]):
    """One training to do.

    Attributes:
        encode: a record as an item of token ids.
        rows: an item's token rows.
        objective: given the policy, training and validation items and the work folder.
        work: folder for checkpoints and the reference; by default ``stages/train-NAME/checkpoints`` of the run whose
            ``models/NAME`` is ``out``.
    """

    method: str
    model: LoadedModel
    options: TrainOptions
    encode: Callable[[Record], Item]
    rows: Callable[[Item], Sequence[Row]]
    objective: Callable[[Policy, Sequence[Item], Path], Objective[Item]]
    out: Path
    parent: str
    seed: int
    work: Path | None = None

    def run(self, records: Sequence[Record], validation: Sequence[Record] | None) -> TrainResult:
        """Train, or continue, or return what is already there when the inputs are the same.

        Raises:
            UserError: no usable rows, contradicting options, or ``work`` holds a training with other inputs.
        """
        records, held_out = self._split(records, validation)
        excluded: dict[str, int] = {}
        items = self._encoded(records, excluded)
        validation_items = self._encoded(held_out, excluded)
        if not items:
            raise UserError(f"{self.method}: no row to train on ({len(records)} given, {len(excluded)} too long).")
        if held_out and not validation_items:
            raise UserError(f"{self.method}: every validation row is longer than max_length.")
        work = self.work or self.out.parent.parent / "stages" / f"train-{self.out.name}" / "checkpoints"
        stage = Stage(work, self._inputs(items, validation_items))
        if stage.done() and self.out.exists():
            return TrainResult(self.out, read_json(work / "metrics.json"), self._kept)
        stage.begin()
        result = self._train(items, validation_items, excluded, work)
        stage.finish()
        return result

    def _train(self, items: list[Item], validation: list[Item], excluded: dict[str, int], work: Path) -> TrainResult:
        from safeserve.training.checkpoints import delete_checkpoints
        from safeserve.training.trainer import fit

        policy = self._policy()
        try:
            policy.probe([row for item in items[:2] for row in self.rows(item)][:2])
            objective = self.objective(policy, [*items, *validation], work)
            metrics = fit(policy, objective, items, validation, work, self.seed)
            metrics["excluded"] = excluded
            started = time.perf_counter()
            metrics |= self._measured(policy, validation)
            metrics["validation_seconds"] = round(metrics["validation_seconds"] + time.perf_counter() - started, 2)
            self._save(policy)
        finally:
            policy.release()
        write_json(work / "metrics.json", metrics)
        delete_checkpoints(work)
        return TrainResult(self.out, metrics, self._kept)

    def _policy(self) -> Policy:
        """The model made trainable."""
        from safeserve.training.policy import Policy

        return Policy(self.model, self.options, self.seed)

    def _measured(self, policy: Policy, validation: Sequence[Item]) -> dict[str, Any]:
        """Metrics beside the losses, of the trained policy."""
        return {}

    def _save(self, policy: Policy) -> None:
        """Save the trained policy to ``out``."""
        from safeserve.training.policy import save_result

        save_result(policy, self.out, self.parent, self.method)

    def _kept(self) -> LoadedModel:
        """What training has saved to ``out``."""
        from safeserve.models.loading import load

        return load(self.out, dtype=self.model.dtype, device=self.model.device, quiet=True)

    def _split(
        self, records: Sequence[Record], validation: Sequence[Record] | None
    ) -> tuple[Sequence[Record], Sequence[Record]]:
        options = self.options
        if validation and options.validation_share:
            raise UserError(
                "validation_share: would be ignored, because validation rows are given. Remove one of them."
            )
        if options.eval_steps and not validation and not options.validation_share:
            raise UserError("eval_steps: would be ignored without validation rows. Set validation_share, or remove it.")
        if validation:
            return records, validation
        train, held_out = split_validation(len(records), options.validation_share, self.seed)
        return [records[n] for n in train], [records[n] for n in held_out]

    def _encoded(self, records: Sequence[Record], excluded: dict[str, int]) -> list[Item]:
        limit = min(self.options.max_length, getattr(self.model.model.config, "max_position_embeddings", 1 << 30))
        kept, long = [], {}
        for record in records:
            item = self.encode(record)
            longest = max(row.length for row in self.rows(item))
            if longest > limit:
                long[record.id] = longest
            else:
                kept.append(item)
        if long:
            names = ", ".join(list(long)[:5]) + (", ..." if len(long) > 5 else "")
            print(
                f"{self.method}: {len(long)} of {len(records)} rows are longer than {limit} tokens and are left out "
                f"({names}). Raise max_length to keep them.",
                file=sys.stderr,
            )
        excluded.update(long)
        return kept

    def _inputs(self, items: Sequence[Item], validation: Sequence[Item]) -> dict[str, Any]:
        return {
            "method": self.method,
            "options": self.options.model_dump(mode="json"),
            "seed": self.seed,
            "model": [self.model.identity, self.model.dtype],
            "rows": rows_digest(row for item in items for row in self.rows(item)),
            "validation rows": rows_digest(row for item in validation for row in self.rows(item)),
        }
