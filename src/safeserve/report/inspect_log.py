"""An evaluation as Inspect logs (``inspect view`` opens them): one log a benchmark, every sample with its scores.

Built with inspect_ai's own classes, so that its reader and viewer accept them. The numbers are those of summary.json;
nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeserve.core.errors import EnvironmentFault
from safeserve.core.options import stable_hash
from safeserve.core.runs import disk_errors, readable
from safeserve.data.records import Message, Prompt
from safeserve.evaluation.folder import BenchmarkEval, EvalFolder, Key
from safeserve.generation.engine import Completion
from safeserve.judging.evidence import why_unscored
from safeserve.judging.judge import Score
from safeserve.report.samples_table import clean, token_count

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample
    from inspect_ai.model import ChatMessage, ModelOutput
    from inspect_ai.scorer import Score as InspectScore

_STOP = {"stop": "stop", "length": "max_tokens", "error": "unknown"}
"""Our finish reasons in Inspect's words."""

_KEPT = ("n_not_applicable", "modes", "flags", "by_category")
"""What of a judge's summary goes along with its metrics."""


def require_inspect() -> None:
    """Raises :class:`EnvironmentFault` with the remedy where inspect_ai is not installed."""
    try:
        import inspect_ai  # noqa: F401
    except ImportError:
        raise EnvironmentFault('Inspect logs need inspect_ai: pip install "safeserve[inspect]".') from None


def inspect_logs(folder: EvalFolder) -> dict[str, EvalLog]:
    """Benchmark name to its log.

    A score's ``value`` is the judge's number, ``answer`` its label, ``explanation`` its evidence. What is no evidence
    (no value, one that is not finite, an unknown label) is ``Score.unscored``, value NaN, with the reason: Inspect's
    metrics leave it out. Sample k is epoch k + 1.
    """
    require_inspect()
    return {name: _log(folder, name, part) for name, part in folder.benchmarks.items() if part.completions}


def write_inspect_log(log: EvalLog, path: Path) -> None:
    """Write ``path`` (``.eval``) whole or not at all."""
    from inspect_ai.log import write_eval_log

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.tmp.eval")
        try:
            write_eval_log(log, temporary, format="eval")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _log(folder: EvalFolder, name: str, part: BenchmarkEval) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats
    from inspect_ai.model import GenerateConfig

    summary: Mapping[str, Any] = folder.meta.get("benchmarks", {}).get(name, {})
    sampling = folder.sampling or {}
    created = _made(folder.path / name / "completions.jsonl")
    identity = stable_hash([folder.model, folder.meta.get("identity"), name, list(part.prompts), dict(sampling)])
    spec = EvalSpec(
        eval_id=identity,
        run_id=stable_hash([folder.model, folder.meta.get("identity"), folder.meta.get("suite")]),
        task_id=stable_hash([name, list(part.prompts)]),
        created=created,
        task=name,
        dataset=EvalDataset(
            name=name, samples=len(part.prompts), sample_ids=[readable(key) for key in part.prompts], shuffled=False
        ),
        model=f"safeserve/{readable(folder.model)}",
        model_generate_config=GenerateConfig(
            max_tokens=summary.get("max_new_tokens", sampling.get("max_new_tokens")),
            temperature=sampling.get("temperature"),
            top_p=sampling.get("top_p"),
            frequency_penalty=sampling.get("frequency_penalty"),
            seed=sampling.get("seed"),
        ),
        config=EvalConfig(epochs=1 + max(k for _, k in part.completions)),
        metadata=clean(
            {
                "identity": folder.meta.get("identity"),
                "suite": folder.meta.get("suite"),
                "label": part.label,
                "judges": dict(folder.judge_identities),
            }
        ),
    )
    return EvalLog(
        status="success",
        eval=spec,
        results=_results(part, summary),
        stats=EvalStats(started_at=created, completed_at=created),
        samples=[_sample(folder.model, part, key, completion) for key, completion in part.completions.items()],
    )


def _made(path: Path) -> str:
    """When the answers were written, UTC, ISO 8601."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat()


def _results(part: BenchmarkEval, summary: Mapping[str, Any]) -> EvalResults:
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    scores = []
    for judge in part.scores:
        cell: Mapping[str, Any] = summary.get("judges", {}).get(judge, {})
        metrics = {}
        for name, measured in cell.get("metrics", {}).items():
            rest = dict(measured)
            value = rest.pop("rate", None) if "rate" in rest else rest.pop("mean", None)
            if value is not None:  # nothing was scored: no number, rather than a made-up one
                metrics[name] = EvalMetric(name=name, value=value, metadata=rest)
        unscored = cell.get("n", 0) - cell.get("n_scored", 0) if cell else None
        scores.append(
            EvalScore(
                name=judge,
                scorer=judge,
                scored_samples=cell.get("n_scored"),
                unscored_samples=unscored,
                metrics=metrics,
                metadata={key: cell[key] for key in _KEPT if key in cell},
            )
        )
    total = len(part.completions)
    failed = sum(completion.finish_reason == "error" for completion in part.completions.values())
    return EvalResults(total_samples=total, completed_samples=total - failed, scores=scores)


def _sample(model: str, part: BenchmarkEval, key: Key, completion: Completion) -> EvalSample:
    from inspect_ai.log import EvalSample

    prompt = part.prompts[key[0]]
    asked = _messages(prompt.messages)
    output = _output(model, completion)
    return EvalSample(
        id=readable(prompt.id),
        epoch=completion.k + 1,
        input=asked,
        target=_target(prompt),
        messages=[*asked, *(choice.message for choice in output.choices)],
        output=output,
        scores={judge: _score(judge, scores[key]) for judge, scores in part.scores.items() if key in scores},
        metadata=clean({"label": prompt.label, "category": prompt.category, "logprob_sum": completion.logprob_sum}),
    )


def _target(prompt: Prompt) -> str | list[str]:
    """The ideal answer, the accepted short answers, or nothing."""
    return readable(prompt.reference) if prompt.reference is not None else [readable(a) for a in prompt.answers] or ""


def _messages(messages: Sequence[Message]) -> list[ChatMessage]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    # The id is made from the text: left out, it would be random and the same evaluation would give another file.
    return [
        kinds[message["role"]](content=readable(message["content"]), id=stable_hash([number, clean(dict(message))]))
        for number, message in enumerate(messages)
    ]


def _output(model: str, completion: Completion) -> ModelOutput:
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage

    name, used = f"safeserve/{readable(model)}", token_count(completion)
    if completion.finish_reason == "error":
        return ModelOutput(model=name, error=readable(completion.error or "no reason given"))
    message = ChatMessageAssistant(
        content=readable(completion.text),
        model=name,
        source="generate",
        id=stable_hash([name, completion.id, completion.k]),
    )
    return ModelOutput(
        model=name,
        choices=[ChatCompletionChoice(message=message, stop_reason=_STOP[completion.finish_reason])],
        usage=None
        if used is None
        else ModelUsage(
            input_tokens=completion.prompt_tokens,
            output_tokens=used,
            total_tokens=completion.prompt_tokens + used,
        ),
    )


def _score(judge: str, score: Score) -> InspectScore:
    from inspect_ai.scorer import Score as InspectScore

    metadata = clean({"label": score.label, "flags": list(score.flags), "detail": score.detail})
    answer = None if score.label is None else readable(score.label)
    if (why := why_unscored(judge, score)) is not None:
        reason = readable(why)
        return InspectScore.unscored(reason=reason, answer=answer, explanation=reason, metadata=metadata)
    explanation = score.evidence or score.reason
    return InspectScore(
        value=score.value,
        answer=answer,
        explanation=None if explanation is None else readable(explanation),
        metadata=metadata,
    )
