"""Model cards: README.md of a trained model, with metadata as the Hugging Face hub reads it.

Everything in a card is read from the run's files; what nobody measured, the card says nobody measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.runs import plain, write_text
from safeserve.data.catalogue import SOURCES
from safeserve.data.source_types import OWN, HubFile
from safeserve.models import embedded
from safeserve.report.card_training import opening, options_table, stages_table
from safeserve.report.content import read_optional, recipe_of, reproduce_command
from safeserve.report.rows import hygiene_notes, summary_rows
from safeserve.report.tables import markdown_table, verdict_sentence
from safeserve.report.words import code, markdown

CARD = "README.md"
SCORERS = ("reward", "cost")
"""Methods whose result is no language model."""
LIMITS = (
    "Rates are of these prompts, this decoding and these judges, on single-turn English prompts. A model with a high "
    "safe rate can still be talked into harm by prompts of another kind, language or length.",
    "Judges are classifiers with errors of their own. `safeserve calibrate` measures them against labels by people.",
    "Refusals are no aim in themselves: read the safe rate and the over-refusal rate together, or not at all.",
)
"""What holds of every model that was measured this way."""


def write_cards(run_dir: Path) -> list[Path]:
    """Write README.md into every ``models/NAME`` that a finished training stage has left; returns their paths.

    Reward and cost models have none: they answer nothing, and their metrics.json tells how well they rank.
    """
    stages = recipe_of(run_dir).get("train") or {}
    made = []
    for name, stage in stages.items():
        if not plain(name):  # it is about to become a path
            raise UserError(f'{run_dir / "recipe.yaml"}: train: "{name}" cannot be a stage name.')
        folder = run_dir / "models" / name
        finished = folder.is_dir() and (run_dir / "stages" / f"train-{name}" / "metrics.json").exists()
        if finished and stage.get("method") not in SCORERS:
            path, text = folder / CARD, model_card(run_dir, name)
            if not path.exists() or path.read_text(encoding="utf-8") != text:  # a second run leaves models as they are
                write_text(path, text)
            made.append(path)
    return made


def model_card(run_dir: Path, name: str) -> str:
    """The card of ``models/NAME``: YAML metadata, then Markdown.

    Raises:
        UserError: the run has no such trained model, or a file of it is broken.
    """
    recipe = recipe_of(run_dir)
    stages = recipe.get("train") or {}
    if name not in stages:
        raise UserError(f"{run_dir}: its recipe trains no model {name}. It trains: {', '.join(stages) or 'none'}.")
    manifest = read_optional(run_dir / "manifest.json") or {}
    summary = read_optional(run_dir / "evals" / name / "summary.json") or {}
    verdict = read_optional(run_dir / "verdict.json") or {}
    chain = list(_chain(stages, name))
    data = _training_data(run_dir, chain)
    parts = [
        _front_matter(run_dir, name, str(recipe.get("model", "")), stages[name], data, summary),
        f"# {markdown(name)}",
        opening(str(recipe.get("model", "")), chain, stages),
        *_verdict_part(name, verdict),
        "## Measured",
        _measured(summary),
        "## Training",
        stages_table(chain, stages),
        "Every option that acted, set by the recipe or by default:",
        options_table(chain, stages, recipe.get("seed", manifest.get("seed"))),
        "## Data",
        _data_table(data),
        "## Limits and hazards",
        _limits(name, summary, verdict),
        "## Reproduce",
        _reproduce(manifest, run_dir),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    run_dir: Path, name: str, model: str, stage: Mapping[str, Any], data: Mapping[str, Any], summary: Mapping[str, Any]
) -> str:
    from huggingface_hub import ModelCardData

    results = list(_results(summary))
    licence = _licence(data, model)
    card = ModelCardData(
        base_model=_hub_name(model),
        datasets=sorted({hub for source in data if (hub := _hub_data(source))}) or None,
        library_name="peft" if (run_dir / "models" / name / "adapter_config.json").exists() else "transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=["safeserve", str(stage.get("method", ""))],
        model_name=name if results else None,
        eval_results=results or None,
        ignore_metadata_errors=True,
    )
    return f"---\n{card.to_yaml().strip()}\n---"


def _results(summary: Mapping[str, Any]) -> Iterator[Any]:
    """Every rate that tables show, as the hub's results; the interval stands in the name, for want of a field."""
    from huggingface_hub import EvalResult

    for benchmark, part in summary.get("benchmarks", {}).items():
        for judge, judged in part["judges"].items():
            for metric, cell in judged["metrics"].items():
                value = cell.get("rate", cell.get("mean"))
                if value is None or cell["ci95"] is None:
                    continue
                low, high = cell["ci95"]
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=benchmark,
                    dataset_name=benchmark,
                    metric_type=metric,
                    metric_name=f"{metric} by {judge}, 95 % interval {low:.3f} to {high:.3f}, n = {cell['n']}",
                    metric_value=round(value, 4),
                )


def _verdict_part(name: str, verdict: Mapping[str, Any]) -> list[str]:
    if not verdict:
        return []
    if verdict["candidate"] != name:
        return ["## Verdict", f"This model was not put to a policy; {markdown(verdict['candidate'])} of its run was."]
    reasons = "\n".join(f"* {markdown(reason)}" for reason in verdict["reasons"])
    against = f" Compared with {markdown(verdict['against'])}." if verdict["against"] else ""
    return ["## Verdict", f"**{markdown(verdict_sentence(verdict))}**{against}\n\n{reasons}"]


def _measured(summary: Mapping[str, Any]) -> str:
    if not summary:
        return "Not measured: this run has no evaluation of this model, so nothing is known of its safety."
    rows = [(r.benchmark, r.metric, r.value, r.interval, str(r.n)) for r in summary_rows(summary)]
    return markdown_table(("benchmark", "metric", "value", "95 %", "n"), rows, left=2).strip()


def _data_table(data: Mapping[str, Mapping[str, Any]]) -> str:
    if not data:
        return "No account of training data in this run."
    rows = []
    for source, part in data.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in part["left_out"].items()) or "–"
        rows.append((source, str(part["rows"]), _source_licence(source) or "not known to safeserve", left_out))
    return markdown_table(("source", "rows to draw from", "licence", "left out"), rows, left=1).strip()


def _limits(name: str, summary: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    notes = [markdown(note) for note in hygiene_notes({name: summary})] if summary else []
    if verdict and verdict["candidate"] == name and verdict["outcome"] != "pass":
        notes.insert(0, "The policy above is not met: do not serve this model on the strength of this card.")
    return "\n".join(f"* {note}" for note in [*notes, *LIMITS])


def _reproduce(manifest: Mapping[str, Any], run_dir: Path) -> str:
    """The recipe's command and not the one typed last, which may differ by an option that changes nothing."""
    version = f" (safeserve {manifest['safeserve']})" if "safeserve" in manifest else ""
    return (
        f"{code(reproduce_command(run_dir))}{markdown(version)}\n\nIt makes everything again, beside this run. "
        "The recipe, the data's hashes and every answer are in the run's folder."
    )


def _chain(stages: Mapping[str, Any], name: str) -> Iterator[str]:
    """The stages that the model went through, first to last."""
    start = stages[name].get("start", "base")
    if start in stages:
        yield from _chain(stages, start)
    yield name


def _training_data(run_dir: Path, chain: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for stage in chain:
        data |= (read_optional(run_dir / "stages" / f"train-{stage}" / "metrics.json") or {}).get("data", {})
    return data


def _licence(data: Mapping[str, Any], model: str) -> str | None:
    """The strictest that is known: non-commercial data make the model so; None where somebody must decide."""
    found = [_source_licence(source) for source in data]
    if any(licence and "NC" in licence.upper() for licence in found):
        return "cc-by-nc-4.0"
    own_base = model in (embedded.NAME, embedded.HUB_NAME)
    return "apache-2.0" if own_base and all(licence in (OWN, "MIT") for licence in found) else None


def _source_licence(source: str) -> str | None:
    found = SOURCES.get(source.rpartition(" ")[2])
    return found.licence if found else None


def _hub_data(source: str) -> str | None:
    found = SOURCES.get(source.rpartition(" ")[2])
    return found.remote.repo if found and isinstance(found.remote, HubFile) else None


def _hub_name(model: str) -> str | None:
    """The base on the hub; a local folder has no name there."""
    if model in (embedded.NAME, embedded.HUB_NAME):
        return embedded.HUB_ID
    return None if Path(model).expanduser().exists() or model.count("/") != 1 else model.partition("@")[0]
