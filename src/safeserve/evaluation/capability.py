"""Capability as others report it: tasks of the LM Evaluation Harness, called as a library on a loaded model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.errors import EnvironmentFault, UserError, did_you_mean
from safeserve.core.yaml_files import read_yaml

if TYPE_CHECKING:
    from safeserve.models.loading import LoadedModel


def run_lm_eval(
    loaded: LoadedModel, tasks: Sequence[str], limit: int | None = None, batch_rows: int = 8
) -> dict[str, Any]:
    """Measure a model on tasks of lm-eval, without chat format and without examples unless a task says otherwise.

    Args:
        loaded: the model; nothing of it is changed.
        tasks: names of lm-eval's tasks, or YAML files of own ones. A tag that names code is refused, but lm-eval's
            templates are programs: a task's file must be trusted.
        limit: the first rows of each task only.
        batch_rows: rows a forward pass.

    Returns:
        ``{"lm_eval": version, "tasks": {name: {"n", "version", metric: value, metric_stderr: value, ...}}}``.

    Raises:
        UserError: an unknown task, a file that is none, or a task that lm-eval does not run on a language model.
        EnvironmentFault: lm-eval is not installed, or a task's data cannot be had.
    """
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EnvironmentFault(
            f"--lm-eval needs lm-eval ({error}). Install it: pip install 'safeserve[lm-eval]'."
        ) from None
    wanted = [_task(name) for name in tasks]
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in wanted))
    for name in wanted:
        if isinstance(name, str) and name not in manager.all_tasks:
            raise UserError(f'--lm-eval: lm-eval has no task "{name}".{_close(name, manager.all_tasks)}')
    try:
        manager.load(wanted)  # reads the tasks' data, before any time goes into the model
    except Exception as error:  # the data libraries' errors share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"--lm-eval: the data of {', '.join(tasks)} cannot be had ({reason}). lm-eval takes them from the Hugging "
            "Face hub: run once with a network, or name a task's YAML file whose data are local."
        ) from error
    model = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.chat.tokenizer,
        batch_size=batch_rows,
        backend="causal",
    )
    try:
        outcome = simple_evaluate(model=model, tasks=wanted, task_manager=manager, limit=limit, log_samples=False)
    except ValueError as error:  # a task that runs code, or wants pictures
        raise UserError(f"--lm-eval: cannot run {', '.join(tasks)}: {error}") from error
    if outcome is None:
        raise EnvironmentFault("--lm-eval: lm-eval returned nothing.")
    return {
        "lm_eval": metadata.version("lm_eval"),
        "tasks": {name: _cells(outcome, name) for name in outcome["results"]},
    }


def _close(name: str, known: Sequence[str]) -> str:
    """A suggestion; of thousands of tasks no list."""
    hint = did_you_mean(name, known)
    return hint if "Did you mean" in hint else " Its documentation lists them."


def _task(name: str) -> str | dict[str, Any]:
    """What lm-eval's task manager takes: a name, or the content of a YAML file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    tree = read_yaml(Path(name))
    if not isinstance(tree, dict) or not isinstance(tree.get("task"), str):
        raise UserError(f"{name}: a task of lm-eval holds keys and values, among them task (its name).")
    return tree


def _cells(outcome: Any, name: str) -> dict[str, Any]:
    """One task's numbers under plain names; lm-eval joins metric and filter by a comma."""
    results = outcome["results"][name]
    counted = outcome["n-samples"].get(name, {}).get("effective", results.get("sample_len"))  # a group has no entry
    cells: dict[str, Any] = {"n": counted, "version": outcome["versions"].get(name)}
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if isinstance(value, int | float) and filtered and math.isfinite(value):
            cells[metric if filtered == "none" else f"{metric} ({filtered})"] = value
    return cells
