"""Where a guard fails: by category, by length, on refusals and rebuttals, on the embedded model's own answers.

    python tools/guard_report.py --root DATA [--guard guard] [--labels beavertails_30k_test ...]
                                 [--own LABELS --answers RUN:MODEL ...]

Prints Markdown. Scores are cached by the guard's identity: what `safeserve calibrate` has read is not read again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from safeserve.core.agreement import auroc
from safeserve.core.runs import read_jsonl
from safeserve.core.statistics import wilson
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import label_key, load_labels
from safeserve.evaluation.folder import find_eval, read_eval
from safeserve.judging.calibration import categories
from safeserve.judging.calibration_store import score_labelled
from safeserve.judging.judge import Score
from safeserve.judging.refusal import classify
from safeserve.judging.registry import make_judge

SMALLEST = 20
Judged = list[tuple[LabelledAnswer, Score]]


def length(row: LabelledAnswer) -> Iterable[str]:
    """How long an answer is, in words."""
    words = len(row.response.split())
    limits = (20, 60, 120, 250)
    lower = 0
    for limit in limits:
        if words <= limit:
            return [f"{lower + 1:>3} to {limit} words"]
        lower = limit
    return [f"{lower + 1} words and more"]


def stance(row: LabelledAnswer) -> Iterable[str]:
    """What the refusal rules see in it."""
    verdict = classify(row.prompt, row.response)
    return [
        "no refusal" if verdict.label == "full_compliance" else f"{verdict.label.replace('_', ' ')}: {verdict.kind}"
    ]


def table(title: str, judged: Judged, groups: Callable[[LabelledAnswer], Iterable[str]]) -> None:
    """Rows and their share unsafe, ranking, and verdicts, for each group that is large enough."""
    members: dict[str, Judged] = defaultdict(list)
    for row, score in judged:
        for name in groups(row):
            members[name].append((row, score))
    print(f"\n| {title} | n | unsafe | AUROC | found | false alarms |\n|---|---:|---:|---:|---:|---:|")
    for name in sorted(members):
        part = members[name]
        if len(part) < SMALLEST:
            continue
        truth = [(row.unsafe or 0.0) > 0.5 for row, _ in part]
        said = [score.label == "unsafe" for _, score in part]
        both = len(set(truth)) == 2
        ranking = f"{auroc(truth, [score.value or 0.0 for _, score in part]):.3f}" if both else "–"
        found = [s for s, t in zip(said, truth, strict=True) if t]
        alarms = [s for s, t in zip(said, truth, strict=True) if not t]
        print(f"| {name} | {len(part)} | {sum(truth)} | {ranking} | {share(found)} | {share(alarms)} |")


def share(hits: list[bool]) -> str:
    """A rate in per cent with its interval, or a dash."""
    if not hits:
        return "–"
    interval = wilson(sum(hits), len(hits))
    return f"{100 * sum(hits) / len(hits):.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def own(guard: str, labels: list[Path], targets: list[str]) -> None:
    """The share called unsafe among the embedded model's answers, by the mode that a reader gave them."""
    judge = make_judge(guard)
    modes = {row["key"]: row["mode"] for file in labels for row in read_jsonl(file)}
    by_mode: dict[str, list[bool]] = defaultdict(list)
    for target in targets:
        for part in read_eval(find_eval(target)).benchmarks.values():
            labelled = [
                (modes[key], part.prompts[c.id], c)
                for c in part.completions.values()
                if (key := label_key(c.id, c.text)) in modes and c.text.strip()
            ]
            for (mode, prompt, _), score in zip(labelled, judge.score([(p, c) for _, p, c in labelled]), strict=True):
                by_mode[f"{prompt.label} prompt: {mode.replace('_', ' ')}"].append(score.label == "unsafe")
    print("\n| answers of the embedded model, as read | n | called unsafe |\n|---|---:|---:|")
    for name in sorted(by_mode):
        print(f"| {name} | {len(by_mode[name])} | {share(by_mode[name])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--guard", default="guard")
    parser.add_argument("--labels", nargs="+", default=["beavertails_30k_test"])
    parser.add_argument("--own", nargs="*", type=Path, default=[])
    parser.add_argument("--answers", nargs="*", default=[])
    arguments = parser.parse_args()
    judge = make_judge(arguments.guard)
    for name in arguments.labels:
        rows = [row for row in load_labels(name, arguments.root) if row.unsafe is not None and row.unsafe != 0.5]
        scores = score_labelled(judge, rows, "unsafe")
        judged = [(row, score) for row, score in zip(rows, scores, strict=True) if score.value is not None]
        print(f"\n### {judge.name} on {name}, {len(judged)} answers")
        table("category", judged, categories)
        table("length", judged, length)
        table("what the refusal rules see", judged, stance)
    if arguments.own:
        own(arguments.guard, arguments.own, arguments.answers)


if __name__ == "__main__":
    main()
