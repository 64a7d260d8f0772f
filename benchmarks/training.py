"""Both sides of the training benchmarks: safeserve through its public functions, TRL through its trainers.

Both start from pairs or demonstrations in memory and a loaded model, and end with the adapter on disk: tokenising, the
reference pass, training and saving are inside the time, loading the model is not. Both see the same rows in the same
optimiser batches, in the order of safeserve's plan; adapter, AdamW, learning rate and clipping are the same.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import Disagreement, Run, gpu_above, gpu_before, hushed, synchronise
from safeserve.data.records import Demonstration, PreferencePair
from safeserve.training.batches import plan_steps

CENTRING = 0.01
"""Weight of the centring of rewards, on both sides."""


@dataclass(frozen=True)
class Setup:
    """What both sides have in common.

    Attributes:
        batch: rows or pairs in an optimiser step.
        max_length: longest row in tokens; None lets TRL cut nothing (safeserve leaves longer rows out, so none may be).
    """

    model: str
    dtype: str
    device: str = "cpu"
    batch: int = 8
    learning_rate: float = 2e-4
    lora_rank: int = 16
    lora_alpha: int = 32
    max_length: int = 1024
    seed: int = 7

    def load(self, dtype: str | None = None) -> Any:
        """A fresh copy of the model (safeserve's ``LoadedModel``)."""
        from safeserve.models.loading import load

        return load(self.model, dtype=dtype or self.dtype, device=self.device, quiet=True)  # type: ignore[arg-type]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for adapters and caches."""
    folder = Path(tempfile.mkdtemp(prefix="safeserve-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ours(
    method: str,
    setup: Setup,
    rows: Sequence[PreferencePair] | Sequence[Demonstration],
    settings: Mapping[str, Any] | None = None,
    loaded: Any = None,
) -> Run:
    """One epoch with safeserve; ``settings`` are options beside the common ones.

    Args:
        method: dpo, sit or reward.
        loaded: a model to use instead of a fresh copy.

    Returns:
        Rows done; in ``more`` ``trained`` (seconds until the weights were trained, before saving), on a GPU
        ``step_bytes``, which layers and kernel it was (``own_layers``, and ``flex`` on a GPU), ``losses`` of the steps,
        the first and their mean.
    """
    from safeserve.models import gpu_attention
    from safeserve.training import policy, reward_policy
    from safeserve.training.dpo import DpoOptions, train_dpo
    from safeserve.training.reward import RewardOptions, train_reward
    from safeserve.training.sit import SitOptions, train_sit

    given = {
        "lora_rank": setup.lora_rank,
        "lora_alpha": setup.lora_alpha,
        "learning_rate": setup.learning_rate,
        "batch_size": setup.batch,
        "max_length": setup.max_length,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "checkpoint_steps": None,
        **(settings or {}),
    }
    kind: Any
    train: Callable[..., Any]
    kind, train = {
        "dpo": (DpoOptions, train_dpo),
        "sit": (SitOptions, train_sit),
        "reward": (RewardOptions, train_reward),
    }[method]
    if method == "reward":
        given = {"validation_share": 0.0, "center_rewards_coefficient": CENTRING, "contradictions": "keep", **given}
    options: Any = kind(**given)
    loaded = loaded or setup.load()
    trained: dict[str, Any] = {}
    place: Any = reward_policy if method == "reward" else policy
    saver = "save_reward" if method == "reward" else "save_result"
    saving, before = getattr(place, saver), gpu_before(setup.device)

    def noted(*arguments: Any, **named: Any) -> Any:
        synchronise(setup.device)
        trained.update(trained=time.perf_counter() - start, **gpu_above(setup.device, before))
        trained.update(own_layers=arguments[0].decoder is not None, flex=gpu_attention.flex_in_use())
        return saving(*arguments, **named)

    with scratch() as folder, hushed(), mock.patch.object(place, saver, noted):
        start = time.perf_counter()
        result = train(loaded, rows, options, folder / "out", seed=setup.seed, parent=setup.model, work=folder / "work")
        synchronise(setup.device)
        seconds = time.perf_counter() - start
    if result.metrics["excluded"]:
        raise Disagreement(f"{len(result.metrics['excluded'])} rows are longer than {setup.max_length} tokens")
    if result.metrics["rows"] != len(rows):
        raise Disagreement(f"{result.metrics['rows']} of {len(rows)} rows were trained on")
    losses = [row["loss"] for row in result.metrics["curves"]["train"]]
    more = {**trained, "first_loss": losses[0], "losses": losses}
    return Run(len(rows), seconds, {**more, "mean_loss": sum(losses) / len(losses)})


def in_plan_order(setup: Setup, rows: Sequence[Any], length: Callable[[Any], int] | None = None) -> list[Any]:
    """Rows in the order in which safeserve's steps take them, so that a sequential sampler makes the same batches.

    Args:
        length: sort each step's rows by this, longest first: micro-batches get rows of similar length.
    """
    ordered = []
    for step in plan_steps(len(rows), setup.batch, 1, setup.seed):
        part = [rows[n] for n in step]
        ordered += sorted(part, key=length, reverse=True) if length else part
    return ordered


def trl(
    method: str,
    setup: Setup,
    rows: Sequence[PreferencePair] | Sequence[Demonstration],
    settings: Mapping[str, Any],
    loaded: Any = None,
) -> Run:
    """One epoch with TRL's trainer.

    Args:
        method: dpo, sit or reward.
        settings: of DPOConfig, SFTConfig or RewardConfig; beside them ``sorted`` (rows of a step by length) and
            ``attn_implementation``.
        loaded: a model to use instead of a fresh copy; it is given back as it was.
    """
    given, loaded = loaded, loaded or setup.load()
    before = gpu_before(setup.device)
    with scratch() as folder, hushed():
        start = time.perf_counter()
        trainer = trl_trainer(method, setup, rows, settings, loaded, folder)
        mean_loss = trainer.train().training_loss
        synchronise(setup.device)
        trained = {"trained": time.perf_counter() - start, **gpu_above(setup.device, before)}
        trainer.save_model(str(folder / "out"))
        seconds = time.perf_counter() - start
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        if given is not None:
            _as_before(trainer, loaded)
    more: dict[str, Any] = {**trained, "steps": trainer.state.global_step, "mean_loss": mean_loss}
    if losses:
        more |= {"first_loss": losses[0], "losses": losses}
    return Run(len(rows), seconds, more)


def trl_trainer(
    method: str, setup: Setup, rows: Sequence[Any], settings: Mapping[str, Any], loaded: Any, folder: Path
) -> Any:
    """TRL's trainer for these rows, with its reference computed where ``precompute_ref_log_probs`` asks for it."""
    from peft import LoraConfig

    datasets, peer = importlib.import_module("datasets"), importlib.import_module("trl")
    if loaded.tokenizer.eos_token_id != loaded.chat.end_id:
        raise Disagreement("TRL would end answers with another token than the chat template does")
    given = dict(settings)
    columns = _text(loaded.chat, method)
    by_length = (lambda row: _characters(row, method)) if given.pop("sorted", False) else None
    texts = [columns(row) for row in in_plan_order(setup, rows, by_length)]
    loaded.model.set_attn_implementation(given.pop("attn_implementation", "sdpa"))
    per_device = given.get("per_device_train_batch_size", min(8, setup.batch))
    common = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": setup.batch // per_device,
        "num_train_epochs": 1,
        "learning_rate": setup.learning_rate,
        "lr_scheduler_type": "constant",
        "max_length": setup.max_length,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "use_cpu": setup.device == "cpu",
        "seed": setup.seed,
    }
    name = {"dpo": "DPO", "sit": "SFT", "reward": "Reward"}[method]
    config, trainer = getattr(peer, f"{name}Config"), getattr(peer, f"{name}Trainer")
    adapter: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    model = loaded.model
    if method == "reward":
        common["center_rewards_coefficient"] = CENTRING
        adapter = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        model = _classifier(loaded)
    return trainer(
        model=model,
        args=config(**{**common, **given}),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(r=setup.lora_rank, lora_alpha=setup.lora_alpha, target_modules="all-linear", **adapter),
    )


def _classifier(loaded: Any) -> Any:
    """The model that TRL trains as a reward model: the same body, and a head of zeros in the body's dtype."""
    from safeserve.training.reward_policy import classifier_of

    model = classifier_of(loaded)
    model.score.to(loaded.model.dtype)
    return model


def _as_before(trainer: Any, loaded: Any) -> None:
    """Take from the model what TRL has put into it: adapter, checkpointing, and a forward of its own."""
    if trainer.args.gradient_checkpointing:
        trainer.model.disable_input_require_grads()
        trainer.model.gradient_checkpointing_disable()
    loaded.model = trainer.model.unload()
    loaded.model.__dict__.pop("forward", None)
    loaded.model.eval()


def _text(chat: Any, method: str) -> Callable[[Any], dict[str, Any]]:
    if method == "reward":
        return lambda row: {
            "prompt": list(row.messages),
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    if method == "dpo":
        return lambda row: {"prompt": chat.text(row.messages), "chosen": row.chosen, "rejected": row.rejected}
    return lambda row: {"prompt": chat.text(row.messages), "completion": row.response}


def _characters(row: Any, method: str) -> int:
    answers = (row.response,) if method == "sit" else (row.chosen, row.rejected)
    return sum(len(message["content"]) for message in row.messages) + max(map(len, answers))
