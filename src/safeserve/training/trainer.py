"""Training on transformers.Trainer: one dataset item is one optimiser step, planned ahead from the seed.

So the step always sees exactly the recipe's rows, resuming is skipping items, and the token budget acts inside the
step only: its micro-batches' losses are summed and divided by the step's weight (response tokens, or pairs).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.progress import Progress
from safeserve.core.runs import disk_errors
from safeserve.training.batches import Row, learning_rate_factor, plan_steps
from safeserve.training.checkpoints import complete_checkpoint, mark_complete
from safeserve.training.options import TrainOptions
from safeserve.training.policy import Policy

Item = TypeVar("Item")
Target = TypeVar("Target", contravariant=True)


class Objective(Protocol[Target]):
    """What SIT and DPO differ in."""

    def rows(self, item: Target) -> Sequence[Row]:
        """The token rows of an item."""

    def weight(self, item: Target) -> int:
        """What the item adds to the number that the step's summed loss is divided by."""

    def loss(self, policy: Policy, items: Sequence[Target]) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a micro-batch, and sums of what is logged beside it (divided like the loss)."""


@dataclass
class Tally:
    """Sums over micro-batches, for one average."""

    weight: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, loss: Tensor, statistics: dict[str, Tensor]) -> None:
        for name, value in {"loss": loss, **statistics}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.weight for name, value in self.sums.items()}


class StepTrainer(Trainer, Generic[Item]):  # type: ignore[misc]
    """transformers.Trainer whose batch is a whole optimiser step, split by a token budget."""

    def __init__(self, policy: Policy, objective: Objective[Item], progress: Progress, **arguments: Any) -> None:
        self.control: Any
        super().__init__(model=policy.model, data_collator=lambda steps: {"items": steps[0]}, **arguments)
        self.policy, self.objective, self.progress = policy, objective, progress
        self.tokens = 0
        self._statistics: dict[str, float] = {}
        self.remove_callback(PrinterCallback)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one optimiser step; returns its mean loss."""
        model.train()
        items: Sequence[Item] = inputs["items"]
        tally = Tally(sum(self.objective.weight(item) for item in items))
        for group in self.policy.micro_batches(items, self.objective.rows):
            loss, statistics = self.objective.loss(self.policy, group)
            self.accelerator.backward(loss / tally.weight)
            tally.add(loss, statistics)
        tokens = sum(row.length for item in items for row in self.objective.rows(item))
        self.tokens += tokens
        self._statistics = tally.means()
        loss_value = self._statistics.pop("loss")
        if not math.isfinite(loss_value):
            raise UserError(f"The loss is {loss_value} at step {self.state.global_step + 1}. Lower learning_rate.")
        self.progress.advance(1, tokens, f"loss {loss_value:.4f}")
        return torch.tensor(loss_value, device=self.args.device)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Validation loss and statistics, logged with the prefix ``eval_``."""
        items: Sequence[Item] = self.eval_dataset
        self.model.eval()
        tally = Tally(sum(self.objective.weight(item) for item in items))
        with torch.no_grad(), Progress("validate", len(items)) as progress:
            for group in self.policy.micro_batches(items, self.objective.rows):
                tally.add(*self.objective.loss(self.policy, group))
                progress.advance(len(group), sum(row.length for item in group for row in self.objective.rows(item)))
        metrics = {f"eval_{name}": value for name, value in tally.means().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's statistics to the history that becomes the curves."""
        super().log({**logs, **self._statistics} if "loss" in logs else logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate's course; unlike transformers' own, the first step of the warm-up is not at rate 0."""
        options = self.policy.options
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate_factor(step, num_training_steps, options.warmup_ratio, options.schedule),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Weights only: no training_args.bin, which would be a pickle.
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self.policy.save_weights(Path(output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with disk_errors(folder):
            try:
                super()._save_checkpoint(model, trial)
            except Exception as error:
                # torch and safetensors report a full disk as errors of their own.
                if isinstance(error, OSError) or not any(
                    sign in str(error) for sign in ("No space left", "PytorchStreamWriter", "unexpected pos")
                ):
                    raise
                raise EnvironmentFault(f"{folder}: the checkpoint could not be written: {error}") from error
            mark_complete(folder)


def fit(
    policy: Policy, objective: Objective[Item], items: Sequence[Item], validation: Sequence[Item], work: Path, seed: int
) -> dict[str, Any]:
    """Train ``policy`` on ``items``; continue from the last complete checkpoint in ``work`` if there is one.

    Returns:
        Final losses, steps, tokens, tokens/s, seconds, peak memory and curves, ready for JSON.
    """
    options = policy.options
    plan = plan_steps(len(items), options.batch_size, options.epochs, seed)
    checkpoint = complete_checkpoint(work)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    arguments = _arguments(options, policy.device, len(plan), bool(validation), work, seed)
    start = time.perf_counter()
    if policy.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with Progress("train", len(plan)) as progress:
        progress.skip(done)
        trainer: StepTrainer[Item] = StepTrainer(
            policy,
            objective,
            progress,
            args=arguments,
            train_dataset=[[items[n] for n in step] for step in plan],
            eval_dataset=list(validation) or None,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - start
    history = trainer.state.log_history
    start = time.perf_counter()
    if validation and not any("eval_loss" in row and row["step"] == len(plan) for row in history):
        trainer.evaluate()
    validation_seconds = time.perf_counter() - start
    curves = {
        "train": [_without(row, "epoch") for row in history if "loss" in row],
        "validation": [_without(row, "epoch") for row in history if "eval_loss" in row],
    }
    tail = curves["train"][-max(1, len(plan) // 10) :]
    metrics = {
        "loss": curves["train"][-1]["loss"],
        "loss_last_tenth": sum(row["loss"] for row in tail) / len(tail),
        "validation_loss": curves["validation"][-1]["eval_loss"] if curves["validation"] else None,
        "steps": len(plan),
        "resumed_from_step": done,
        "rows": len(items),
        "validation_rows": len(validation),
        "tokens": trainer.tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(trainer.tokens / seconds, 1),
        "validation_seconds": round(validation_seconds, 2),
        "peak_memory_bytes": _peak_memory(policy.device),
        "curves": curves,
    }
    return metrics


def _arguments(
    options: TrainOptions, device: str, steps: int, validated: bool, work: Path, seed: int
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated and options.eval_steps else "no",
        eval_steps=options.eval_steps,
        save_strategy="steps" if options.checkpoint_steps else "no",
        save_steps=options.checkpoint_steps or steps,
        save_total_limit=2,  # the last complete one must outlive the writing of the next
        seed=seed,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if arguments.world_size > 1:
        raise UserError("Training runs in one process. Start it without torchrun / accelerate launch.")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel would split a step across GPUs
    return arguments


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def _peak_memory(device: str) -> int:
    """Peak bytes: of the process on a CPU, of torch's tensors on a GPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
